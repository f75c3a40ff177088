"""Ranges of the tensors of a file: learned in training, or measured.

A range learned for the inputs of a layer belongs to the tensor that its
operator reads, and to the tensors from which that one is only moved about.
Others (sums of residual branches, pooled maps, outputs) have none and are
measured: the largest magnitude over some samples.
"""

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
_MOVING = (
    Builtin.RESHAPE,
    Builtin.TRANSPOSE,
    Builtin.MAX_POOL_2D,
    Builtin.SQUEEZE,
    Builtin.EXPAND_DIMS,
)


def learned_ranges(
    graph: Graph, matches: Sequence[Match], learned: Mapping[str, float]
) -> dict[int, float]:
    """Tensor number -> largest magnitude that training found.

    Args:
        graph: The file.
        matches: Operators of quantized layers.
        learned: Path of a layer -> running range of its inputs.
    """
    found: dict[int, float] = {}
    for match in matches:
        if match.kernel.path in learned:
            tensor = weights.data_input(graph, match.operator)
            # Layers that read one tensor have learned the same; if trained
            # apart, the wider range clips for neither.
            found[tensor] = max(
                found.get(tensor, 0.0), learned[match.kernel.path]
            )
    for operator in reversed(graph.operators):
        source, target = int(operator.inputs[0]), int(operator.outputs[0])
        if graph.builtin(operator) in _MOVING and target in found:
            found.setdefault(source, found[target])
    return found


def measured_ranges(
    graph: Graph, content: bytes, samples: Iterable[list[np.ndarray]]
) -> dict[int, float]:
    """Tensor number -> largest magnitude of the computed float32 tensors.

    Args:
        graph: The file, parsed.
        content: The file.
        samples: Batches of inputs, of which the first `CALIBRATION_SAMPLES`
            samples are used.
    """
    numbers = {int(number) for number in graph.inputs}
    for operator in graph.operators:
        numbers.update(int(number) for number in operator.outputs)
    numbers = {
        number
        for number in numbers
        if graph.tensors[number].type == TensorType.FLOAT32
    }
    runner = Runner(content, keeps_tensors=True)
    found = dict.fromkeys(numbers, 0.0)
    seen = 0
    for arrays in samples:
        for index in range(len(arrays[0])):
            if seen == CALIBRATION_SAMPLES:
                return found
            runner([array[index : index + 1] for array in arrays])
            seen += 1
            for number in numbers:
                value = np.abs(runner.tensor(number)).max(initial=0.0)
                found[number] = max(found[number], float(value))
    return found
