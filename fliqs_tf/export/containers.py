"""Containers: how the codes of a format are stored in a `.tflite` file.

All are decoded to float32 in front of the operator that reads the weights, so
that every operator can have them, depthwise convolutions too (measured on
LiteRT 2.3, with the default and with the plain kernels):

- Codes that are multiples of one step, up to 1, 7, 127 or 32767 of them: INT2,
  INT4, INT8 or INT16 and DEQUANTIZE. Sub-byte types are packed.
- Other formats of up to 8 bits: indices into the format's values as UINT8, two
  to a byte up to 4 bits; CAST and GATHER from a table with a row for each
  byte. This is decoded at every call, so INT8 is preferred where it fits.
- Block formats: the elements likewise, the exponents of the blocks as UINT8
  and a table of powers of two (E8M0). Blocks run along all axes but that of
  the output channels.
- Wider formats: FLOAT16 and DEQUANTIZE, or BFLOAT16 and CAST, where exact.
- The rest: FLOAT32.

Speed is another matter: XNNPACK takes convolutions only with weights that are
FLOAT32, or INT8 or FLOAT16 and DEQUANTIZE, which it does once; others run in
LiteRT's own kernels and are decoded at every call (ResNet-20 on one x86-64
thread: 0.4 ms an image against 2 to 2.6 ms). So `"fast"` uses only these:
INT8 for all that fits it, FLOAT16 for the codes that fit that (the scale of a
channel, which would not, multiplies the output), FLOAT32 for the rest.

`"float32"` leaves the values as they are, for tools that quantize themselves.

They are written straight into the flatbuffer. `ai-edge-quantizer` can be given
known scales by a registered algorithm, but its policy refuses INT4 for
depthwise convolutions and it knows no tables, nor which tensor belongs to
which layer; most of this package would stay beside it.
"""

import numpy as np
import tensorflow as tf

from fliqs_tf.export import rounding
from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.graph import TensorType
from fliqs_tf.export.graph import schema
from fliqs_tf.formats import Format

# Bits -> (tensor type, lowest version of DEQUANTIZE that reads it).
_INTEGER_TYPES = {
    2: (TensorType.INT2, 6),
    4: (TensorType.INT4, 2),
    8: (TensorType.INT8, 2),
    16: (TensorType.INT16, 3),
}
CONTAINERS = ("small", "fast", "float32")
_FAST_LEVELS = 2**7 - 1
_BFLOAT16 = tf.bfloat16.as_numpy_dtype
_TABLE_BITS = (2, 4, 8)
_TABLE_ROWS = 256
_EXPONENT_BIAS = 127
# Brings codes, the largest of which is below 2, to the top of FLOAT16.
_FLOAT16_UNIT = 2.0**15
_POWERS = "e8m0/values"


