"""Searchable depthwise convolutions."""

import keras
from keras import ops

from fliqs_tf.layers.base import SearchableLayer
from fliqs_tf.layers.base import convolution_macs
from fliqs_tf.layers.base import searchable


@searchable(keras.layers.DepthwiseConv2D)
class DepthwiseConv2D(SearchableLayer, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a number format.

    Arguments are those of the Keras layer and of `SearchableLayer`. Each
    output channel of the kernel `(height, width, channels, depth_multiplier)`
    has its own scale.
    """

    kernel_scale_axis = (-2, -1)

    def call(self, inputs, training=False):
        inputs, kernel, scale = self._quantize_operands(inputs, training)
        outputs = ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return self._finish(outputs, scale)

    macs = staticmethod(convolution_macs)
