"""Searchable embedding."""

import keras
from keras import ops

from fliqs_tf.layers.base import searchable
from fliqs_tf.layers.quantized_operands import Operand
from fliqs_tf.layers.searchable_layer import SearchableLayer


@searchable(keras.layers.Embedding)
class Embedding(SearchableLayer, keras.layers.Embedding):
    """`keras.layers.Embedding` whose table has a number format.

    Arguments are those of the Keras layer and of `SearchableLayer`, whose
    `input_formats` says nothing here: inputs are indices. Each column of the
    table `(input_dim, output_dim)` has its own scale, and the outputs are rows
    of the rounded table. No multiply-accumulates: the format costs size only.
    """

    operands = (Operand("embeddings", inputs=None),)

    def __init__(self, *args, weights=None, **kwargs):
        super().__init__(*args, **kwargs)
        if weights is not None:
            # Keras would build the layer before its format is known.
            self.build()
            table = weights[0] if isinstance(weights, list) else weights
            self.embeddings.assign(table)

    def build(self, input_shape=None):
        if not self.built:
            super().build(input_shape)

    def compute_output_spec(self, inputs, training=False):
        # That of Keras takes no `training`, as its `call` does.
        return super().compute_output_spec(inputs)

    def compute(self, inputs, training):
        if inputs.dtype not in ("int32", "int64"):
            inputs = ops.cast(inputs, "int32")
        codes, scale = self.kernel_codes(training)
        outputs = ops.take(codes, inputs, axis=0)
        scale = ops.reshape(scale, [1] * len(inputs.shape) + [-1])
        return ops.cast(outputs * scale, self.compute_dtype)

    @staticmethod
    def macs(layer, input_shape):
        """None: it looks up."""
        del layer, input_shape
        return 0
