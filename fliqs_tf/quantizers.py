"""Quantizers: a format or a choice of formats, and the state it needs.

They have the methods of TFMOT's `Quantizer` (`build`, `__call__`,
`get_config`): `build` creates variables on a layer and returns them in a
dictionary, which the layer hands back at each call. So a quantizer is
stateless, serialises as plain data and knows no layer.

`codes` is what searchable layers call: `x` is about `codes * scale`, with the
codes on a grid that is small and exact. A layer that works on codes and
multiplies its *output* by the scales gets sums of exact products: for integer
formats they do not depend on the order of summation, hence not on the machine.
"""

import abc
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from fliqs_tf import numerics
from fliqs_tf.formats import get_format
from fliqs_tf.space import get_space

RANGES = ("dynamic", "ema")
# The extra option of every input quantizer: leave the tensor as it is.
IDENTITY = "fp32"


def check_range(range: str) -> None:
    """Raises unless a range is one of `RANGES`."""
    if range not in RANGES:
        raise ValueError(
            f"A range is one of {', '.join(RANGES)}. Received: range={range!r}."
        )


class _FormatQuantizer(abc.ABC):
    """What quantizers of weights and of inputs share: the chosen row."""

    def __init__(self, formats: str | Sequence[str]):
        self.formats = get_space(formats)

    def __eq__(self, other):
        return (
            type(self) is type(other)
            and self.get_config() == other.get_config()
        )

    def __hash__(self):
        return hash((type(self), self.formats))

    def _build_choice(self, name) -> dict:
        if len(self.formats) == 1:
            return {}
        widths = [get_format(fmt).bits for fmt in self.formats]
        # Not `layer.add_weight`, which has no `synchronization`: each replica
        # holds its own sample. The layer tracks the variable all the same.
        choice = keras.Variable(
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
        return {"choice": choice}

    def _row(self, weights, table):
        if len(self.formats) == 1:
            return ops.convert_to_tensor(table[0])
        return ops.take(ops.convert_to_tensor(table), weights["choice"], axis=0)

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
        return {"formats": list(self.formats)}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="fliqs_tf")
class WeightQuantizer(_FormatQuantizer):
    """Symmetric absmax quantizer of weights, one scale for each channel.

    `scale = absmax / v_max` is taken anew from the current weights at every
    call; it clips nothing and takes no gradient, so `dq/dw = 1`.

    Args:
        formats: One format, or the options among which the variable `choice`
            selects.
        axis: Axis or axes of the tensor that keep a scale of their own (the
            output channels); `None` for one scale.
    """

    def __init__(self, formats, axis: int | Sequence[int] | None = -1):
        super().__init__(formats)
        self.axis = axis if axis is None or isinstance(axis, int) else (*axis,)
        self._table = numerics.format_table(self.formats)

    def build(self, tensor_shape, name, layer) -> dict:
        """Creates the quantizer's variables on a layer.

        Args:
            tensor_shape: Shape of the tensor that will be quantized.
            name: Prefix of the variables' names.
            layer: Layer whose `add_weight` is used.

        Returns:
            Dictionary of variables, to be passed to the calls.
        """
        del tensor_shape, layer
        return self._build_choice(name)

    def codes(self, inputs, training, weights):
        """Returns float32 `(codes, scale)`; the scale keeps `axis` only."""
        del training
        row = self._row(weights, self._table)
        scale = numerics.absmax_scale(inputs, row, self.axis)
        return numerics.quantize(inputs, row, scale), scale

    def get_config(self):
        axis = self.axis if isinstance(self.axis, int | None) else [*self.axis]
        return {**super().get_config(), "axis": axis}


@keras.saving.register_keras_serializable(package="fliqs_tf")
class InputQuantizer(_FormatQuantizer):
    """Symmetric quantizer of a layer's input, one scale for the tensor.

    Besides its formats it has the option `len(formats)` to leave the input as
    it is, which a search uses before its activation delay is over.

    Args:
        formats: One format, or the options of the variable `choice`.
        range: `"ema"`: the scale comes from a running average of the absmax,
            so that it is a constant at inference and one sample's result does
            not depend on its batch. Values beyond the range are clipped, with
            zero gradient. `"dynamic"`: the absmax of the tensor at hand.
        momentum: Weight of the past in the running average
            absmax, see `numerics.running_mean`.
    """

    def __init__(self, formats, range: str = "ema", momentum: float = 0.99):
        super().__init__(formats)
        check_range(range)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(
                f"`momentum` must be in [0, 1). Received: momentum={momentum}."
            )
        self.range = range
        self.momentum = momentum
        options = self.formats
        if len(options) > 1:
            options = (*options, IDENTITY)
        self._table = numerics.format_table(options)

    def build(self, tensor_shape, name, layer) -> dict:
        """Creates the quantizer's variables; see `WeightQuantizer.build`."""
        del tensor_shape
        weights = self._build_choice(name)
        if self.range == "ema":
            for key in ("range", "updates"):
                weights[key] = layer.add_weight(
                    name=f"{name}_{key}",
                    shape=(),
                    dtype="float32",
                    initializer="zeros",
                    trainable=False,
                    aggregation="mean",
                    # A range is float32 under mixed precision too.
                    autocast=False,
                )
        return weights

    def codes(self, inputs, training, weights):
        """Returns float32 `(codes, scale)`; the scale is one number."""
        row = self._row(weights, self._table)
        if self.range == "dynamic":
            scale = numerics.absmax_scale(inputs, row)
            return numerics.quantize(inputs, row, scale), scale
        if training:
            self._update(inputs, weights)
            current = ops.convert_to_tensor(weights["range"])
        else:
            # A range that saw no data is no range: take this tensor's.
            current = ops.cond(
                weights["updates"] > 0,
                lambda: ops.convert_to_tensor(weights["range"]),
                lambda: _absmax(inputs),
            )
        scale = numerics.range_scale(current, row)
        return numerics.quantize(inputs, row, scale, clips=True), scale

    def _update(self, inputs, weights):
        mean, seen = weights["range"], weights["updates"]
        mean.assign(
            numerics.running_mean(mean, seen, _absmax(inputs), self.momentum)
        )
        seen.assign(seen + 1.0)

    def get_config(self):
        return {
            **super().get_config(),
            "range": self.range,
            "momentum": self.momentum,
        }


def _absmax(x):
    return ops.max(ops.abs(ops.cast(ops.stop_gradient(x), "float32")))
