"""Searchable dense layer of any equation."""

import math

import keras
from keras import ops

from fliqs_tf.layers.base import searchable
from fliqs_tf.layers.quantized_operands import Operand
from fliqs_tf.layers.searchable_layer import SearchableLayer


@searchable(keras.layers.EinsumDense)
class EinsumDense(SearchableLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` whose weights and inputs have a format.

    Arguments are those of the Keras layer and of `SearchableLayer`. The kernel
    keeps a scale for every index that the output has too: in
    `"btd,dhk->bthk"` for each head `h` and channel `k`. So scales can be taken
    out of the sum, whatever the equation.
    """

    @classmethod
    def operands_of(cls, layer):
        _, kernel, output = _parse(layer.equation)
        return (Operand(axis=tuple(_kept(kernel, output))),)

    def compute(self, inputs, training):
        inputs, kernel, scale = self.quantize_operands(inputs, training)
        outputs = ops.einsum(self.equation, inputs, kernel)
        return self.finish(outputs, scale)

    def rescale(self, outputs, scale):
        _, kernel, output = _parse(self.equation)
        kept = _kept(kernel, output)
        sizes = {kernel[axis]: scale.shape[axis] for axis in kept}
        order = sorted(kept, key=lambda axis: output.index(kernel[axis]))
        summed = [axis for axis in range(len(kernel)) if axis not in kept]
        scale = ops.transpose(scale, [*summed, *order])
        left, _, right = output.rpartition("...")
        hidden = len(outputs.shape) - len(left) - len(right)
        shape = [sizes.get(index, 1) for index in left]
        shape += [1] * hidden + [sizes.get(index, 1) for index in right]
        outputs = ops.cast(outputs, "float32") * ops.reshape(scale, shape)
        return ops.cast(outputs, self.compute_dtype)

    def _per_channel(self, values, rank):
        # The bias has the shape to broadcast with outputs.
        return values

    @staticmethod
    def macs(layer, input_shape):
        """Product of the sizes of all indices of the equation."""
        inputs, kernel, _ = _parse(layer.equation)
        sizes = dict(zip(kernel, layer.kernel.shape, strict=True))
        left, dots, right = inputs.partition("...")
        if not dots:
            left, right = inputs, ""
        named = dict(zip(left, input_shape, strict=False))
        named |= dict(zip(right[::-1], input_shape[::-1], strict=False))
        hidden = input_shape[len(left) : len(input_shape) - len(right)]
        indices = {**named, **sizes}
        # The batch stands first, be it an index or behind the dots.
        if left:
            indices.pop(left[0], None)
        else:
            hidden = hidden[1:]
        return math.prod(indices.values()) * math.prod(hidden)


def _parse(equation):
    """Indices of the inputs, of the kernel and of the output."""
    operands, output = equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    return inputs, kernel, output


def _kept(kernel, output):
    """Axes of the kernel that the output has too."""
    return [axis for axis, index in enumerate(kernel) if index in output]
