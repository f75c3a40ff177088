"""Searchable convolutions."""

import keras

from fliqs_tf.layers.base import SearchableLayer
from fliqs_tf.layers.base import convolution_macs
from fliqs_tf.layers.base import searchable


@searchable(keras.layers.Conv2D)
class Conv2D(SearchableLayer, keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose weights and inputs have a number format.

    Arguments are those of the Keras layer and of `SearchableLayer`. Each
    output channel of the kernel `(height, width, channels / groups, filters)`
    has its own scale.
    """

    def call(self, inputs, training=False):
        inputs, kernel, scale = self._quantize_operands(inputs, training)
        return self._finish(self.convolution_op(inputs, kernel), scale)

    macs = staticmethod(convolution_macs)
