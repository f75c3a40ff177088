"""Rounding of layers' inputs in an ONNX file.

While a model is converted, the place where an input is rounded is marked by an
operator that all of tf2onnx's rewriting leaves in one piece and moves layouts
across, a leaky ReLU of a slope that no network has. Afterwards it is replaced:

- integers: QuantizeLinear and DequantizeLinear on INT8 or INT16, UINT8 or
  UINT16 where the grid has no negative values or a zero point. Grids that do
  not fill their type, symmetric ones among them, are preceded by a Clip to
  their ends, as in training. (Not INT4: ONNX Runtime 1.32 does not load a file
  in which a Clip stands before a QuantizeLinear to it.);
- `e4m3fn` and `e5m2_ocp`: the same on FLOAT8E4M3FN and FLOAT8E5M2;
- `bf16` and `fp16`: Clip, and Cast there and back.

Other formats have no type in ONNX.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from fliqs_tf.export.onnx_graph import OnnxGraph
from fliqs_tf.export.onnx_graph import numpy_type
from fliqs_tf.export.onnx_graph import type_number
from fliqs_tf.formats import Format
from fliqs_tf.formats import get_format
from fliqs_tf.quantizers import InputQuantizer

# Slopes of the marks: 2^23, 2^23 + 1, ..., exact in float32.
_FIRST_SLOPE = 2**23
_WIDTHS = (8, 16)
_SYMMETRIC = "symmetric"
_HALF = {"bf16": "BFLOAT16", "fp16": "FLOAT16"}
_FLOATS = {"e4m3fn": "FLOAT8E4M3FN", "e5m2_ocp": "FLOAT8E5M2", **_HALF}
# First set of operators with a type in QuantizeLinear.
_OPSETS = {"INT8": 13, "UINT8": 13, "FLOAT8E4M3FN": 19, "FLOAT8E5M2": 19}
_NEWEST_OPSET = 21
# The floor of `numerics.absmax_scale`, below which a range counts as zero.
_TINY = 2.0**-120
# What rounding may change places with, so that it stands next to the operator
# of the layer.
_MOVING = ("Reshape", "Squeeze", "Transpose", "Unsqueeze")
# Beyond every range, and finite when divided by a small scale.
_FAR = 2.0**120


@dataclasses.dataclass(frozen=True)
class Grid:
    """How an input is rounded: `(clip(round(x / scale) + zero)) * scale`.

    Args:
        path: Path of the layer.
        fmt: Format.
        scale: Scale in units of the format, a float32 number; `None` for that
            of the tensor at hand.
        low: Smallest code, without the zero point.
        high: Largest code, without the zero point.
    """

    path: str
    fmt: Format
    scale: np.float32 | None
    low: float
    high: float

    @property
    def type_bits(self) -> int:
        """Bits of the integer type that holds the codes."""
        return next(bits for bits in _WIDTHS if self.fmt.bits <= bits)

    @property
    def type_name(self) -> str:
        """ONNX type of the codes."""
        if not self.fmt.is_integer:
            return _FLOATS[self.fmt.name]
        sign = "" if self.low == -self.high else "U"
        return f"{sign}INT{self.type_bits}"

    @property
    def opset(self) -> int:
        """First set of operators that rounds to the type."""
        if self.fmt.name in _HALF:
            return 13
        return _OPSETS.get(self.type_name, _NEWEST_OPSET)


class Marks:
    """The places of a model where inputs are rounded.

    Attributes:
        grids: How each of them is rounded.
        sources: Path of the layer and name of the tensor that is rounded, in
            the order in which the file runs.
    """

    def __init__(self):
        self.grids: list[Grid] = []
        self.sources: list[tuple[str, str]] = []

    def quantizer(self, path: str, layer: Any, quantizer: Any) -> "Mark":
        """What is to stand in for a quantizer of activations.

        Args:
            path: Path of the layer.
            layer: Layer that rounds its inputs.
            quantizer: What it rounds them by.

        Raises:
            ValueError: If ONNX cannot round as it does.
        """
        fmt = get_format(quantizer.formats[0])
        has_type = fmt.is_integer or fmt.name in _FLOATS
        if fmt.block_size or not has_type:
            raise ValueError(
                "ONNX has types for inputs in integer formats, "
                f"{', '.join(_FLOATS)}. Received: inputs in {fmt.name!r} of "
                f"layer {path!r}. Export with `activations='float'`, or search "
                "formats that ONNX has."
            )
        is_dynamic = quantizer.range == "dynamic"
        if is_dynamic and fmt.is_integer and quantizer.signedness != _SYMMETRIC:
            raise ValueError(
                "Ranges of the tensor at hand go with symmetric grids in ONNX. "
                f"Received: signedness={quantizer.signedness!r} of layer "
                f"{path!r}. Export with `activations='float'`."
            )
        return Mark(path, quantizer, self.grids)

    def description(self, path: str) -> str:
        """What the file does with the inputs of a layer."""
        grid = next((g for g in self.grids if g.path == path), None)
        if grid is None:
            return "FLOAT not rounded"
        scale = "of the tensor at hand"
        if grid.scale is not None:
            scale = f"{grid.scale:.4g}"
        text = grid.type_name
        if grid.fmt.is_scaled:
            text += f", scale {scale}"
        if grid.fmt.is_integer and grid.fmt.bits != grid.type_bits:
            text += f", clipped to {grid.fmt.name}"
        return text

    def replace(self, graph: OnnxGraph) -> None:
        """Puts the rounding in the place of the marks.

        Args:
            graph: The file, of a set of operators that has the types.

        Raises:
            ValueError: If a mark is missing.
        """
        missing = {number: grid.path for number, grid in enumerate(self.grids)}
        for node in list(graph.nodes):
            number = _number(node)
            if number is not None:
                missing.pop(number)
                grid = self.grids[number]
                node = graph.sink(node, _MOVING)
                self.sources.append((grid.path, node.input[0]))
                write = _cast if grid.fmt.name in _HALF else _quantize
                rounded = write(graph, node, grid)
                graph.remove(node, instead=rounded)
        if missing:
            raise ValueError(
                "Inputs can be rounded outside of loops only. Received: layers "
                f"{sorted(set(missing.values()))} that became loops in ONNX. "
                "Call them outside of loops, or export with "
                "`activations='float'`."
            )


class Mark:
    """An input quantizer that leaves a mark.

    Args:
        path: Path of the layer.
        quantizer: What it stands in for.
        grids: Where to note how the input is to be rounded.
    """

    def __init__(self, path: str, quantizer: InputQuantizer, grids: list[Grid]):
        self._path = path
        self._quantizer = quantizer
        self._grids = grids

    def codes(self, inputs, training, weights):
        """Returns the marked inputs, and 1 for the scale."""
        del training
        # Ranges are variables, which have no values while a call is traced.
        with tf.init_scope():
            grid = _grid_of(self._path, self._quantizer, weights)
        slope = _FIRST_SLOPE + len(self._grids)
        self._grids.append(grid)
        return tf.nn.leaky_relu(inputs, slope), tf.constant(1.0)

    def __call__(self, inputs, training, weights):
        """Returns the marked inputs."""
        marked, _ = self.codes(inputs, training, weights)
        return marked


def _grid_of(path, quantizer, weights) -> Grid:
    fmt = get_format(quantizer.formats[0])
    if not fmt.is_scaled:
        return Grid(path, fmt, np.float32(1), -fmt.max_value, fmt.max_value)
    if quantizer.range == "dynamic":
        return Grid(path, fmt, None, -fmt.max_value, fmt.max_value)
    beyond = np.array([-_FAR, _FAR], np.float32)
    ends, scale = quantizer.codes(beyond, False, weights)
    low, high = (float(end) for end in np.asarray(ends))
    # Codes are normalised by a power of two, which this finds exactly.
    is_symmetric = quantizer.signedness == _SYMMETRIC or not fmt.is_integer
    width = 2 * fmt.max_value if is_symmetric else 2**fmt.bits - 1
    step = (high - low) / width
    scale = np.float32(scale) * np.float32(step)
    return Grid(path, fmt, scale, low / step, high / step)


def _number(node) -> int | None:
    """Number of the mark that a node is, `None` for other nodes."""
    if node.op_type != "LeakyRelu":
        return None
    slope = next(a.f for a in node.attribute if a.name == "alpha")
    return int(slope) - _FIRST_SLOPE if slope >= _FIRST_SLOPE else None


def _quantize(graph, node, grid):
    (source,) = node.input
    name = f"{grid.path}/input"
    zero = -grid.low if grid.type_name.startswith("U") else 0.0
    if grid.scale is None:
        absmax = graph.insert(node, "Abs", [source])
        absmax = graph.insert(node, "ReduceMax", [absmax], keepdims=0)
        tiny = graph.add_constant(f"{name}/floor", np.float32(_TINY))
        high = graph.insert(node, "Max", [absmax, tiny])
        levels = graph.add_constant(f"{name}/levels", np.float32(grid.high))
        scale = graph.insert(node, "Div", [high, levels])
    else:
        scale = graph.add_constant(f"{name}/scale", grid.scale)
        fills_type = grid.high - grid.low == 2**grid.type_bits - 1
        if not grid.fmt.is_integer:
            high = _end(graph, grid, grid.high, "high")
        elif not fills_type:
            # QuantizeLinear saturates only at the ends of the type.
            source = _clip(graph, node, source, grid)
    if not grid.fmt.is_integer:
        # ONNX Runtime 1.32 does not load a Clip, a ReLU6 for instance, in
        # front of the rounding to such a type.
        source = graph.insert(node, "Min", [source, high])
    zero_point = graph.add_constant(
        f"{name}/zero_point", np.array(zero).astype(numpy_type(grid.type_name))
    )
    codes = graph.insert(node, "QuantizeLinear", [source, scale, zero_point])
    inputs = [codes, scale, zero_point]
    if graph.opset >= _NEWEST_OPSET and not zero:
        # From there on ONNX Runtime 1.32 loses its type where it copies the
        # pair behind a Reshape or Transpose.
        del inputs[2]
    return graph.insert(node, "DequantizeLinear", inputs)


def _cast(graph, node, grid):
    (source,) = node.input
    source = _clip(graph, node, source, grid)
    half = graph.insert(
        node, "Cast", [source], to=type_number(_FLOATS[grid.fmt.name])
    )
    return graph.insert(node, "Cast", [half], to=type_number("FLOAT"))


def _clip(graph, node, source, grid):
    low = _end(graph, grid, grid.low, "low")
    high = _end(graph, grid, grid.high, "high")
    return graph.insert(node, "Clip", [source, low, high])


def _end(graph, grid, code, name):
    """Name of the constant that an end of the grid stands for."""
    value = np.float32(code) * grid.scale
    return graph.add_constant(f"{grid.path}/input/{name}", value)
