"""What a model's output has gone through last."""

from collections.abc import Callable

import keras

from fliqs_tf.layers.base import graph_of


def output_activation(model: keras.Model) -> Callable | None:
    """The activation of the layer that makes a model's output.

    Args:
        model: Built model of any kind.

    Returns:
        A function such as `keras.activations.softmax`; `None` where that layer
        has none, or is not known: of models without a graph, or with several
        outputs.
    """
    if graph_of(model) is None or len(model.outputs) != 1:
        return None
    layer = model.outputs[0]._keras_history.operation
    if isinstance(layer, keras.Model):
        return output_activation(layer)
    if isinstance(layer, keras.layers.Softmax):
        return keras.activations.softmax
    return getattr(layer, "activation", None)
