"""Weights in the file: small containers, and where they go.

The converter writes kernels as float32 constants, with batch norm folded in:
every output channel `c` of the effective kernel is multiplied by some number.
Since the codes are known, that number is found again by division, and the
codes are stored with it, never rounded a second time:

    constant[c] = codes[c] * factor[c],    factor of either sign or zero

Kernels are recognised by this equation, not by name: names in a converted file
are not unique, and a kernel that does not satisfy it must not be replaced.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from fliqs_tf.export.containers import ContainerWriter
from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.formats import Format

# Operator -> (number of its input with the weights, with what they multiply).
_OPERATORS = {
    Builtin.BATCH_MATMUL: (1, 0),
    Builtin.CONV_2D: (1, 0),
    Builtin.CONV_3D: (1, 0),
    # The first input is the shape of the output.
    Builtin.CONV_3D_TRANSPOSE: (1, 2),
    Builtin.DEPTHWISE_CONV_2D: (1, 0),
    Builtin.FULLY_CONNECTED: (1, 0),
    # A table of embeddings, and the rows to look up.
    Builtin.GATHER: (0, 1),
    Builtin.TRANSPOSE_CONV: (1, 2),
}
# A product of three float32 factors is off by at most 3 half units.
_TOLERANCE = 1e-6
# Where the weights' output channels are, those that make the last axis of the
# output.
_CHANNEL_AXES = {
    Builtin.CONV_2D: 0,
    Builtin.DEPTHWISE_CONV_2D: 3,
    Builtin.FULLY_CONNECTED: 0,
}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What is known about the weights of a layer.

    Args:
        path: Path of the layer.
        fmt: Format of the codes.
        codes: float32 codes of the kernel's shape, in normalised units.
        inputs: Name of the tensor that it multiplies, of several.
    """

    path: str
    fmt: Format
    codes: np.ndarray
    inputs: str | None = None


def tensor_name(path: str) -> str:
    """Name in the file of the tensor that holds a layer's weights."""
    return f"{path}/kernel"


def stored_tensors(graph: Graph, path: str) -> list[int]:
    """Numbers of the tensors that hold a layer's weights in a file."""
    name = re.compile(re.escape(tensor_name(path)) + r"(#\d+)?")
    return [
        number
        for number in range(len(graph.tensors))
        if name.fullmatch(graph.name(number))
    ]


@dataclasses.dataclass(frozen=True)
class Match:
    """An operator that has the weights of a known kernel.

    Args:
        operator: The operator, an object of the graph.
        constant: Number of the float32 constant with its weights.
        kernel: The kernel.
        codes: Codes in the layout of the constant.
        axis: Axis of the codes that the scale belongs to.
        scale: float32 array `(codes.shape[axis],)`; the constant is `codes *
            scale`. Positive, and 1 for channels of zeros, but for codebooks.
    """

    operator: Any
    constant: int
    kernel: Kernel
    codes: np.ndarray
    axis: int
    scale: np.ndarray

    @property
    def is_zero(self) -> np.ndarray:
        """Which channels hold nothing but zeros."""
        axes = tuple(i for i in range(self.codes.ndim) if i != self.axis)
        return ~np.any(self.codes, axis=axes)


def kernel_input(graph: Graph, operator) -> int | None:
    """Which input of an operator holds weights, `None` if none can."""
    found = _OPERATORS.get(graph.builtin(operator))
    return None if found is None else found[0]


def data_input(graph: Graph, operator) -> int:
    """Number of the tensor that an operator multiplies its weights with."""
    return int(operator.inputs[_OPERATORS[graph.builtin(operator)][1]])


def reader(graph: Graph, tensor: int) -> Any:
    """The operator that multiplies by a stored tensor, once it is decoded.

    Returns:
        An object of the graph; `None` if nothing of the kind reads it.
    """
    decoded = {tensor}
    for operator in graph.operators:
        inputs = [int(number) for number in operator.inputs]
        place = kernel_input(graph, operator)
        if place is not None and inputs[place] in decoded:
            return operator
        # A graph's operators stand in the order in which they run.
        if decoded.intersection(inputs):
            decoded.update(int(number) for number in operator.outputs)
    return None


def find(graph: Graph, kernels: Sequence[Kernel]) -> list[Match]:
    """Recognises kernels; an operator without one has no entry."""
    found: list[Match] = []
    for operator in graph.operators:
        place = kernel_input(graph, operator)
        if place is None:
            continue
        tensor = int(operator.inputs[place])
        constant = graph.constant(tensor)
        if constant is None:
            continue
        names = f"{graph.name(tensor)};{graph.name(operator.outputs[0])}"
        builtin = graph.builtin(operator)
        candidates = functools.partial(
            layouts, shape=constant.shape, builtin=builtin
        )
        match = recognise(constant, candidates, kernels, names, found)
        if match is not None:
            kernel, codes, axis, factor = match
            scale = factor
            # A codebook may lack the negative of a value, and zero.
            if not kernel.fmt.codebook:
                codes, scale = positive(codes, axis, factor)
            found.append(Match(operator, tensor, kernel, codes, axis, scale))
    return found


