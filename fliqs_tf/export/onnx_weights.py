"""Weights in an ONNX file: the types that hold them, and where they stand.

As in a `.tflite` file (see `weights.py`) the kernels are recognised by their
values, with batch norm folded in, and their codes are stored as they are:

- integers, and formats whose values are multiples of one step: INT4 up to 7
  steps, INT8 up to 127, INT16 up to 32767; DequantizeLinear;
- float formats of 8 bits whose codes are values of FLOAT8E4M3FN or
  FLOAT8E5M2, up to a power of two: that type; DequantizeLinear;
- others: FLOAT16 or BFLOAT16 where exact; Cast, and Mul by the scale;
- the rest: FLOAT.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from fliqs_tf.export import rounding
from fliqs_tf.export import weights
from fliqs_tf.export.onnx_graph import OnnxGraph
from fliqs_tf.export.onnx_graph import numpy_type
from fliqs_tf.export.onnx_graph import type_number
from fliqs_tf.export.weights import Kernel

# Largest number of steps -> (type, first set of operators that has it in
# DequantizeLinear).
_INTEGER_TYPES = {7: ("INT4", 21), 127: ("INT8", 13), 32767: ("INT16", 21)}
# Type -> power of two that normalised codes are multiplied by.
_FLOAT8_TYPES = {"FLOAT8E4M3FN": 8, "FLOAT8E5M2": 15}
_FLOAT8_OPSET = 19
_WIDE_FLOATS = ("e5m2", "e5m2_ocp", "mxfp8_e5m2")
_HALF_TYPES = ("FLOAT16", "BFLOAT16")
_HALF_OPSET = 13
# Operator -> number of the input that holds its weights.
_WEIGHT_INPUTS = {
    "Conv": 1,
    "ConvTranspose": 1,
    "Gather": 0,
    "Gemm": 1,
    "MatMul": 1,
}
_PRODUCTS = ("Gemm", "MatMul")
# Where a CPU lacks VNNI, ONNX Runtime 1.32 adds pairs of products of inputs and
# weights in 16 bits, which saturate. Up to this largest code of the weights
# they do not: 2 * 255 * 63 < 2^15.
_SAFE_LEVELS = 63
_SUMS_OF_CODES = (*_PRODUCTS, "Conv")


@dataclasses.dataclass(frozen=True)
class Container:
    """A type that holds all codes of a kernel.

    Args:
        type_name: ONNX type.
        unit: What a value of 1 stands for, in normalised codes; a power of 2.
        opset: First set of operators with which the type can be decoded.
    """

    type_name: str
    unit: float
    opset: int

    @property
    def is_half(self) -> bool:
        """Whether it is decoded by Cast."""
        return self.type_name in _HALF_TYPES


def container_of(kernel: Kernel) -> Container:
    """The smallest type that holds a kernel's codes exactly."""
    levels = rounding.levels_of(kernel.fmt)
    integer = next((n for n in _INTEGER_TYPES if levels <= n), None)
    names = list(_FLOAT8_TYPES)
    if kernel.fmt.name in _WIDE_FLOATS:
        # Its values may happen to fit either type; it asks for this one.
        names.reverse()
    containers = [
        Container(name, 2.0 ** -_FLOAT8_TYPES[name], _FLOAT8_OPSET)
        for name in names
    ]
    if integer is not None:
        found = Container(
            _INTEGER_TYPES[integer][0],
            rounding.step_of(kernel.fmt),
            _INTEGER_TYPES[integer][1],
        )
        if integer <= 127 or kernel.fmt.is_integer:
            return found
    containers += [Container(name, 1.0, _HALF_OPSET) for name in _HALF_TYPES]
    for container in containers:
        values = (kernel.codes / container.unit).astype(
            numpy_type(container.type_name)
        )
        back = values.astype(np.float32) * np.float32(container.unit)
        if np.array_equal(back, kernel.codes):
            return container
    return Container("FLOAT", 1.0, _HALF_OPSET)


@dataclasses.dataclass(frozen=True)
class Stored:
    """The weights of an operator in a file.

    Args:
        kernel: What they are.
        node: The operator, an object of the graph.
        tensor: Name of the tensor that holds them.
        container: How.
    """

    kernel: Kernel
    node: Any
    tensor: str
    container: Container


