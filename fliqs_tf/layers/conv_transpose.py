"""Searchable transposed convolutions.

Arguments are those of the Keras layers and of `SearchableLayer`. Each output
channel of the kernel `(*size, filters, channels)` has its own scale.
"""

import math

import keras
from keras import ops

from fliqs_tf.layers.base import positions
from fliqs_tf.layers.base import searchable
from fliqs_tf.layers.quantized_operands import Operand
from fliqs_tf.layers.searchable_layer import SearchableLayer


class _TransposedConvolution(SearchableLayer):
    operands = (Operand(axis=-2),)

    def compute(self, inputs, training):
        inputs, kernel, scale = self.quantize_operands(inputs, training)
        outputs = ops.conv_transpose(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=self.padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        return self.finish(outputs, scale)

    @staticmethod
    def macs(layer, input_shape):
        """Each position of the input uses each weight once.

        Products that fall beyond the edge, and are cropped, count.
        """
        return positions(layer, input_shape) * math.prod(layer.kernel.shape)


@searchable(keras.layers.Conv1DTranspose)
class Conv1DTranspose(_TransposedConvolution, keras.layers.Conv1DTranspose):
    """`keras.layers.Conv1DTranspose` with a number format."""


@searchable(keras.layers.Conv2DTranspose)
class Conv2DTranspose(_TransposedConvolution, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with a number format."""


@searchable(keras.layers.Conv3DTranspose)
class Conv3DTranspose(_TransposedConvolution, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` with a number format."""
