"""The model that a run starts from, where it is one from a file."""

import inspect
from typing import Any

import keras

from fliqs_tf.layers.composite import Composite
from fliqs_tf.layers.searchable_layer import SearchableLayer
from fliqs_tf.model_copy import copy_with
from fliqs_tf.output_activation import output_activation


def load(path: str) -> keras.Model:
    """Loads a model as plain Keras layers.

    Args:
        path: `.keras` or `.h5` file of a plain model, or `.keras` file of one
            that a run wrote, whose layers become the Keras layers they stand
            for, at their float weights.

    Raises:
        ValueError: If there is no such file, or it holds no model.
    """
    model = keras.models.load_model(path, compile=False)
    return copy_with(
        model,
        lambda layer: isinstance(layer, SearchableLayer | Composite),
        _plain,
    )


def gives_probabilities(model: keras.Model) -> bool:
    """Whether a model ends in a softmax, and not in logits."""
    return output_activation(model) is keras.activations.softmax


def _plain(layer):
    """The layer that a layer with formats stands for, with new weights."""
    if isinstance(layer, Composite):
        # Its own constructor makes the plain layers in it.
        return keras.saving.deserialize_keras_object(
            layer.get_config()["origin"]
        )
    own = inspect.signature(SearchableLayer).parameters
    # Its class: the first of its bases that knows nothing of formats.
    kind: Any = next(
        base
        for base in type(layer).__mro__
        if issubclass(base, keras.layers.Layer)
        and not issubclass(base, SearchableLayer)
    )
    config = {k: v for k, v in layer.get_config().items() if k not in own}
    return kind.from_config(config)
