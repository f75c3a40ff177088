"""Ranges of the tensors of a file: learned in training, or measured.

A range learned for the inputs of a layer belongs to the tensor that its
operator reads, and to the tensors from which that one is only moved about.
Others (sums of residual branches, pooled maps, outputs) have none and are
measured: the smallest and the largest value over some samples.

Ranges are pairs `(low, high)` with `low <= 0 <= high`; `low == -high` stands
for a symmetric grid.
"""

import dataclasses
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np

from fliqs_tf.export import weights
from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.graph import TensorType
from fliqs_tf.export.runner import Runner
from fliqs_tf.export.weights import Match

CALIBRATION_SAMPLES = 64

# Their outputs hold nothing but values of their first input.
MOVING = (
    Builtin.RESHAPE,
    Builtin.TRANSPOSE,
    Builtin.MAX_POOL_2D,
    Builtin.SQUEEZE,
    Builtin.EXPAND_DIMS,
)
# The runtime fixes the scales of these: steps of 1/256 and of 1/128.
_FIXED = {
    Builtin.LOGISTIC: (0.0, 255 / 256),
    Builtin.TANH: (-127 / 128, 127 / 128),
}

Range = tuple[float, float]
# Float rounding of two programs, relative to the spread of the values.
_ALIKE = 1e-3
# Of a tensor in which nothing but zeros was seen.
_ANY = (-1.0, 1.0)


def learned_ranges(
    graph: Graph,
    matches: Sequence[Match],
    learned: Mapping[tuple[str, str | None], Range],
    scalings: Mapping[int, "Scaling | None"],
) -> dict[int, Range]:
    """Tensor number -> range that training found.

    One of nothing but zeros, behind a dead ReLU say, is no range, and none is
    found for its tensor.

    Args:
        graph: The file.
        matches: Operators of quantized layers.
        learned: Path of a layer, and name of one of the tensors that it
            multiplies -> running range.
        scalings: What `scalings_of` returns.
    """
    found: dict[int, Range] = {}
    for match in matches:
        key = match.kernel.path, match.kernel.inputs
        if key in learned:
            tensor = weights.data_input(graph, match.operator)
            # Layers that read one tensor have learned the same; if trained
            # apart, the wider range clips for neither.
            scaling = scalings.get(tensor, Scaling())
            if scaling is not None and any(learned[key]):
                limits = scaling(learned[key])
                found[tensor] = _union(found.get(tensor, (0.0, 0.0)), limits)
    for operator in reversed(graph.operators):
        if graph.builtin(operator) in MOVING:
            source, target = int(operator.inputs[0]), int(operator.outputs[0])
            if target in found:
                found.setdefault(source, found[target])
    return found


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Values of a file's tensor from those of the layer's input."""

    factor: float = 1.0
    offset: float = 0.0

    def __call__(self, limits: Range) -> Range:
        low, high = sorted(self.factor * end + self.offset for end in limits)
        return _union((0.0, 0.0), (low, high))


def scalings_of(
    graph: Graph,
    content: bytes,
    matches: Sequence[Match],
    inputs: Mapping[str, Sequence[np.ndarray]],
    sample: list[np.ndarray],
) -> dict[int, Scaling | None]:
    """How tensors that operators read differ from what their layers get.

    A converter folds a scaling in front of a layer into its weights (`x / 255`
    before a convolution): the operator then reads another tensor than the
    layer, and the range that was learned has to follow.

    Args:
        graph: The file, parsed; with weights quantized, and nothing else.
        content: The file.
        matches: Operators of quantized layers.
        inputs: Path -> inputs of the calls of each layer of a model with the
            same arithmetic, for `sample`.
        sample: Inputs of the file, a batch of one.

    Returns:
        Tensor -> its scaling, `None` if it is none. Tensors that cannot be
        compared are left out: those of layers that are called several times,
        or of other sizes than their layer's input.
    """
    runner = Runner(content, keeps_tensors=True)
    runner(sample)
    found: dict[int, Scaling | None] = {}
    for match in matches:
        calls = inputs.get(match.kernel.path, ())
        tensor = weights.data_input(graph, match.operator)
        if len(calls) == 1 and graph.tensors[tensor].type == TensorType.FLOAT32:
            # Sorted, as the two may be laid out in other ways.
            read = np.sort(runner.tensor(tensor), axis=None)
            given = np.sort(calls[0], axis=None)
            # Booleans have no differences.
            given = given.astype(np.result_type(given, np.float32))
            if read.size == given.size and given[0] < given[-1]:
                found[tensor] = _fit(given, read)
    return found


def _fit(given, read) -> Scaling | None:
    for ends in ((read[0], read[-1]), (read[-1], read[0])):
        factor = (ends[1] - ends[0]) / (given[-1] - given[0])
        offset = ends[0] - factor * given[0]
        fitted = np.sort(factor * given + offset)
        spread = float(read[-1] - read[0])
        if np.allclose(fitted, read, rtol=0.0, atol=_ALIKE * spread):
            # To the very grid of training where nothing was folded.
            if abs(factor - 1.0) < _ALIKE and abs(offset) < _ALIKE * spread:
                return Scaling()
            return Scaling(float(factor), float(offset))
    return None


def measured_ranges(
    graph: Graph,
    content: bytes,
    samples: Iterable[list[np.ndarray]],
    is_symmetric: bool,
) -> dict[int, Range]:
    """Tensor number -> range of the computed float32 tensors.

    Args:
        graph: The file, parsed.
        content: The file.
        samples: Batches of inputs, of which the first `CALIBRATION_SAMPLES`
            samples are used.
        is_symmetric: Whether to widen every range to a symmetric one.
    """
    numbers = {int(number) for number in graph.inputs}
    fixed: dict[int, Range] = {}
    for operator in graph.operators:
        outputs = [int(number) for number in operator.outputs]
        numbers.update(outputs)
        if graph.builtin(operator) in _FIXED:
            fixed[outputs[0]] = _FIXED[graph.builtin(operator)]
    numbers = {
        number
        for number in numbers
        if graph.tensors[number].type == TensorType.FLOAT32
    }
    runner = Runner(content, keeps_tensors=True)
    found = dict.fromkeys(numbers, (0.0, 0.0))
    for sample in _single(samples, CALIBRATION_SAMPLES):
        runner(sample)
        for number in numbers:
            value = runner.tensor(number)
            limits = (
                float(value.min(initial=0.0)),
                float(value.max(initial=0.0)),
            )
            found[number] = _union(found[number], limits)
    # The state before the first step, say: a scale of nothing is no scale that
    # kernels take.
    found = {
        number: limits if any(limits) else _ANY
        for number, limits in found.items()
    }
    if is_symmetric:
        return {
            number: (-max(-low, high), max(-low, high))
            for number, (low, high) in found.items()
        }
    return found | fixed


def _single(samples, count):
    """Yields the first samples, one at a time."""
    for arrays in samples:
        for index in range(min(count, len(arrays[0]))):
            yield [array[index : index + 1] for array in arrays]
        count -= len(arrays[0])


def _union(one: Range, other: Range) -> Range:
    return min(one[0], other[0]), max(one[1], other[1])
