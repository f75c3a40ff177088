"""The model that a run starts from, where it is one from a file."""

import inspect
import re
from typing import Any

import keras

from fliqs_tf.layers.base import graph_of
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
        ValueError: If there is no such file, or it holds no model, or one
            with classes that only its author has.
    """
    return copy_with(
        read(path),
        lambda layer: isinstance(layer, SearchableLayer | Composite),
        _plain,
    )


def read(path: str) -> keras.Model:
    """Loads a model as it is in its file; see `load`."""
    try:
        return keras.models.load_model(path, compile=False)
    except TypeError as error:
        # Of pages, with every layer's configuration.
        missing = re.search(r"Could not locate \w+ '[^']+'", str(error))
        raise ValueError(
            "A model from a file must be made of Keras's layers, as a command "
            f"imports no code of yours. Received: {path}: "
            f"{missing[0] if missing else error}. Load it in Python, and use "
            "`fliqs.SearchModel` and `fliqs.export_tflite` there."
        ) from error


def check(model: keras.Model, image_shape: tuple, classes: int) -> None:
    """Raises unless a model takes images and tells classes apart.

    Args:
        model: Model from a file.
        image_shape: `(height, width, channels)` of the data set's images.
        classes: How many classes it has.

    Raises:
        ValueError: If shapes are others, or if it ends in sigmoids. What a
            model without a graph takes is not known before it is called.
    """
    graph = graph_of(model)
    if graph is None:
        return
    inputs = [tuple(tensor.shape[1:]) for tensor in graph.inputs]
    outputs = [tuple(tensor.shape[1:]) for tensor in graph.outputs]
    if (
        len(inputs) != 1
        or len(inputs[0]) != len(image_shape)
        or any(
            own not in (None, there)
            for own, there in zip(inputs[0], image_shape, strict=True)
        )
        or outputs != [(classes,)]
    ):
        raise ValueError(
            f"The model of `model_file` must take images of {image_shape} and "
            f"give one output of ({classes},), as the data set asks. Received: "
            f"inputs of {', '.join(map(str, inputs))}, outputs of "
            f"{', '.join(map(str, outputs))}. Choose another model, or another "
            "data set."
        )
    if output_activation(model) is keras.activations.sigmoid:
        raise ValueError(
            "The model of `model_file` must end in logits or in a softmax, as "
            "each image has one label. Received: one that ends in sigmoids, "
            "each a yes or no. Load it in Python, and compile a "
            "`fliqs.SearchModel` with its own loss there."
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
