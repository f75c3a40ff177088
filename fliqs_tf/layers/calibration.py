"""Tells a user that a model computes with input ranges that saw no data."""

import weakref
from typing import Any

import keras
import tensorflow as tf
from absl import logging

# Names in a warning.
_SHOWN = 5

_told: Any = weakref.WeakSet()


def allow_uncalibrated(model) -> None:
    """Lets a model take the ranges of the tensors at hand without a warning."""
    _told.add(model)


def warn_if_uncalibrated(layer) -> None:
    """Logs, once a model, which of its layers have a range without data.

    It is called where a layer infers: in eager mode at each call, otherwise
    when the call is traced, so that compiled steps do not know of it.

    Args:
        layer: Searchable layer, which is being called.
    """
    # Keras builds a model by calls that compute nothing, and has no public
    # name for them.
    if keras.src.backend.in_stateless_scope():
        return
    model = layer._get_call_context().entry_layer
    if model in _told:
        return
    with tf.init_scope():
        if layer.is_calibrated():
            return
        names = [
            inner.path
            for inner in model._flatten_layers()
            if hasattr(inner, "is_calibrated") and not inner.is_calibrated()
        ]
    _told.add(model)
    shown = ", ".join(names[:_SHOWN])
    if len(names) > _SHOWN:
        shown += f" and {len(names) - _SHOWN} more"
    logging.warning(
        "%s infers with input ranges that have seen no data, in %d layers: %s. "
        "Each takes the range of the tensor at hand, so that a sample's result "
        "depends on its batch. Train the model, or call "
        "`fliqs.recalibrate(model, data)`.",
        model.name,
        len(names),
        shown,
    )
