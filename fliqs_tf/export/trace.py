"""Where a file begins to differ from its reference.

Outputs of a layer have no counterpart in the file where batch norm is folded
in; inputs of a layer with weights always have one. So inputs are compared, in
the order in which the file runs, and the layers in front of the first one that
deviates are named.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from fliqs_tf.export import output_errors
from fliqs_tf.export import weights
from fliqs_tf.export.agreement import Bounds
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.layer_inputs import inputs_of_layers
from fliqs_tf.export.runner import Runner


def first_deviation(
    content: bytes,
    reference: keras.Model,
    arrays: Sequence[np.ndarray],
    paths: Sequence[str],
    bounds: Bounds,
) -> str:
    """A sentence that names the first layer whose output deviates.

    Args:
        content: The file.
        reference: What it is to compute.
        arrays: A batch, of which the first sample is run.
        paths: Quantized layers.
        bounds: How large an RMS error counts.
    """
    sample = [array[:1] for array in arrays]
    expected = inputs_of_layers(reference, sample)
    graph = Graph(content)
    runner = Runner(content, keeps_tensors=True)
    runner(sample)
    found = readers(graph, paths)
    for operator, path in found:
        tensor = weights.data_input(graph, operator)
        value = runner.tensor(tensor)
        call = expected.get(path, [])
        # A layer that is called twice has several; the nearest is the one.
        errors = [
            output_errors.rms_error(value.reshape(x.shape), x)
            for x in call
            if x.size == value.size
        ]
        if errors and min(errors) > bounds.tolerance:
            before = _layer_before(graph, tensor, found)
            source = f"layer {before!r}" if before else "the input"
            return (
                f"The first deviation is behind {source}: the inputs of layer "
                f"{path!r} have an RMS error of {min(errors):.3g}."
            )
    if not found:
        return "No layer's weights were found in the file."
    return (
        "The inputs of all quantized layers agree; the deviation is behind "
        f"layer {found[-1][1]!r}."
    )


def readers(graph: Graph, paths: Sequence[str]) -> list[tuple[Any, str]]:
    """`(operator, path)` of quantized layers, in the order of the file.

    Args:
        graph: The file.
        paths: Quantized layers.
    """
    found = {}
    for path in paths:
        for tensor in weights.stored_tensors(graph, path):
            operator = weights.reader(graph, tensor)
            if operator is not None:
                found[id(operator)] = path
    return [
        (operator, found[id(operator)])
        for operator in graph.operators
        if id(operator) in found
    ]


def _layer_before(graph, tensor, readers) -> str:
    """The last of the nearest quantized layers that a tensor depends on.

    Where branches meet, the earlier ones are read by layers that agreed.
    """
    producers = graph.producers
    order = {id(operator): index for index, (operator, _) in enumerate(readers)}
    pending, seen, found = [tensor], set(), -1
    while pending:
        operator = producers.get(pending.pop())
        if operator is None or id(operator) in seen:
            continue
        seen.add(id(operator))
        if id(operator) in order:
            found = max(found, order[id(operator)])
        else:
            pending += [int(number) for number in operator.inputs]
    return readers[found][1] if found >= 0 else ""
