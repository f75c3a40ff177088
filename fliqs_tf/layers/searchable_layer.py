"""What searchable layers share: formats, quantizers and their state."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from fliqs_tf.formats import get_format
from fliqs_tf.layers.calibration import warn_if_uncalibrated
from fliqs_tf.quantizers import IDENTITY
from fliqs_tf.quantizers import InputQuantizer
from fliqs_tf.quantizers import WeightQuantizer
from fliqs_tf.space import TIED
from fliqs_tf.space import get_space


@dataclasses.dataclass(frozen=True)
class Operand:
    """A kernel of a layer and the tensor that it multiplies.

    Args:
        kernel: Name of the kernel, the attribute that holds it and the prefix
            of its quantizer's variables.
        axis: Axes of the kernel that keep a scale of their own: those of the
            output channels.
        inputs: Name of the tensor, the prefix of its quantizer's variables;
            `None` if the kernel is a table that multiplies nothing.
    """

    kernel: str = "kernel"
    axis: int | tuple[int, ...] = -1
    inputs: str | None = "input"


class SearchableLayer(keras.layers.Layer):
    """Mixin before a Keras layer: formats, quantizers, MACs.

    The layer computes with codes and scales (see `quantizers.py`):

        outputs = op(codes(x), codes(kernel)) * (scale_x * scale_kernel)

    which is the Keras layer's `op(x, kernel)` with both operands rounded. At
    `fp32` the codes are the values and the scale is 1: the result is
    bit-identical to the Keras layer's.

    A layer with several kernels has one format for all of them, and one for
    all the tensors that they multiply: it is one decision, as its MACs are one
    number. Every kernel and tensor has scales of its own.

    Besides the arguments of the Keras layer it takes, by keyword:

    Args:
        formats: Format of the layer (`"int4"`), or options to search: a key of
            `fliqs.SPACES` or a sequence of names.
        input_formats: `"tied"`: inputs have the format of the weights (one
            decision). Otherwise their own format or options (a second
            decision), or `None` to leave inputs unquantized.
        input_range: `"ema"`, `"dynamic"`, `"percentile"` or `"lsq"`, see
            `InputQuantizer`.
        input_signedness: `"symmetric"`, `"unsigned"` or `"affine"` grids of
            integer formats, see `InputQuantizer`.
        weight_granularity: `"channel"`, `"tensor"` or the size of groups, see
            `WeightQuantizer`.
        rounding: `"nearest"`, or `"stochastic"` while training.
        tie: Name of a decision that this layer shares with all others of that
            name, which must have the same options; `None` for one of its own.
    """

    # The kernels of a layer and what they multiply.
    operands: tuple[Operand, ...] = (Operand(),)

    def __init__(
        self,
        *args,
        formats: str | Sequence[str] = "int8",
        input_formats: str | Sequence[str] | None = TIED,
        input_range: str = "ema",
        input_signedness: str = "symmetric",
        weight_granularity: str | int = "channel",
        rounding: str = "nearest",
        tie: str | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if getattr(self, "lora_rank", None):
            raise _lora_error(f"lora_rank={self.lora_rank}")
        self.formats = get_space(formats)
        self.is_tied = input_formats == TIED
        if self.is_tied:
            input_formats = self.formats
        self.input_range = input_range
        self.input_signedness = input_signedness
        self.weight_granularity = weight_granularity
        self.rounding = rounding
        self.tie = tie
        self.kernel_quantizers = {
            operand.kernel: WeightQuantizer(
                self.formats, operand.axis, weight_granularity, rounding
            )
            for operand in self.operands_of(self)
        }
        self.input_quantizer = None
        if input_formats is not None:
            data_format = getattr(self, "data_format", None)
            quantizer = InputQuantizer(
                input_formats,
                input_range,
                signedness=input_signedness,
                rounding=rounding,
                axis=1 if data_format == "channels_first" else -1,
            )
            if any(operand.inputs for operand in self.operands):
                self.input_quantizer = quantizer

    @classmethod
    def operands_of(cls, layer) -> tuple[Operand, ...]:
        """Operands of a layer of this class or of its Keras parent."""
        del layer
        return cls.operands

    @classmethod
    def config_of(cls, layer) -> dict[str, Any]:
        """Configuration of a layer of this class or of its Keras parent."""
        return layer.get_config()

    @classmethod
    def holder(cls, layer):
        """What has the kernels and the bias of a layer as attributes."""
        return layer

    @classmethod
    def shapes(cls, layer) -> tuple[list[tuple[Any, Any]], Any]:
        """Shapes of the weights of a layer of this class or of its parent.

        Returns:
            For each kernel its shape and the axes that keep scales, a tuple;
            and the shape of the bias, `None` without one.
        """
        holder = cls.holder(layer)
        kernels = []
        for operand in cls.operands_of(layer):
            axis = operand.axis
            axes = (axis,) if isinstance(axis, int) else axis
            kernels.append((tuple(getattr(holder, operand.kernel).shape), axes))
        bias = getattr(holder, "bias", None)
        return kernels, None if bias is None else tuple(bias.shape)

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels."""
        return tuple(self.kernel_quantizers)

    @property
    def kernel_quantizer(self):
        """Quantizer of the first kernel."""
        return next(iter(self.kernel_quantizers.values()))

    @kernel_quantizer.setter
    def kernel_quantizer(self, quantizer):
        self.kernel_quantizers[self.operands[0].kernel] = quantizer

    def build(self, input_shape):
        super().build(input_shape)
        self._build_quantizers()

    def _build_quantizers(self):
        """Creates the quantizers' variables, once the kernels are there."""
        self._kernel_states = {
            name: self._build_kernel(quantizer, name)
            for name, quantizer in self.kernel_quantizers.items()
        }
        self._input_states = {}
        if self.input_quantizer is not None:
            self._input_states = {
                operand.inputs: self._build_input(
                    self.input_quantizer, operand.inputs
                )
                for operand in self.operands
                if operand.inputs
            }

    def _build_kernel(self, quantizer, name) -> dict:
        return quantizer.build(
            getattr(self.holder(self), name).shape, name, self
        )

    def _build_input(self, quantizer, name) -> dict:
        return quantizer.build(None, name, self)

    @property
    def _kernel_state(self) -> dict:
        return self._kernel_states[self.operands[0].kernel]

    @property
    def _input_state(self) -> dict:
        return next(iter(self._input_states.values()), {})

    def add_weight(self, *args, name=None, **kwargs):
        # Under mixed precision Keras would hand out a kernel that is rounded
        # to 16 bits already, unlike the one that is exported.
        if any(name == operand.kernel for operand in self.operands):
            kwargs["autocast"] = False
        return super().add_weight(*args, name=name, **kwargs)

    @property
    def is_fixed(self) -> bool:
        """Whether no format is left to choose."""
        quantizers = (self.kernel_quantizer, self.input_quantizer)
        return all(q is None or len(q.formats) == 1 for q in quantizers)

    def choices(self) -> dict[str, tuple[tuple[str, ...], list[Any]]]:
        """The layer's decisions.

        Returns:
            Kind of decision -> (options, variables that take the index of the
            chosen one), weights before inputs. Decisions with one option have
            no variables.
        """
        kernel = [s.get("choice") for s in self._kernel_states.values()]
        inputs = [s.get("choice") for s in self._input_states.values()]
        if self.input_quantizer is None:
            found = {"weight_format": (self.formats, kernel)}
        elif self.is_tied:
            found = {"format": (self.formats, kernel + inputs)}
        else:
            found = {
                "weight_format": (self.formats, kernel),
                "input_format": (self.input_quantizer.formats, inputs),
            }
        return {
            kind: (options, [v for v in variables if v is not None])
            for kind, (options, variables) in found.items()
        }

    def input_identities(self) -> list[tuple[Any, int]]:
        """`(variable, index)`: what leaves searched inputs as they are."""
        if self.input_quantizer is None:
            return []
        identity = len(self.input_quantizer.formats)
        return [
            (state["choice"], identity)
            for state in self._input_states.values()
            if "choice" in state
        ]

    def is_calibrated(self) -> bool:
        """Whether every input range that needs data has seen some.

        Until then a layer takes each tensor's own range, which a static export
        cannot.
        """
        return all(
            # The exporter puts quantizers of its own in their place.
            not isinstance(quantizer, InputQuantizer)
            or quantizer.formats == (IDENTITY,)
            or quantizer.is_calibrated(state)
            for quantizer, state in self.input_ranges()
        )

    def input_ranges(self) -> list[tuple[InputQuantizer, dict]]:
        """Quantizers of activations, each with its state."""
        if self.input_quantizer is None:
            return []
        return [
            (self.input_quantizer, state)
            for state in self._input_states.values()
        ]

    def drop_input_quantizers(self) -> None:
        """Leaves activations unrounded from now on."""
        self.input_quantizer = None

    def quantized_kernel(
        self, kernel: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The weights of a fixed layer as they are used.

        Args:
            kernel: Name of the kernel; `None` for the first one.

        Returns:
            `(codes, scale)`, float32 arrays: codes in the format's own units
            (integers for integer formats) and of the kernel's shape, scale of
            size 1 but on the axes with scales of their own. `codes * scale`
            is the effective kernel.
        """
        (name,) = self.formats
        unit = np.float32(get_format(name).unit)
        codes, scale = self.kernel_codes(False, kernel)
        codes, scale = ops.convert_to_numpy(codes), ops.convert_to_numpy(scale)
        return codes * unit, scale / unit

    @property
    def is_float(self) -> bool:
        """Whether the layer is fixed to `fp32`, as if it were the Keras layer.

        Then it runs the Keras layer's own `call`: compilers fuse operations,
        so that only the same operations give the same bits in every mode. Not
        where channels stand first: on CPUs TensorFlow 2.21 then adds, in
        graphs, Keras's bias along the last axis if that has the same size.
        """
        inputs = self.input_quantizer
        return (
            self.formats == (IDENTITY,)
            # The exporter puts quantizers of its own in their place.
            and isinstance(self.kernel_quantizer, WeightQuantizer)
            and (inputs is None or inputs.formats == (IDENTITY,))
            and self.compute_dtype == self.variable_dtype
            and getattr(self, "data_format", None) != "channels_first"
        )

    def call(self, inputs, training=False):
        if self.is_float:
            return super().call(inputs)
        if not training:
            warn_if_uncalibrated(self)
        return self.compute(inputs, training)

    def compute(self, inputs, training):
        """The Keras layer's `call`, on quantized operands.

        Args:
            inputs: Input of the layer.
            training: Whether running ranges are to be updated.

        Returns:
            Output of the layer.
        """
        raise NotImplementedError

    def kernel_codes(self, training, kernel=None):
        """Returns float32 codes and scale of a kernel, the first by default."""
        kernel = kernel or self.operands[0].kernel
        return self.kernel_quantizers[kernel].codes(
            getattr(self.holder(self), kernel),
            training,
            self._kernel_states[kernel],
        )

    def quantize_operands(self, inputs, training, operand=None):
        """Returns both operands' codes in the compute dtype, and the scale.

        The scale of the inputs times that of the kernel, float32, of the
        kernel's rank.
        """
        operand = operand or self.operands[0]
        codes, scale = self.kernel_codes(training, operand.kernel)
        dtype = self.compute_dtype
        if self.input_quantizer is not None:
            inputs, input_scale = self.input_quantizer.codes(
                inputs, training, self._input_states[operand.inputs]
            )
            scale = scale * ops.reshape(input_scale, [1] * len(scale.shape))
        return ops.cast(inputs, dtype), ops.cast(codes, dtype), scale

    def finish(self, outputs, scale):
        """Scales the outputs in float32, adds the bias, and activates."""
        outputs = self.rescale(outputs, scale)
        if self.bias is not None:
            bias = self._per_channel(self.bias, len(outputs.shape))
            outputs = ops.add(outputs, bias)
        if self.activation is not None:
            return self.activation(outputs)
        return outputs

    def rescale(self, outputs, scale):
        scale = self._per_channel(scale, len(outputs.shape))
        outputs = ops.cast(outputs, "float32") * scale
        return ops.cast(outputs, self.compute_dtype)

    def _per_channel(self, values, rank):
        """Shapes one value an output channel to broadcast with outputs."""
        if getattr(self, "data_format", "channels_last") == "channels_first":
            return ops.reshape(values, (1, -1) + (1,) * (rank - 2))
        return ops.reshape(values, (1,) * (rank - 1) + (-1,))

    def enable_lora(self, *args, **kwargs):
        """Not supported: raises a `ValueError`."""
        raise _lora_error(f"layer {self.name!r}")

    def quantize(self, mode=None, **kwargs):
        """Not supported: raises a `ValueError`."""
        raise ValueError(
            "The formats of a searchable layer are its own; Keras's `quantize` "
            f"cannot be applied on top. Received: mode={mode!r}. Use "
            "`fliqs.to_fixed` to choose formats."
        )

    def save_own_variables(self, store):
        # Some Keras layers store their kernel and bias by name only.
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self):
        return {**super().get_config(), **self.format_config()}

    def format_config(self) -> dict:
        """What the layer's configuration has beyond the Keras layer's."""
        inputs = self.input_quantizer and list(self.input_quantizer.formats)
        return {
            "formats": list(self.formats),
            "input_formats": TIED if self.is_tied else inputs,
            "input_range": self.input_range,
            "input_signedness": self.input_signedness,
            "weight_granularity": self.weight_granularity,
            "rounding": self.rounding,
            "tie": self.tie,
        }


def _lora_error(received):
    return ValueError(
        "A searchable layer has no LoRA weights: the kernel they add up to is "
        f"what has a format. Received: {received}. Merge them into the kernel "
        "first (saving a model does), and load it without them."
    )