def store(graph: OnnxGraph, kernels: Sequence[Kernel]) -> list[Stored]:
    """Replaces the float constants of known kernels.

    Kernels without a match are left as they are.

    Args:
        graph: The file, of a set of operators that has the containers.
        kernels: What is known about the model's weights.

    Returns:
        What was recognised, in the order of the operators.
    """
    containers = {id(kernel): container_of(kernel) for kernel in kernels}
    written: dict[tuple[str, str], tuple[str, str]] = {}
    found: list[Stored] = []
    for node in list(graph.nodes):
        number = _WEIGHT_INPUTS.get(node.op_type)
        constant = None
        if number is not None:
            constant = graph.constant(node.input[number])
        if constant is None or constant.dtype != np.float32:
            continue
        name = node.input[number]
        match = weights.recognise(
            constant,
            functools.partial(_layouts, node=node, shape=constant.shape),
            kernels,
            f"{name};{node.output[0]}",
            found,
        )
        if match is None:
            continue
        kernel, codes, axis, scale = match
        container = containers[id(kernel)]
        if not kernel.fmt.codebook:
            codes, scale = weights.positive(codes, axis, scale)
        key = kernel.path, name
        is_rounded = _is_rounded(graph, node)
        if key not in written:
            written[key] = _write(
                graph, node, is_rounded, kernel, container, codes, axis, scale
            )
        tensor, decoded = written[key]
        node.input[number] = decoded
        if is_rounded:
            _take_bias_out(graph, node, constant.ndim)
        found.append(Stored(kernel, node, tensor, container))
    graph.drop_unused()
    return found


def _write(graph, node, is_rounded, kernel, container, codes, axis, scale):
    """Returns the names of the stored tensor and of the decoded one."""
    name = weights.tensor_name(kernel.path)
    shape = [1] * codes.ndim
    shape[axis] = -1
    if container.type_name == "FLOAT":
        tensor = graph.add_constant(name, codes * scale.reshape(shape))
        return tensor, tensor
    values = (codes / np.float32(container.unit)).astype(
        numpy_type(container.type_name)
    )
    tensor = graph.add_constant(name, values)
    scale = scale * np.float32(container.unit)
    # ONNX Runtime 1.32 makes one operator of a product with weights behind
    # DequantizeLinear, which rounds float inputs to 8 bits by default, and of
    # it or a convolution between rounded tensors one that saturates sums of the
    # widest codes on some CPUs. With the scale behind it no runtime takes it
    # for that.
    if is_rounded:
        is_apart = (
            node.op_type in _SUMS_OF_CODES
            and container.type_name == "INT8"
            and rounding.levels_of(kernel.fmt) > _SAFE_LEVELS
        )
    else:
        is_apart = node.op_type in _PRODUCTS
    if not container.is_half and not is_apart:
        factor = graph.add_constant(f"{name}/scale", scale)
        inputs = [tensor, factor]
        return tensor, graph.insert(node, "DequantizeLinear", inputs, axis=axis)
    if container.is_half:
        number = type_number("FLOAT")
        decoded = graph.insert(node, "Cast", [tensor], to=number)
    else:
        one = graph.add_constant(f"{name}/one", np.float32(1))
        decoded = graph.insert(node, "DequantizeLinear", [tensor, one])
    if np.any(scale != 1):
        factor = graph.add_constant(f"{name}/scale", scale.reshape(shape))
        decoded = graph.insert(node, "Mul", [decoded, factor])
    return tensor, decoded


def _take_bias_out(graph, node, rank):
    """Adds the bias of a convolution or product behind it.

    Beside rounded inputs and weights ONNX Runtime 1.32 rounds a bias, to
    multiples of the product of their scales: half of such a unit is much where
    weights have 4 bits.
    """
    if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
        return
    bias = graph.constant(node.input[2])
    if bias is None:
        return
    if node.op_type == "Conv":
        bias = bias.reshape(-1, *[1] * (rank - 2))
    del node.input[2]
    graph.add_behind(node, "Add", bias)


def _is_rounded(graph, node):
    """Whether the input of an operator comes from DequantizeLinear."""
    return any(
        node.input[0] in other.output and other.op_type == "DequantizeLinear"
        for other in graph.nodes
    )


def _layouts(
    codes: np.ndarray, node, shape: tuple[int, ...]
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields codes laid out as ONNX may, and the axis of output channels."""
    candidates: list[tuple[np.ndarray, int]] = []
    if node.op_type in ("Conv", "ConvTranspose"):
        size = codes.shape[:-2]
        # Depthwise kernels are `(*size, channels, multiplier)`.
        for kernel in (codes, codes.reshape(*size, 1, -1)):
            moved = np.moveaxis(kernel, (-1, -2), (0, 1))
            axis = 0 if node.op_type == "Conv" else 1
            candidates.append((moved, axis))
            # One along time is one over images of height 1, or of width 1.
            if len(size) == 1:
                candidates += [
                    (moved[:, :, None], axis),
                    (moved[..., None], axis),
                ]
    elif codes.ndim >= 2:
        # Heads are columns of a product, or its rows where they are joined.
        for split in range(1, codes.ndim):
            rows = math.prod(codes.shape[:split])
            matrix = codes.reshape(rows, -1)
            candidates += [(matrix, 1), (matrix.T, 0)]
    for candidate, axis in candidates:
        if candidate.shape == shape:
            yield candidate, axis
