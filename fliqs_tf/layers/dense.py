"""Searchable dense layer."""

import math

import keras
from keras import ops

from fliqs_tf.layers.base import searchable
from fliqs_tf.layers.searchable_layer import SearchableLayer


@searchable(keras.layers.Dense)
class Dense(SearchableLayer, keras.layers.Dense):
    """`keras.layers.Dense` whose weights and inputs have a number format.

    Arguments are those of the Keras layer and of `SearchableLayer`. Each
    column of the kernel `(features, units)` has its own scale.
    """

    def compute(self, inputs, training):
        inputs, kernel, scale = self.quantize_operands(inputs, training)
        return self.finish(ops.matmul(inputs, kernel), scale)

    @staticmethod
    def macs(layer, input_shape):
        """Rows (of a sequence, say) times the size of the kernel."""
        return math.prod(input_shape[1:-1]) * math.prod(layer.kernel.shape)
