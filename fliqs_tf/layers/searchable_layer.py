"""What searchable layers share: arguments, their call, their configuration."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from fliqs_tf.layers.calibration import warn_if_uncalibrated
from fliqs_tf.layers.quantized_operands import QuantizedOperands
from fliqs_tf.quantizers import IDENTITY
from fliqs_tf.quantizers import InputQuantizer
from fliqs_tf.quantizers import WeightQuantizer
from fliqs_tf.space import TIED
from fliqs_tf.space import get_space


class SearchableLayer(QuantizedOperands, keras.layers.Layer):
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

    # Whether a kernel multiplies what may be negative though inputs are not.
    has_signed_inputs = False

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
            if self.has_signed_inputs and input_signedness == "unsigned":
                input_signedness = "symmetric"
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
    def config_of(cls, layer) -> dict[str, Any]:
        """Configuration of a layer of this class or of its Keras parent."""
        return layer.get_config()

    def build(self, input_shape):
        super().build(input_shape)
        self._build_quantizers()

    def add_weight(self, *args, name=None, **kwargs):
        # Under mixed precision Keras would hand out a kernel that is rounded
        # to 16 bits already, unlike the one that is exported.
        if any(name == operand.kernel for operand in self.operands):
            kwargs["autocast"] = False
        return super().add_weight(*args, name=name, **kwargs)

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
