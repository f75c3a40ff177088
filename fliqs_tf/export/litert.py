"""From a Keras model to a LiteRT graph."""

import re
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
    model: keras.Model,
    slots: Slots,
    named_after: keras.Model,
    is_faithful: bool = False,
) -> Graph:
    """Converts a model at inference to builtin LiteRT operators.

    Args:
        model: Functional or Sequential model that draws constants from
            `slots`.
        slots: Constants of the model that must survive the conversion.
        named_after: Model whose names the inputs and outputs get.
        is_faithful: Whether sigmoid and tanh are to be kept from XNNPACK, so
            that they have TensorFlow's last bits.

    Returns:
        The graph, with its inputs and outputs in the signature
        `serving_default`.

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
            f"model={model.name!r}, in which the converter refused "
            f"{_refused(str(error))}. Replace the layer that uses it."
        ) from error
    graph = Graph(content)
    values = slots.values()
    for tensor in graph.inputs:
        if graph.name(tensor) in values:
            graph.set_constant(tensor, values[graph.name(tensor)])
    graph.set_signature(
        dict(zip(input_names(named_after), graph.inputs, strict=True)),
        dict(zip(output_names(named_after), graph.outputs, strict=True)),
    )
    if is_faithful:
        graph.raise_rank(_DELEGATED_OTHERWISE, _UNDELEGATED_RANK)
    return graph


def _refused(message):
    operators = sorted(set(re.findall(r"'(tf\.\w+)' op", message)))
    return ", ".join(operators) or message.splitlines()[0]


def input_names(model: keras.Model) -> list[str]:
    """Names of the inputs in the file, in the order of `model.inputs`.

    Keys where the model takes a dictionary, else the names of the tensors.
    """
    return _names(model.input, [tensor.name for tensor in model.inputs])


def output_names(model: keras.Model) -> list[str]:
    """Names of the outputs, as `input_names`; else those of the layers."""
    return _names(model.output, model.output_names)


def _names(structure, otherwise):
    paths = [path for path, _ in keras.tree.flatten_with_path(structure)]
    keys = ["/".join(map(str, path)) for path in paths]
    if all(path and isinstance(path[0], str) for path in paths):
        return keys
    if len(set(otherwise)) == len(keys):
        return list(otherwise)
    return [f"output_{index}" for index in range(len(keys))]


def call(model: keras.Model, tensors: Sequence) -> list:
    """Calls a model at inference; flat lists in the order of its inputs."""
    inputs = keras.tree.pack_sequence_as(model.input, list(tensors))
    return keras.tree.flatten(model(inputs, training=False))
