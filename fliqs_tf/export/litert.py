"""From a Keras model to a LiteRT graph."""

import re
from collections.abc import Sequence

import keras
import tensorflow as tf

from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.slots import Slots
from fliqs_tf.layers.base import walk

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
            f"{_refused(str(error), concrete.graph, model)}. Replace it, or "
            "leave it outside of the model."
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


def _refused(message, graph, model):
    kinds = sorted(set(re.findall(r"'tf\.(\w+)' op", message)))
    if not kinds:
        return message.splitlines()[0]
    return ", ".join(refused(kind, graph, model) for kind in kinds)


def refused(kind: str, graph: tf.Graph, model: keras.Model) -> str:
    """Names an operator, and the layers that use it.

    Args:
        kind: TensorFlow's name of the operator.
        graph: What was converted.
        model: Model that the graph is of.
    """
    names = {layer.name for _, layer in walk(model)}
    # A scope is a layer's name, with a number if it was entered before.
    scopes = [
        [name, re.sub(r"_\d+$", "", name)]
        for operator in graph.get_operations()
        if operator.type == kind
        for name in reversed(operator.name.split("/")[:-1])
    ]
    found = [repr(n) for both in scopes for n in both if n in names]
    # In the order of the model, each once.
    layers = ", ".join(dict.fromkeys(found))
    return f"tf.{kind} of layer {layers}" if layers else f"tf.{kind}"


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
