"""Peak activation memory: which tensors live at once, and how wide they are.

A model runs layer after layer, in the order of its graph. A tensor lives from
the operation that writes it to the last one that reads it, so that

    memory = max over operations of
             sum over tensors that live then of elements * bits / 8

bytes for one sample; weights are `size`, not memory. What is approximated:

- A tensor is stored once, at the width in which kernel layers read it, the
  widest if several do: quantizing a tensor when it is written gives the layers
  the same numbers as quantizing it when it is read. (A shortcut that is added
  later has that width too, though training adds it unrounded.) Operations
  without a kernel (activation, norm, pooling, padding, flattening) keep the
  width, so a tensor that only they read has the width of what they pass on,
  through sums and concatenations if need be. A tensor that no kernel layer
  ever sees (the logits), and one that an unquantized layer reads, is float32;
  indices are int32, which is as wide.
- What goes into a layer made of layers counts as read by each of these but
  those of attention that come after its projections. If a block of one's own
  has layers that read only what others in it compute, that is too much.
- An operation without a kernel whose result has the size of an input that
  nothing needs any more writes in place: norm and activation are free, and so
  is the sum at the end of a residual block. Merged tensors are copied.
- Work space of kernels (im2col, 32-bit accumulators) and what a layer made of
  layers keeps between them are not counted.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras

from fliqs_tf.layers.base import graph_of
from fliqs_tf.layers.base import looks_up
from fliqs_tf.layers.base import searchable_layers
from fliqs_tf.layers.children import ATTENTION
from fliqs_tf.layers.children import children

# Layers of attention that read what its other layers compute.
_LATER = ("scores", "weighted_sum", "output")
# What the runtime takes as indices.
_INDEX_TYPES = ("int32", "int64")


@dataclasses.dataclass(frozen=True)
class LiveTensor:
    """A tensor of one sample, or several with the same readers.

    Args:
        elements: Their elements.
        readers: Paths of the layers whose input format decides its width, in
            ascending order; empty for 32 bits.
    """

    elements: int
    readers: tuple[str, ...]


@dataclasses.dataclass
class _Value:
    """A tensor while the graph is followed."""

    elements: int
    readers: set[str | None]
    # Values that operations without a kernel make of it alone, and with others.
    passed_on: list[int] = dataclasses.field(default_factory=list)
    merged: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Step:
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    has_kernel: bool


def live_tensors(model: keras.Model) -> list[tuple[LiveTensor, ...]]:
    """Lists the sets of tensors that live at the same time.

    Args:
        model: Functional or Sequential model, plain, searchable or fixed.

    Returns:
        One tuple an operation, without those that another exceeds.

    Raises:
        ValueError: If the size of a tensor is not known.
    """
    values, steps, outputs = _trace(model)
    buffers = _buffers(values, steps, outputs)
    last_read = {buffers[v]: len(steps) for v in outputs}
    for index in reversed(range(len(steps))):
        for value in steps[index].inputs:
            last_read.setdefault(buffers[value], index)
    computed = {v for step in steps for v in step.outputs}
    # Buffer -> the value in it: what is computed in place takes it over.
    live = {buffers[v]: v for v in range(len(values)) if v not in computed}
    found = []
    for index, step in enumerate(steps):
        live |= {buffers[v]: v for v in step.outputs}
        found.append(frozenset(live.values()))
        live = {b: v for b, v in live.items() if last_read.get(b, -1) > index}
    return _largest([_sums(values, step) for step in found])


def _sums(values, step) -> dict[tuple[str, ...], int]:
    """Readers -> elements of what lives at once."""
    sums: dict[tuple[str, ...], int] = {}
    for value in step:
        readers = _width_of(values, value)
        named = sorted(path for path in readers if path is not None)
        key = () if None in readers else tuple(named)
        sums[key] = sums.get(key, 0) + values[value].elements
    return sums


def _largest(steps) -> list[tuple[LiveTensor, ...]]:
    """Leaves out what another step exceeds at any widths."""

    def exceeds(step, other):
        return all(step.get(key, 0) >= other[key] for key in other)

    kept: list[dict] = []
    for step in steps:
        if not any(exceeds(other, step) for other in kept):
            kept = [other for other in kept if not exceeds(step, other)]
            kept.append(step)
    return [
        tuple(LiveTensor(step[key], key) for key in sorted(step))
        for step in kept
    ]


def _trace(model):
    """Follows the graph: values, steps in order, the model's outputs."""
    paths = {id(la): path for path, la in searchable_layers(model).items()}
    values: list[_Value] = []
    steps: list[_Step] = []

    def new(tensor):
        if None in tensor.shape[1:]:
            raise ValueError(
                "Memory needs tensors of known size. Received: "
                f"{tensor.name!r} of shape {tensor.shape}. Build the model "
                "with a fixed input shape."
            )
        readers: set[str | None] = set()
        if tensor.dtype in _INDEX_TYPES:
            readers.add(None)
        values.append(_Value(math.prod(tensor.shape[1:]), readers))
        return len(values) - 1

    def run(graph, known):
        for node in _nodes(graph):
            operation = node.operation
            inputs = tuple(known[id(x)] for x in node.input_tensors)
            inner = (
                graph_of(operation)
                if isinstance(operation, keras.Model)
                else None
            )
            if inner is not None:
                own = dict(zip(map(id, inner.inputs), inputs, strict=True))
                run(inner, own)
                for x, y in zip(node.outputs, inner.outputs, strict=True):
                    known[id(x)] = own[id(y)]
                continue
            outputs = tuple(map(new, node.outputs))
            known.update(zip(map(id, node.outputs), outputs, strict=True))
            readers = _readers(operation, paths)
            for value in set(inputs):
                values[value].readers |= readers
                if not readers:
                    distinct = len(set(inputs))
                    followed = values[value].passed_on
                    if distinct > 1:
                        followed = values[value].merged
                    followed.extend(outputs)
            steps.append(_Step(inputs, outputs, bool(readers)))

    graph = graph_of(model)
    if graph is None:
        raise ValueError(
            "Which tensors are alive together is known of Functional and "
            f"Sequential models. Received: {type(model).__name__}. Wrap it: "
            "`keras.Model(inputs, model(inputs))`."
        )
    known = {id(x): new(x) for x in graph.inputs}
    run(graph, known)
    return values, steps, [known[id(x)] for x in graph.outputs]


