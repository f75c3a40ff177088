"""Where a file begins to differ from its reference.

Outputs of a layer have no counterpart in the file where batch norm is folded
in; inputs of a layer with weights always have one. So inputs are compared, in
the order in which the file runs, and the layers in front of the first one that
deviates are named.
"""

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from fliqs_tf.export import agreement
from fliqs_tf.export import litert
from fliqs_tf.export import twin
from fliqs_tf.export import weights
from fliqs_tf.export.agreement import Bounds
from fliqs_tf.export.graph import Graph
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
    expected = layer_inputs(reference, sample)
    graph = Graph(content)
    runner = Runner(content, keeps_tensors=True)
    runner(sample)
    readers = _readers(graph, paths)
    for operator, path in readers:
        tensor = weights.data_input(graph, operator)
        value = runner.tensor(tensor)
        call = expected.get(path, [])
        # A layer that is called twice has several; the nearest is the one.
        errors = [
            agreement.rms_error(value.reshape(x.shape), x)
            for x in call
            if x.size == value.size
        ]
        if errors and min(errors) > bounds.tolerance:
            before = _layer_before(graph, tensor, readers)
            source = f"layer {before!r}" if before else "the input"
            return (
                f"The first deviation is behind {source}: the inputs of layer "
                f"{path!r} have an RMS error of {min(errors):.3g}."
            )
    if not readers:
        return "No layer's weights were found in the file."
    return (
        "The inputs of all quantized layers agree; the deviation is behind "
        f"layer {readers[-1][1]!r}."
    )


def _readers(graph, paths):
    """`(operator, path)` of quantized layers, in the order of the file."""
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
    producers = {int(o.outputs[0]): o for o in graph.operators}
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


def layer_inputs(
    model: keras.Model, arrays: Sequence[np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """Path -> inputs of the calls of each quantized layer."""
    found: dict[str, list[np.ndarray]] = {}
    with contextlib.ExitStack() as stack:
        for path, layer in twin.fixed_layers(model).items():
            stack.enter_context(_recorded(layer, found.setdefault(path, [])))
        litert.call(model, [tf.convert_to_tensor(array) for array in arrays])
    return found


@contextlib.contextmanager
def _recorded(layer, calls: list) -> Iterator[None]:
    call = layer.call

    def recording(inputs, *args, **kwargs):
        calls.append(np.asarray(inputs))
        return call(inputs, *args, **kwargs)

    # Keras looks `call` up on the object, tracking apart.
    object.__setattr__(layer, "call", recording)
    try:
        yield
    finally:
        object.__delattr__(layer, "call")
