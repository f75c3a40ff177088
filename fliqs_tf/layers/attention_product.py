"""The two products of attention as layers: of activations, without weights.

Attention multiplies queries with keys, and probabilities with values. Keras
computes both inside of its layer. Where they are to have formats and to count
in the cost, that layer holds an `AttentionProduct` for each.
"""

import math

import keras
from keras import ops

from fliqs_tf.layers.base import searchable
from fliqs_tf.layers.quantized_operands import Operand
from fliqs_tf.layers.searchable_layer import SearchableLayer
from fliqs_tf.quantizers import IDENTITY
from fliqs_tf.quantizers import InputQuantizer


@keras.saving.register_keras_serializable(package="fliqs_tf")
class AttentionProduct(keras.layers.Layer):
    """Product of two activations: `einsum(equation, *inputs)`.

    Args:
        equation: The equation, without dots, whose first index is the batch:
            `"btnh,bsnh->bnts"` for queries and keys.
        is_signed: Whether the left operand has signs (probabilities have not).
    """

    def __init__(self, equation: str, is_signed: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.equation = equation
        self.is_signed = is_signed
        # Attention has used the masks of its inputs.
        self.supports_masking = True

    def compute_mask(self, inputs, previous_mask=None):
        del inputs, previous_mask

    def build(self, input_shape):
        del input_shape  # It has no weights.

    def call(self, inputs):
        return ops.einsum(self.equation, *inputs)

    def get_config(self):
        return {
            **super().get_config(),
            "equation": self.equation,
            "is_signed": self.is_signed,
        }


@searchable(AttentionProduct)
class SearchableAttentionProduct(SearchableLayer, AttentionProduct):
    """`AttentionProduct` whose operands have a number format.

    The right operand, which is kept for all queries (the keys, the values),
    stands in the place of other layers' weights: it has the layer's `formats`,
    and the left one its `input_formats`. Both have ranges as inputs have. Under
    the signedness `"unsigned"` that is the grid of probabilities only.
    """

    operands = (Operand("right", inputs="left"),)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        left, right, summed = _parse(self.equation)
        self.kernel_quantizers = {
            "right": self._quantizer(self.formats, right.index(summed), True)
        }
        if self.input_quantizer is not None:
            self.input_quantizer = self._quantizer(
                self.input_quantizer.formats,
                left.index(summed),
                self.is_signed,
            )

    def _quantizer(self, formats, axis, is_signed):
        signedness = self.input_signedness
        if is_signed and signedness == "unsigned":
            signedness = "symmetric"
        return InputQuantizer(
            formats,
            self.input_range,
            signedness=signedness,
            rounding=self.rounding,
            # Blocks of block formats run along what is summed.
            axis=axis,
        )

    @property
    def kernels(self):
        return ()

    @classmethod
    def shapes(cls, layer):
        del layer
        return [], None

    def _build_kernel(self, quantizer, name):
        return self._build_input(quantizer, name)

    def input_ranges(self):
        right = self.kernel_quantizers.get("right")
        ranges = super().input_ranges()
        return [*ranges, (right, self._kernel_state)] if right else ranges

    @property
    def is_float(self):
        quantizers = (self.kernel_quantizers.get("right"), self.input_quantizer)
        return (
            # The exporter's quantizers have no formats.
            all(
                q is None or getattr(q, "formats", ()) == (IDENTITY,)
                for q in quantizers
            )
            and self.compute_dtype == self.variable_dtype
        )

    def drop_input_quantizers(self):
        super().drop_input_quantizers()
        self.kernel_quantizers = {}

    def compute(self, inputs, training):
        operands = []
        scale = ops.ones((), "float32")
        for operand, quantizer, states in (
            (inputs[0], self.input_quantizer, self._input_states),
            (
                inputs[1],
                self.kernel_quantizers.get("right"),
                self._kernel_states,
            ),
        ):
            if quantizer is not None:
                (state,) = states.values()
                operand, factor = quantizer.codes(operand, training, state)
                scale = scale * factor
            operands.append(ops.cast(operand, self.compute_dtype))
        outputs = ops.einsum(self.equation, *operands)
        return ops.cast(
            ops.cast(outputs, "float32") * scale, self.compute_dtype
        )

    @staticmethod
    def macs(layer, input_shape):
        """Product of the sizes of all indices but the batch.

        Args:
            layer: Layer of either class.
            input_shape: Shapes of both operands.
        """
        left, right, _ = _parse(layer.equation)
        sizes = dict(zip(left, input_shape[0], strict=True))
        sizes |= dict(zip(right, input_shape[1], strict=True))
        sizes.pop(left[0])
        return math.prod(sizes.values())


def _parse(equation):
    """Indices of both operands, and the first one that is summed."""
    operands, output = equation.split("->")
    left, right = operands.split(",")
    return left, right, next(i for i in left if i in right and i not in output)
