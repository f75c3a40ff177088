"""Searchable attention: projections, and products if asked, have formats.

The projections are `EinsumDense` layers with a decision each, at the paths
`"<name>/query"`, `"<name>/key"`, `"<name>/value"` and `"<name>/output"` (and
`"<name>/gate"` if there is one). The two products of activations, scores and
their weighted sum, are computed as in Keras, unquantized, unless they are
layers as well: at `"<name>/scores"` and `"<name>/weighted_sum"`.
"""

import inspect

import keras
from keras import ops

from fliqs_tf.layers.attention_product import AttentionProduct
from fliqs_tf.layers.base import extends
from fliqs_tf.layers.base import searchable_form
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
# Keras's score of what fused attention must not see, which leaves a row that
# sees nothing uniform.
_MASKED = -0.7 * 3.38953e38


class _Explicit(keras.layers.Layer):
    """Mixin before a Keras attention layer: its products may be layers."""

    has_products = True

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        if not self.has_products:
            return
        # "bsnh,btnh->bnts" and "bnts,bsnh->btnh", or of more dimensions.
        combine = self._combine_equation
        scores, value = combine.split("->")[0].split(",")
        query = combine.split("->")[1]
        for name, equation, is_signed in (
            ("scores", f"{query},{value}->{scores}", True),
            ("weighted_sum", combine, False),
        ):
            product = AttentionProduct(
                equation, is_signed, name=name, dtype=self.dtype_policy
            )
            product.build(None)
            setattr(self, f"_{name}_product", product)

    def _compute_attention(
        self,
        query,
        key,
        value,
        attention_mask=None,
        training=None,
        return_attention_scores=False,
        **kwargs,
    ):
        if not self.has_products:
            if return_attention_scores:
                kwargs["return_attention_scores"] = True
            return super()._compute_attention(
                query, key, value, attention_mask, training, **kwargs
            )
        # In the order of Keras's operations, which has two ways.
        scale = query.shape[-1] ** -0.5
        rate = self._dropout_layer.rate
        gives_scores = return_attention_scores or getattr(
            self, "_return_attention_scores", False
        )
        if rate > 0.0 or gives_scores or len(query.shape) != 4:
            scores = self._scores_product([query * scale, key])
            scores = self._masked_softmax(scores, attention_mask)
        else:
            scores = self._scores_product([query, key])
            scores = ops.cast(scores, "float32") * scale
            if attention_mask is not None:
                mask = ops.cast(attention_mask, "bool")
                for _ in range(4 - len(mask.shape)):
                    mask = ops.expand_dims(mask, -3)
                scores = ops.where(mask, scores, _MASKED)
            scores = ops.softmax(scores, axis=-1)
        dropped = scores
        if rate > 0.0:
            dropped = self._dropout_layer(scores, training=training)
        return self._weighted_sum_product([dropped, value]), scores


@keras.saving.register_keras_serializable(package="fliqs_tf")
class ExplicitMultiHeadAttention(_Explicit, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` whose products are layers."""


@keras.saving.register_keras_serializable(package="fliqs_tf")
class ExplicitGroupQueryAttention(_Explicit, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` whose products are layers."""


# Keras's attention -> the same with products that are layers.
EXPLICIT_FORMS = {
    keras.layers.MultiHeadAttention: ExplicitMultiHeadAttention,
    keras.layers.GroupQueryAttention: ExplicitGroupQueryAttention,
}


class _Attention(_Explicit):
    """Mixin before a Keras attention layer: its inner layers have formats."""

    def __init__(self, *args, quantize_products: bool = False, **kwargs):
        options = {n: kwargs.pop(n) for n in _OPTIONS if n in kwargs}
        super().__init__(*args, **kwargs)
        self.has_products = quantize_products
        # Of every projection; checked as theirs.
        self._format_config = EinsumDense(
            "...x,xy->...y", 1, name=f"{self.name}_projection", **options
        ).format_config()

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        replacements = {}
        for slot, layer in slots(self).items():
            form = searchable_form(layer)
            if form is not None:
                replacements[slot] = form.from_config(
                    {**layer.get_config(), **self._format_config}
                )
                replacements[slot].build_from_config(layer.get_build_config())
        exchange(self, replacements)

    def get_config(self):
        return {
            **super().get_config(),
            **self._format_config,
            "quantize_products": self.has_products,
        }


@extends(keras.layers.MultiHeadAttention, "quantize_products")
class MultiHeadAttention(_Attention, keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` whose projections have a format.

    Arguments are those of the Keras layer and of `SearchableLayer`; the latter
    hold for every projection. With `quantize_products=True` the products of
    queries with keys and of probabilities with values have formats as well,
    see `SearchableAttentionProduct`.
    """


@extends(keras.layers.GroupQueryAttention, "quantize_products")
class GroupQueryAttention(_Attention, keras.layers.GroupQueryAttention):
    """`keras.layers.GroupQueryAttention` whose projections have a format.

    Arguments are those of `MultiHeadAttention`, but for Keras's own.
    """
