"""Models in which the products of attention can be searched."""

import re

import keras

from fliqs_tf.layers.attention import EXPLICIT_FORMS
from fliqs_tf.model_copy import copy_with

# Paths of the products.
PRODUCT = re.compile(r"(.*/)?(scores|weighted_sum)")


def with_attention_products(model: keras.Model) -> keras.Model:
    """Copies a model so that the two products of attention are layers.

    By default they are neither quantized nor counted, as in the paper. In the
    copy every `MultiHeadAttention` and `GroupQueryAttention` has a layer
    `"scores"` for its product of queries and keys, and `"weighted_sum"` for
    that of probabilities and values. They are decisions like others, with
    paths (`"<attention>/scores"`), a kind (`"AttentionProduct"`, for rules)
    and multiply-accumulates, which the costs then count.

    The weights' format of a product is that of the keys or values, its inputs'
    format that of the queries or probabilities.

    Example:
    >>> model = fliqs.with_attention_products(model)
    >>> search = fliqs.SearchModel(model, "int_l", cost_target="1.25xint4")

    Args:
        model: Built plain Keras model of any kind.

    Returns:
        A model of the same class, names, weights and outputs.

    Raises:
        ValueError: If the model has no such attention, or is not built.
    """
    if not model.built or not has_attention(model):
        raise ValueError(
            "Expected a built model with attention of "
            f"{' or '.join(form.__name__ for form in EXPLICIT_FORMS)}, not "
            f"quantized yet. Received: {model.name!r} without."
        )
    return copy_with(model, _changes, _change)


def has_attention(model: keras.Model) -> bool:
    """Whether a model has attention whose products are not layers yet."""
    return any(map(_changes, model._flatten_layers()))


def _changes(layer):
    return type(layer) in EXPLICIT_FORMS


def _change(layer):
    return EXPLICIT_FORMS[type(layer)].from_config(layer.get_config())