class ContainerWriter:
    """Writes weights into a graph.

    Args:
        graph: Graph to be extended by constants and by the operators that
            decode them.
        containers: `"small"`, `"fast"`: those that XNNPACK takes, or
            `"float32"`.
    """

    def __init__(self, graph: Graph, containers: str = "small"):
        self._graph = graph
        self._is_fast = containers == "fast"
        self._is_plain = containers == "float32"

    def write(
        self,
        name: str,
        constant: int,
        fmt: Format,
        codes: np.ndarray,
        axis: int,
        scale: np.ndarray,
        scales_output: bool = False,
    ) -> tuple[int, np.ndarray | None]:
        """Stores `codes * scale` in a container of the writer's kind.

        Args:
            name: Name of the tensor that holds the codes.
            constant: Number of the float32 constant with the same value.
            fmt: Format of the codes.
            codes: float32 codes in normalised units.
            axis: Axis of `codes` that the scale belongs to.
            scale: Float32 array `(codes.shape[axis],)` without zeros.
            scales_output: Whether a scale may be left to the output of the
                operator that reads the weights.

        Returns:
            Number of the float32 tensor to use in place of `constant`, and the
            scale that is left; `None` if there is none.
        """
        if self._is_plain:
            self._graph.rename(constant, name)
            return constant, None
        is_wide = rounding.levels_of(fmt) > _FAST_LEVELS
        if self._is_fast and scales_output and is_wide:
            high = codes * np.float32(_FLOAT16_UNIT)
            if _holds(np.float16, high):
                return self._float16(name, high), scale / _FLOAT16_UNIT
        return self._write(name, constant, fmt, codes, axis, scale), None

    def _write(self, name, constant, fmt, codes, axis, scale):
        largest = rounding.levels_of(fmt)
        if self._is_fast:
            if largest <= _FAST_LEVELS:
                return self._integers(name, 8, fmt, codes, axis, scale)
            self._graph.rename(constant, name)
            return constant
        integer = next(
            (b for b in _INTEGER_TYPES if largest <= 2 ** (b - 1) - 1), 99
        )
        table = next((b for b in _TABLE_BITS if fmt.bits <= b), 99)
        if integer <= min(table, max(_INTEGER_TYPES)):
            return self._integers(name, integer, fmt, codes, axis, scale)
        if fmt.block_size:
            decoded = self._blocks(name, table, fmt, codes, axis)
        elif table <= max(_TABLE_BITS):
            decoded = self._indices(name, table, fmt, codes)
        elif fmt.name != "bf16" and _holds(np.float16, codes):
            decoded = self._float16(name, codes)
        elif _holds(_BFLOAT16, codes):
            decoded = self._bfloat16(name, codes)
        else:
            self._graph.rename(constant, name)
            return constant
        return self._scaled(name, decoded, codes.shape, axis, scale)

    def _integers(self, name, bits, fmt, codes, axis, scale):
        step = np.float32(rounding.step_of(fmt))
        integers = np.round(codes / step).astype(np.int16)
        tensor_type, version = _INTEGER_TYPES[bits]
        # DEQUANTIZE takes one scale for all of a tensor of 16 bits.
        is_shared = bits == 16 or np.all(scale == scale[0])
        inner, outer = scale * step, np.ones_like(scale)
        if is_shared:
            inner, outer = inner[:1], scale / scale[0]
        stored = self._graph.add_constant(
            name, pack(integers, bits), tensor_type, codes.shape, inner, axis
        )
        decoded = self._operate(
            Builtin.DEQUANTIZE, version, [stored], codes.shape
        )
        return self._scaled(name, decoded, codes.shape, axis, outer)

    def _indices(self, name, bits, fmt, codes):
        values = (fmt.values() / fmt.unit).astype(np.float32)
        content = pack(np.searchsorted(values, codes), bits)
        per_byte = 8 // bits
        table = self._table(fmt.name, bits, values)
        if per_byte == 1:
            return self._gather(name, content, table, codes.shape)
        size = content.size * per_byte
        if size == codes.size:
            return self._gather(name, content, table, codes.shape)
        # Odd sizes: the last byte holds codes that are none.
        decoded = self._gather(name, content, table, (size,))
        decoded = self._slice(decoded, (codes.size,))
        return self._reshape(decoded, codes.shape)

    def _blocks(self, name, bits, fmt, codes, axis):
        """Codes that are elements times the power of two of their block."""
        moved = np.moveaxis(codes, axis, 0)
        flat = moved.reshape(len(moved), -1)
        length, size = flat.shape[1], fmt.block_size
        count = -(-length // size)
        padded = np.pad(flat, ((0, 0), (0, count * size - length)))
        parts = padded.reshape(len(moved), count, size)
        # Elements are below 2 and rounding passes no power of two: the
        # exponent of the largest is that of the block.
        exponents = np.frexp(np.abs(parts).max(axis=2))[1] - 1
        # A block of zeros may have any, -127 of E8M0 is no normal float32.
        exponents = np.maximum(exponents, 1 - _EXPONENT_BIAS)
        elements = np.ldexp(parts, -exponents[..., None])
        decoded = self._indices(name, bits, fmt, elements)
        powers = self._gather(
            f"{name}/exponents",
            (exponents + _EXPONENT_BIAS).astype(np.uint8),
            self._powers(),
            (len(moved), count, 1),
        )
        decoded = self._multiply(decoded, powers, parts.shape)
        if padded.shape != flat.shape:
            decoded = self._reshape(decoded, padded.shape)
            decoded = self._slice(decoded, flat.shape)
        decoded = self._reshape(decoded, moved.shape)
        if axis == 0:
            return decoded
        order = [*range(1, axis + 1), 0, *range(axis + 1, codes.ndim)]
        return self._operate(
            Builtin.TRANSPOSE,
            2,
            [decoded, self._ints(order)],
            codes.shape,
            schema.BuiltinOptions.TransposeOptions,
            schema.TransposeOptionsT(),
        )

    def _powers(self):
        """Table of what an E8M0 exponent stands for."""
        found = self._graph.find(_POWERS)
        if found is not None:
            return found
        exponents = np.arange(2 * _EXPONENT_BIAS + 1) - _EXPONENT_BIAS
        powers = np.ldexp(np.float32(1), exponents).astype(np.float32)
        return self._graph.add_constant(
            _POWERS, powers, TensorType.FLOAT32, powers.shape
        )

    def _gather(self, name, indices, table, shape):
        """Looks bytes up, one or several values each."""
        inner = self._graph.tensors[table].shape[1:]
        stored = self._graph.add_constant(
            name,
            indices,
            TensorType.UINT8,
            # A row of several values becomes part of the last dimension.
            (indices.size,) if inner else shape,
        )
        indices = self._cast(stored, TensorType.UINT8, TensorType.INT32)
        options = schema.GatherOptionsT()
        options.axis = 0
        decoded = self._operate(
            Builtin.GATHER,
            2,
            [table, indices],
            (*self._graph.tensors[stored].shape, *inner),
            schema.BuiltinOptions.GatherOptions,
            options,
        )
        return self._reshape(decoded, shape) if inner else decoded

    def _table(self, fmt_name, bits, values):
        """The values of each byte's codes; one table serves all layers.

        Codes with a byte of their own need no rows beyond the values.
        """
        name = f"{fmt_name}/values"
        found = self._graph.find(name)
        if found is not None:
            return found
        rows = len(values) if bits == 8 else _TABLE_ROWS
        padded = np.zeros(2**bits, np.float32)
        padded[: len(values)] = values
        shifts = bits * np.arange(8 // bits)
        codes = (np.arange(rows)[:, None] >> shifts) % 2**bits
        if bits == 8:
            codes = codes[:, 0]
        return self._graph.add_constant(
            name, padded[codes], TensorType.FLOAT32, codes.shape
        )

    def _float16(self, name, codes):
        stored = self._graph.add_constant(
            name, codes.astype(np.float16), TensorType.FLOAT16, codes.shape
        )
        return self._operate(Builtin.DEQUANTIZE, 3, [stored], codes.shape)

    def _bfloat16(self, name, codes):
        stored = self._graph.add_constant(
            name,
            codes.astype(_BFLOAT16),
            TensorType.BFLOAT16,
            codes.shape,
        )
        return self._cast(stored, TensorType.BFLOAT16, TensorType.FLOAT32)

    def _slice(self, tensor, shape):
        """Cuts the end of a tensor off."""
        bounds = [self._ints([0] * len(shape)), self._ints(shape)]
        return self._operate(
            Builtin.SLICE,
            1,
            [tensor, *bounds],
            shape,
            schema.BuiltinOptions.SliceOptions,
            schema.SliceOptionsT(),
        )

    def _multiply(self, tensor, factor, shape):
        return self._operate(
            Builtin.MUL,
            1,
            [tensor, factor],
            shape,
            schema.BuiltinOptions.MulOptions,
            schema.MulOptionsT(),
        )

    def _scaled(self, name, decoded, shape, axis, scale):
        if np.all(scale == 1):
            return decoded
        broadcast = [1] * len(shape)
        broadcast[axis] = -1
        scale = scale.astype(np.float32).reshape(broadcast)
        factor = self._graph.add_constant(
            f"{name}/scale", scale, TensorType.FLOAT32, scale.shape
        )
        return self._multiply(decoded, factor, shape)

    def _cast(self, tensor, source, target):
        options = schema.CastOptionsT()
        options.inDataType, options.outDataType = source, target
        return self._operate(
            Builtin.CAST,
            # Versions are those that read the type: 3 for most, 7 for bfloat16.
            7 if source == TensorType.BFLOAT16 else 3,
            [tensor],
            self._graph.tensors[tensor].shape,
            schema.BuiltinOptions.CastOptions,
            options,
            target,
        )

    def _reshape(self, tensor, shape):
        options = schema.ReshapeOptionsT()
        options.newShape = [int(size) for size in shape]
        return self._operate(
            Builtin.RESHAPE,
            1,
            [tensor, self._ints(shape)],
            shape,
            schema.BuiltinOptions.ReshapeOptions,
            options,
        )

    def _ints(self, values):
        return self._graph.add_constant(
            "shape", np.array(values, np.int32), TensorType.INT32, [len(values)]
        )

    def _operate(
        self,
        builtin,
        version,
        inputs,
        shape,
        options_type=schema.BuiltinOptions.NONE,
        options=None,
        tensor_type=TensorType.FLOAT32,
    ):
        # Without a name: those of all steps of all layers take kilobytes.
        output = self._graph.add_tensor("", tensor_type, shape)
        return self._graph.prepend(
            builtin, version, inputs, output, options_type, options
        )


def _holds(dtype, codes):
    # What is too large becomes infinite, which is another value.
    with np.errstate(over="ignore"):
        return np.array_equal(codes.astype(dtype).astype(np.float32), codes)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs signed or unsigned codes, the first in the lowest bits.

    Args:
        codes: Integer array of any shape, read in row-major order.
        bits: Width of a code: 2, 4, 8 or 16.

    Returns:
        uint8 array `(ceil(codes.size * bits / 8),)`; int16 for 16 bits.
    """
    flat = codes.reshape(-1)
    if bits == 16:
        return flat.astype(np.int16)
    per_byte = 8 // bits
    flat = np.pad(flat, (0, -flat.size % per_byte)) & (2**bits - 1)
    shifted = flat.reshape(-1, per_byte) << (bits * np.arange(per_byte))
    return shifted.sum(axis=1).astype(np.uint8)
