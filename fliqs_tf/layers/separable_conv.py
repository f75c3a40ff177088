"""Searchable separable convolutions.

Arguments are those of the Keras layers and of `SearchableLayer`. The layer has
two kernels, depthwise `(*size, channels, depth_multiplier)` and pointwise
`(*ones, channels * depth_multiplier, filters)`, and one decision: both have
the layer's format, and so have both tensors that they multiply, its input and
what is between them. As no activation is between the kernels, that has signs,
and under the signedness `"unsigned"` both tensors have symmetric grids. Each
output channel of each kernel has its own scale.
"""

import math

import keras
from keras import ops

from fliqs_tf.layers.base import positions
from fliqs_tf.layers.base import searchable
from fliqs_tf.layers.quantized_operands import Operand
from fliqs_tf.layers.searchable_layer import SearchableLayer


class _SeparableConvolution(SearchableLayer):
    operands = (
        Operand("depthwise_kernel", (-2, -1)),
        Operand("pointwise_kernel", -1, "pointwise_input"),
    )
    has_signed_inputs = True

    def compute(self, inputs, training):
        depthwise, pointwise = self.operands
        inputs, kernel, scale = self.quantize_operands(
            inputs, training, depthwise
        )
        between = ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        between, kernel, scale = self.quantize_operands(
            self.rescale(between, scale), training, pointwise
        )
        outputs = ops.conv(between, kernel, data_format=self.data_format)
        return self.finish(outputs, scale)

    @staticmethod
    def macs(layer, input_shape):
        """Both kernels are used at each position of the output."""
        kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
        places = positions(layer, layer.compute_output_shape(input_shape))
        return places * sum(math.prod(kernel.shape) for kernel in kernels)


@searchable(keras.layers.SeparableConv1D)
class SeparableConv1D(_SeparableConvolution, keras.layers.SeparableConv1D):
    """`keras.layers.SeparableConv1D` with a number format."""


@searchable(keras.layers.SeparableConv2D)
class SeparableConv2D(_SeparableConvolution, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with a number format."""
