"""Searchable depthwise convolutions.

Arguments are those of the Keras layers and of `SearchableLayer`. Each output
channel of the kernel `(*size, channels, depth_multiplier)` has its own scale.
"""

import keras
from keras import ops

from fliqs_tf.layers.base import convolution_macs
from fliqs_tf.layers.base import searchable
from fliqs_tf.layers.quantized_operands import Operand
from fliqs_tf.layers.searchable_layer import SearchableLayer


class _DepthwiseConvolution(SearchableLayer):
    operands = (Operand(axis=(-2, -1)),)

    def compute(self, inputs, training):
        inputs, kernel, scale = self.quantize_operands(inputs, training)
        outputs = ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return self.finish(outputs, scale)

    macs = staticmethod(convolution_macs)


@searchable(keras.layers.DepthwiseConv1D)
class DepthwiseConv1D(_DepthwiseConvolution, keras.layers.DepthwiseConv1D):
    """`keras.layers.DepthwiseConv1D` with a number format."""


@searchable(keras.layers.DepthwiseConv2D)
class DepthwiseConv2D(_DepthwiseConvolution, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a number format."""