def store(
    graph: Graph, kernels: Sequence[Kernel], containers: str = "small"
) -> None:
    """Replaces the float32 constants of known kernels by containers.

    Kernels without a match are left as they are; reading the file back shows
    them missing.

    Args:
        graph: The file.
        kernels: What is known about the model's weights.
        containers: Kind of containers, see `ContainerWriter`.
    """
    writer = ContainerWriter(graph, containers)
    written: dict[tuple, tuple[int, np.ndarray | None]] = {}
    for match in find(graph, kernels):
        scales_output = graph.has_constant_bias(match.operator) and (
            match.axis == _CHANNEL_AXES.get(graph.builtin(match.operator))
        )
        key = (match.kernel.path, match.constant, scales_output)
        if key not in written:
            written[key] = writer.write(
                unused_name(graph, match.kernel.path),
                match.constant,
                match.kernel.fmt,
                match.codes,
                match.axis,
                match.scale,
                scales_output,
            )
        tensor, scale = written[key]
        place = kernel_input(graph, match.operator)
        match.operator.inputs[place] = tensor
        if scale is not None:
            name = f"{graph.name(int(match.operator.outputs[0]))}/scale"
            graph.scale_output(match.operator, scale, name)


def unused_name(graph: Graph, path: str) -> str:
    """A layer used twice, between different norms, is stored twice."""
    uses = len(stored_tensors(graph, path))
    return f"{tensor_name(path)}#{uses + 1}" if uses else tensor_name(path)


def positive(
    codes: np.ndarray, axis: int, factor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Moves the factors' signs into the codes: a scale is positive."""
    shape = [1] * codes.ndim
    shape[axis] = -1
    codes = codes * np.sign(factor).reshape(shape)
    # A channel of zeros has no scale, and zero is none.
    return codes, np.where(factor == 0, np.float32(1), np.abs(factor))


def recognise(
    constant: np.ndarray,
    layouts: Callable[[np.ndarray], Iterable[tuple[np.ndarray, int]]],
    kernels: Sequence[Kernel],
    names: str,
    found: Sequence[Any],
) -> tuple[Kernel, np.ndarray, int, np.ndarray] | None:
    """Finds the kernel that a constant holds.

    Names and what has been found already decide only between kernels that are
    equal, zero for instance.

    Args:
        constant: Weights of an operator.
        layouts: Codes of a kernel -> pairs of codes, laid out as the operator
            may have them, and the axis of output channels.
        kernels: What is known about the model's weights.
        names: Names around the operator.
        found: What was recognised so far, with an attribute `kernel`.

    Returns:
        `(kernel, codes in the constant's layout, axis, factor)`, or `None`.
    """

    def rank(kernel):
        layer = re.escape(kernel.path.rsplit("/")[-1])
        # In a converted file a scope may have got a number.
        is_named = re.search(rf"(^|[/;]){layer}(_\d+)?([/;]|$)", names)
        return not is_named, any(match.kernel is kernel for match in found)

    for kernel in sorted(kernels, key=rank):
        for codes, axis in layouts(kernel.codes):
            factor = _factor(constant, codes, axis)
            if factor is not None:
                return kernel, codes, axis, factor
    return None


def layouts(
    codes: np.ndarray, shape: tuple[int, ...], builtin: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields codes laid out as LiteRT may, and the axis of output channels."""
    candidates = []
    if codes.ndim == 2:
        candidates = [(codes.T, 0), (codes, 1)]
    elif codes.ndim == 3:
        candidates = _layouts_in_time(codes, shape, builtin)
    elif builtin == Builtin.DEPTHWISE_CONV_2D:
        candidates = [(codes.reshape(1, *codes.shape[:2], -1), 3)]
    elif builtin == Builtin.TRANSPOSE_CONV:
        candidates = [(codes.transpose(2, 0, 1, 3), 0)]
    elif codes.ndim == 4:
        candidates = [(codes.transpose(3, 0, 1, 2), 0)]
    elif codes.ndim == 5:
        is_transposed = builtin == Builtin.CONV_3D_TRANSPOSE
        candidates = [(codes, 3 if is_transposed else 4)]
    for candidate, axis in candidates:
        if candidate.shape == shape:
            yield candidate, axis


def _layouts_in_time(codes, shape, builtin):
    """Convolutions along time are over images of height 1."""
    if builtin == Builtin.DEPTHWISE_CONV_2D:
        return [(codes.reshape(1, 1, len(codes), -1), 3)]
    if builtin == Builtin.TRANSPOSE_CONV:
        return [(codes.transpose(1, 0, 2)[:, None], 0)]
    if len(shape) != 2:
        return [(codes.transpose(2, 0, 1)[:, None], 0)]
    # Heads are columns of a product, or its rows where they are joined.
    first, _, last = codes.shape
    matrices = [codes.reshape(first, -1), codes.reshape(-1, last)]
    return [(matrix.T, 0) for matrix in matrices] + [
        (matrix, 1) for matrix in matrices
    ]


def _factor(constant, codes, axis):
    """Factor of each channel, or `None` if `constant` is something else."""
    constant = np.moveaxis(constant, axis, 0).reshape(constant.shape[axis], -1)
    codes = np.moveaxis(codes, axis, 0).reshape(constant.shape)
    # One element tells most strangers apart, before the whole is multiplied.
    largest = np.abs(codes).argmax(axis=1)[:, None]
    top = np.take_along_axis(codes, largest, 1)[:, 0]
    value = np.take_along_axis(constant, largest, 1)[:, 0]
    factor = np.divide(value, top, out=np.zeros_like(top), where=top != 0)
    error = np.abs(constant - codes * factor[:, None])
    if np.all(error <= _TOLERANCE * np.abs(value)[:, None]):
        return factor
    return None
