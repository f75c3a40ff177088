"""From a Keras model to a LiteRT graph."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.slots import Slots

# Operators whose LiteRT kernel has TensorFlow's bits and XNNPACK's has not.
_DELEGATED_OTHERWISE = (Builtin.LOGISTIC, Builtin.TANH)
# XNNPACK, which runs float operators by default, takes at most six dimensions.
_UNDELEGATED_RANK = 7


def convert(
    model: keras.Model, slots: Slots, is_faithful: bool = False
) -> Graph:
    """Converts a model at inference to builtin LiteRT operators.

    Args:
        model: Functional or Sequential model that draws constants from
            `slots`.
        slots: Constants of the model that must survive the conversion.
        is_faithful: Whether sigmoid and tanh are to be kept from XNNPACK, so
            that they have TensorFlow's last bits.

    Returns:
        The graph, with the inputs and outputs of the model under their Keras
        names in the signature `serving_default`.

    Raises:
        ValueError: If LiteRT has no builtin operator for some layer.
    """
    inputs = list(model.inputs)

    def serve(*tensors):
        with slots.bound(tensors[len(inputs) :]):
            return call(model, tensors[: len(inputs)])

    specs = [tf.TensorSpec(x.shape, x.dtype, x.name) for x in inputs]
    function = tf.function(serve, autograph=False)
    concrete = function.get_concrete_function(*specs, *slots.specs())
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    try:
        content = converter.convert()
    except Exception as error:
        raise ValueError(
            "Every layer must convert to builtin LiteRT operators. Received: "
            f"model={model.name!r}, which the converter refused: {error} "
            "Replace the layer that the converter names."
        ) from error
    graph = Graph(content)
    values = slots.values()
    for tensor in graph.inputs:
        if graph.name(tensor) in values:
            graph.set_constant(tensor, values[graph.name(tensor)])
    graph.set_signature(
        dict(zip(input_names(model), graph.inputs, strict=True)),
        dict(zip(output_names(model), graph.outputs, strict=True)),
    )
    if is_faithful:
        graph.raise_rank(_DELEGATED_OTHERWISE, _UNDELEGATED_RANK)
    return graph


def input_names(model: keras.Model) -> list[str]:
    """Names of the inputs in the file, in the order of `model.inputs`."""
    return [tensor.name for tensor in model.inputs]


def output_names(model: keras.Model) -> list[str]:
    """Names of the outputs in the file, in the order of `model.outputs`."""
    names = getattr(model, "output_names", None)
    if names is None or len(set(names)) != len(model.outputs):
        return [f"output_{index}" for index in range(len(model.outputs))]
    return list(names)


def call(model: keras.Model, tensors: Sequence) -> list:
    """Calls a model at inference; flat lists in the order of its inputs."""
    inputs = keras.tree.pack_sequence_as(model.input, list(tensors))
    return keras.tree.flatten(model(inputs, training=False))
