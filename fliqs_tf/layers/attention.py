"""Searchable attention: its projections have number formats.

The projections are `EinsumDense` layers with a decision each, at the paths
`"<name>/query"`, `"<name>/key"`, `"<name>/value"` and `"<name>/output"` (and
`"<name>/gate"` if there is one). The two products of activations, scores and
their weighted sum, are computed as in Keras, unquantized.
"""

import inspect

import keras

from fliqs_tf.layers.base import extends
from fliqs_tf.layers.children import exchange
from fliqs_tf.layers.children import slots
from fliqs_tf.layers.einsum_dense import EinsumDense
from fliqs_tf.layers.searchable_layer import SearchableLayer

# The arguments that searchable layers have beyond Keras's.
_OPTIONS = tuple(
    name
    for name, parameter in inspect.signature(SearchableLayer).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
)


class _Attention(keras.layers.Layer):
    """Mixin before a Keras attention layer."""

    def __init__(self, *args, **kwargs):
        options = {n: kwargs.pop(n) for n in _OPTIONS if n in kwargs}
        super().__init__(*args, **kwargs)
        # Of every projection; checked as theirs.
        self._format_config = EinsumDense(
            "...x,xy->...y", 1, name=f"{self.name}_projection", **options
        ).format_config()

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        projections = {}
        for slot, layer in slots(self).items():
            if type(layer) is keras.layers.EinsumDense:
                form = EinsumDense.from_config(
                    {**layer.get_config(), **self._format_config}
                )
                form.build_from_config(layer.get_build_config())
                projections[slot] = form
        exchange(self, projections)

    def get_config(self):
        return {**super().get_config(), **self._format_config}


@extends(keras.layers.MultiHeadAttention)
class MultiHeadAttention(_Attention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` whose projections have a format.

    Arguments are those of the Keras layer and of `SearchableLayer`; the latter
    hold for every projection.
    """


@extends(keras.layers.GroupQueryAttention)
class GroupQueryAttention(_Attention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` whose projections have a format.

    Arguments are those of the Keras layer and of `SearchableLayer`; the latter
    hold for every projection.
    """
