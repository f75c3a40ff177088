"""What an output of a model has gone through last."""

from collections.abc import Callable

import keras

from fliqs_tf.layers.base import graph_of


def output_activation(model: keras.Model, number: int = 0) -> Callable | None:
    """The activation of the layer that makes an output of a model.

    Args:
        model: Built model of any kind.
        number: Which one of several outputs, in the order of
            `keras.tree.flatten`.

    Returns:
        A function such as `keras.activations.softmax`; `None` where that layer
        has none, or is not known, as in models without a graph.
    """
    if graph_of(model) is None:
        return None
    history = model.outputs[number]._keras_history
    layer = history.operation
    if isinstance(layer, keras.Model):
        return output_activation(layer, history.tensor_index)
    if isinstance(layer, keras.layers.Softmax):
        return keras.activations.softmax
    return getattr(layer, "activation", None)
