"""Quantizers that compute in builtin LiteRT operators.

They stand in for a fixed layer's own quantizers (the same `codes` method), so
that any searchable layer can be converted without a copy of its `call`: the
kernel's codes are constants, and the rounding of inputs uses only operators
that LiteRT runs (measured on LiteRT 2.3: ROUND, BITCAST and RIGHT_SHIFT run in
the default kernels; the bit masks of `numerics.round_to_row` do not convert).

Formats whose values are all multiples of one step, integers among them, count
in units of that step. Every unit is a power of two, so no bit of the result
depends on it.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from fliqs_tf.export.slots import Slots
from fliqs_tf.formats import Format

# The floor of `numerics.absmax_scale`, below which a range counts as zero.
_TINY = 2.0**-120
_FLOAT32_MANTISSA_BITS = 23


def step_of(fmt: Format) -> float:
    """Spacing of the smallest values, in the units of normalised codes."""
    # Not in float32, where the step of an 8-bit exponent may be subnormal.
    smallest, steps = (float(value) for value in fmt.row()[:2])
    return smallest / steps


def levels_of(fmt: Format) -> float:
    """Largest value in multiples of the smallest spacing.

    Infinite where the values are no such multiples: in a codebook, and where
    each block has a scale.
    """
    if fmt.codebook or fmt.block_size:
        return float("inf")
    return float(fmt.row()[2]) / step_of(fmt)


class ConstantKernel:
    """Codes that are constants, and a scale in a slot or none.

    Args:
        codes: float32 array of the kernel's shape.
        scale: float32 array that broadcasts with it.
        slots: Where to put the scale; `None` makes it a plain constant, which
            the converter folds.
    """

    def __init__(
        self, codes: np.ndarray, scale: np.ndarray, slots: Slots | None = None
    ):
        self._codes = codes
        self._scale = lambda: tf.constant(scale)
        if slots is not None:
            self._scale = functools.partial(slots.tensor, slots.add(scale))

    def codes(self, inputs, training, weights):
        """Returns float32 `(codes, scale)`; the arguments are not read."""
        del inputs, training, weights
        return tf.constant(self._codes), self._scale()


@dataclasses.dataclass(frozen=True)
class Grid:
    """Scale and ends of a running range.

    Args:
        scale: float32 number, in the units of normalised codes.
        step: Spacing of the smallest codes.
        low: Smallest code.
        high: Largest code.
    """

    scale: np.float32
    step: float
    low: float
    high: float


class InputRounding:
    """Rounds a tensor that a layer multiplies.

    Forward: `codes = clip(round_half_even(x / scale), low, high)` on the grid
    of the format, with the arithmetic of `numerics.round_to_row`.

    Args:
        fmt: Format of the tensor, not `fp32`.
        grid: Grid of a running range; `None` for the absmax of the tensor at
            hand. Unscaled formats have none.
        slots: Where constants go that must not be folded.
        returns_scale: Whether `codes` gives the scale of a running range, too,
            for want of a kernel to multiply it in.
    """

    def __init__(
        self,
        fmt: Format,
        grid: Grid | None,
        slots: Slots,
        returns_scale: bool = False,
    ):
        if fmt.codebook or fmt.block_size:
            raise ValueError(
                "`activations='fake_quant'` rounds inputs to integer and float "
                f"formats. Received: inputs in {fmt.name!r}. Use another mode, "
                "or another format for the inputs."
            )
        self._fmt = fmt
        self._slots = slots
        self._returns_scale = returns_scale
        self._step = np.float32(step_of(fmt) if grid is None else grid.step)
        self._bounds = -levels_of(fmt), levels_of(fmt)
        self._is_dynamic = fmt.is_scaled and grid is None
        if self._is_dynamic:
            self._slot = slots.add(np.float32(fmt.row()[2]))
        elif fmt.is_scaled and grid is not None:
            self._slot = slots.add(self.unit(grid))
            if fmt.is_integer:
                self._bounds = grid.low / grid.step, grid.high / grid.step

    def unit(self, grid: Grid) -> np.float32:
        """What one of the codes of a running range stands for."""
        return np.float32(grid.scale) * (
            self._step if self._fmt.is_integer else np.float32(1.0)
        )

    def codes(self, inputs, training, weights):
        """Returns float32 `(codes, scale)`.

        The scale of a running range is left to the kernel (1 is returned), as
        it is a constant that can be multiplied in beforehand, if there is one.
        """
        del training, weights
        # Layers multiply inputs that are no floats, too.
        inputs = tf.cast(inputs, tf.float32)
        scale = tf.constant(1.0)
        if self._is_dynamic:
            absmax = tf.reduce_max(tf.abs(inputs))
            scale = tf.maximum(absmax, _TINY) / self._slots.tensor(self._slot)
            if self._fmt.is_integer:
                scale *= self._step
            inputs = inputs / scale
        elif self._fmt.is_scaled:
            own = self._slots.tensor(self._slot)
            inputs = inputs / own
            scale = own if self._returns_scale else scale
        if self._fmt.is_integer:
            inputs = tf.clip_by_value(inputs, *self._bounds)
            return tf.round(inputs), scale
        return _round_float(inputs, self._fmt), scale

    def __call__(self, inputs, training, weights):
        """Returns the rounded tensor, scaled back."""
        codes, scale = self.codes(inputs, training, weights)
        if self._fmt.is_scaled and not self._is_dynamic:
            scale = self._slots.tensor(self._slot)
        return codes * scale


class OperandRounding:
    """Rounds each of the tensors that a layer multiplies its kernels with.

    Args:
        roundings: What a layer hands over with a tensor (the variables of its
            quantizer, of which the contents are not read), and what rounds it.
    """

    def __init__(self, roundings: Sequence[tuple[dict, InputRounding]]):
        self._roundings = roundings

    def codes(self, inputs, training, weights):
        """See `InputRounding.codes`."""
        return self._of(weights).codes(inputs, training, weights)

    def __call__(self, inputs, training, weights):
        """See `InputRounding.__call__`."""
        return self._of(weights)(inputs, training, weights)

    def _of(self, weights) -> InputRounding:
        return next(found for key, found in self._roundings if key is weights)


def _round_float(y, fmt: Format):
    smallest, steps, largest = (float(v) for v in fmt.row()[:3])
    y = tf.clip_by_value(y, -largest, largest)
    # The sign must go first: RIGHT_SHIFT would carry it along.
    bits = tf.bitcast(tf.abs(y), tf.int32)
    exponent = tf.bitwise.right_shift(bits, _FLOAT32_MANTISSA_BITS)
    binade = tf.bitcast(exponent * (1 << _FLOAT32_MANTISSA_BITS), tf.float32)
    binade = tf.maximum(binade, smallest)
    return tf.round(y / binade * steps) * (1.0 / steps) * binade
