"""Searchable convolutions.

Arguments are those of the Keras layers and of `SearchableLayer`. Each output
channel of the kernel `(*size, channels / groups, filters)` has its own scale.
"""

import keras
from keras import ops

from fliqs_tf.layers.base import convolution_macs
from fliqs_tf.layers.base import searchable
from fliqs_tf.layers.searchable_layer import SearchableLayer


class _Convolution(SearchableLayer):
    def compute(self, inputs, training):
        inputs, kernel, scale = self.quantize_operands(inputs, training)
        return self.finish(self.convolution_op(inputs, kernel), scale)

    macs = staticmethod(convolution_macs)


@searchable(keras.layers.Conv1D)
class Conv1D(_Convolution, keras.layers.Conv1D):
    """`keras.layers.Conv1D` whose weights and inputs have a number format."""

    def convolution_op(self, inputs, kernel):
        if self.padding != "causal":
            return super().convolution_op(inputs, kernel)
        # Zeros are codes of every format.
        before = self.dilation_rate[0] * (self.kernel_size[0] - 1)
        pads = [(0, 0), (before, 0), (0, 0)]
        if self.data_format == "channels_first":
            pads = [(0, 0), (0, 0), (before, 0)]
        return ops.conv(
            ops.pad(inputs, pads),
            kernel,
            strides=list(self.strides),
            padding="valid",
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )


@searchable(keras.layers.Conv2D)
class Conv2D(_Convolution, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose weights and inputs have a number format."""


@searchable(keras.layers.Conv3D)
class Conv3D(_Convolution, keras.layers.Conv3D):
    """`keras.layers.Conv3D` whose weights and inputs have a number format."""