def _nodes(graph) -> Iterator[Any]:
    """Nodes of a graph that compute something, in the order of execution."""
    by_depth = graph._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if not node.is_input:
                yield node


def _readers(operation, paths) -> set[str | None]:
    """Who reads the inputs of an operation at a width of its own.

    `None` stands for 32 bits: a kernel that is not searched reads float32, and
    a table indices.
    """
    if not isinstance(operation, keras.layers.Layer):
        return set()
    inside = [operation, *operation._flatten_layers()]
    later = {
        id(layer)
        for attention in inside
        if isinstance(attention, ATTENTION)
        for name, layer in children(attention)
        if name in _LATER
    }
    found: set[str | None] = {
        paths[id(layer)]
        for layer in inside
        if id(layer) in paths and id(layer) not in later and not looks_up(layer)
    }
    if not found and any(len(w.shape) > 1 for w in operation.weights):
        found.add(None)
    return found


def _buffers(values, steps, outputs) -> list[int]:
    """Number of the buffer of each value; in-place results share one."""
    last_read = {value: len(steps) for value in outputs}
    for index in reversed(range(len(steps))):
        for value in steps[index].inputs:
            last_read.setdefault(value, index)
    buffers = list(range(len(values)))
    for index, step in enumerate(steps):
        if step.has_kernel or len(step.outputs) != 1:
            continue
        (output,) = step.outputs
        for value in step.inputs:
            # Who else holds the buffer has been read before `value` was made.
            if (
                last_read[value] == index
                and values[value].elements == values[output].elements
            ):
                buffers[output] = buffers[value]
                break
    return buffers


def _width_of(values, value) -> set[str | None]:
    """Readers of a value: its own, else those of what is made of it."""
    start = values[value]
    found = set(start.readers)
    for follower in start.passed_on:
        found |= _width_of(values, follower)
    if not found:
        for follower in start.merged:
            found |= _width_of(values, follower)
    return found


def widest_choices(
    tensors: tuple[LiveTensor, ...],
) -> Iterator[list[tuple[int, str | None]]]:
    """Says which reader may be the widest of each tensor.

    The widest of several is a maximum, and so is the memory: it is the largest
    over all ways to name one reader a tensor.

    Args:
        tensors: Tensors that live at once, with different readers.

    Yields:
        `(elements, reader)` of each tensor, `None` for 32 bits.
    """
    readers = [tensor.readers or (None,) for tensor in tensors]
    for chosen in itertools.product(*readers):
        yield [
            (tensor.elements, reader)
            for tensor, reader in zip(tensors, chosen, strict=True)
        ]
