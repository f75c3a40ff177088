"""What quantizers share: options, and the one that is chosen."""

import abc
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from fliqs_tf import numerics
from fliqs_tf.choices import check_choice
from fliqs_tf.codebooks import codebook_table
from fliqs_tf.formats import Format
from fliqs_tf.formats import get_format
from fliqs_tf.space import get_space

ROUNDINGS = ("nearest", "stochastic")


class FormatQuantizer(abc.ABC):
    """A quantizer with formats, of which a variable chooses one.

    Args:
        formats: One format, or the options among which the variable `choice`
            selects.
        rounding: `"nearest"` (half to even), or `"stochastic"` while training.
    """

    def __init__(self, formats: str | Sequence[str], rounding: str = "nearest"):
        self.formats = get_space(formats)
        check_choice("rounding", rounding, ROUNDINGS)
        self.rounding = rounding

    def set_tables(self, options: Sequence[Format]):
        self._rows = numerics.format_table(options)
        self._codebooks = codebook_table(options)
        self.has_blocks = any(fmt.block_size for fmt in options)

    def row(self) -> np.ndarray:
        """float32 `(4,)`: the grid of the only format, see `Format.row`."""
        return self._rows[0]

    def __eq__(self, other):
        return (
            type(self) is type(other)
            and self.get_config() == other.get_config()
        )

    def __hash__(self):
        return hash((type(self), self.formats))

    def build_choice(self, name) -> dict:
        weights: dict = {}
        if self.rounding == "stochastic":
            weights["seed"] = keras.random.SeedGenerator(name=f"{name}_seed")
        if len(self.formats) == 1:
            return weights
        widths = [get_format(fmt).bits for fmt in self.formats]
        # Not `layer.add_weight`, which has no `synchronization`: each replica
        # holds its own sample. The layer tracks the variable all the same.
        weights["choice"] = keras.Variable(
            # A model that nobody searches yet runs at its widest format. (An
            # initializer, as a layer may be built inside of a symbolic call.)
            keras.initializers.Constant(int(np.argmax(widths))),
            shape=(),
            dtype="int32",
            trainable=False,
            name=f"{name}_choice",
            aggregation="only_first_replica",
            synchronization="on_read",
        )
        return weights

    def chosen(self, weights, table):
        """The chosen option's entry of a table, `None` if there is no table."""
        if table is None:
            return None
        if len(self.formats) == 1:
            return ops.convert_to_tensor(table[0])
        return ops.take(ops.convert_to_tensor(table), weights["choice"], axis=0)

    def noise(self, inputs, training, weights):
        if self.rounding == "nearest" or not training:
            return None
        return keras.random.uniform(ops.shape(inputs), seed=weights["seed"])

    def __call__(self, inputs, training, weights, **kwargs):
        """Rounds a tensor and scales it back.

        Args:
            inputs: Floating tensor.
            training: Whether a running range is to be updated.
            weights: What `build` returned.
            **kwargs: Ignored; part of TFMOT's signature.

        Returns:
            Tensor of the same shape and dtype.
        """
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        codes, scale = self.codes(inputs, training, weights)
        return ops.cast(codes * scale, dtype)

    @abc.abstractmethod
    def codes(self, inputs, training, weights):
        """Returns float32 `(codes, scale)`: `inputs` is about their product."""

    def get_config(self) -> dict:
        return {"formats": list(self.formats), "rounding": self.rounding}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
