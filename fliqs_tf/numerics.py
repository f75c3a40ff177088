"""One elementwise kernel that rounds to any format, and its gradient.

With scale `s` and `y = x / s`

    e = max(floor(log2|y|), e_min)
    q = clip(round_half_even(y / 2^(e - M)) * 2^(e - M), -v_max, v_max) * s

`2^floor(log2|y|)` is read from the exponent bits of `y`, so it is exact. The
format enters as data (a row of four floats), not as code: a sampled format is
a gathered row, without a branch, and costs the same for 2 formats as for 16.

Gradient: straight-through (`dq/dx = 1`), and zero where a given scale clips.
An absmax scale never clips. No scale takes a gradient.

Defined hazards: a tensor (or channel) of zeros stays zero; NaN stays NaN;
infinity under a given scale or in `bf16` and `fp16` saturates; infinity under
an absmax scale has no finite scale, and the whole group turns NaN. Values
that are subnormal in float32 may be flushed to zero, as TensorFlow does.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from fliqs_tf.formats import Format
from fliqs_tf.formats import get_format

_EXPONENT_BITS = 0x7F800000
# Below this absmax the scale would leave float32's normal range.
_TINY = 2.0**-120


def format_table(formats: Sequence[str | Format]) -> np.ndarray:
    """Stacks the normalised rows of formats.

    Returns:
        float32 array of shape `(len(formats), 4)`.
    """
    return np.stack([get_format(fmt).row() for fmt in formats])


def round_to_row(y, row):
    """Rounds scaled values to the grid of a row, half to even.

    Args:
        y: float32 tensor `(...)`.
        row: float32 `(4,)`: `[2**e_min, 2**M, v_max, is_scaled]`.

    Returns:
        float32 tensor `(...)` of values on the grid.
    """
    smallest, steps, largest = row[0], row[1], row[2]
    # Clipping first is the same as clipping last (rounding is monotone and
    # +-v_max is on the grid) and keeps infinity out of the division.
    y = ops.clip(y, -largest, largest)
    bits = ops.bitwise_and(ops.view(y, "int32"), _EXPONENT_BITS)
    binade = ops.maximum(ops.view(bits, "float32"), smallest)
    # y / binade is in (-2, 2): no step of the kernel can over- or underflow.
    return ops.round(y / binade * steps) / steps * binade


def absmax_scale(x, row, axis=None):
    """Scale that puts the largest magnitude on the format's largest value.

    Args:
        x: Tensor `(...)`.
        row: float32 `(4,)`.
        axis: Axis or axes that keep a scale of their own; `None` for one scale.

    Returns:
        float32 tensor of `x`'s rank, size 1 on every other axis; ones for
        unscaled formats. No gradient.
    """
    magnitude = ops.abs(ops.cast(ops.stop_gradient(x), "float32"))
    absmax = ops.max(magnitude, axis=_reduced_axes(x, axis), keepdims=True)
    return range_scale(absmax, row)


def range_scale(absmax, row):
    """Scale of a given range: `absmax / v_max`, or 1 for unscaled formats."""
    absmax = ops.cast(absmax, "float32")
    # Graph compilers turn a division by a constant into a multiplication by its
    # reciprocal, which rounds otherwise. This divisor is no constant to them.
    largest = ops.where(absmax > 0, row[2], 1.0)
    scale = ops.maximum(absmax, _TINY) / largest
    return ops.where(row[3] > 0, scale, ops.ones_like(scale))


def quantize(x, row, scale, clips=False):
    """Rounds `x / scale` to the grid of a row.

    Forward: `codes = round_to_row(x / scale, row)`. Gradient: `1 / scale`
    (straight-through), and zero where `|x| > v_max * scale` if `clips`.

    Args:
        x: Floating tensor `(...)`.
        row: float32 `(4,)`.
        scale: float32 tensor that broadcasts with `x`.
        clips: Whether the scale was given, so that values may lie beyond it.

    Returns:
        Codes, a float32 tensor `(...)`; `codes * scale` approximates `x`.
    """

    @ops.custom_gradient
    def rounded(x):
        scaled = x / scale

        def grad(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            gradient = upstream / scale
            if clips:
                inside = ops.abs(scaled) <= row[2]
                gradient = ops.where(inside, gradient, 0.0)
            return gradient

        return round_to_row(scaled, row), grad

    row = ops.convert_to_tensor(row, "float32")
    scale = ops.stop_gradient(ops.cast(scale, "float32"))
    return rounded(ops.cast(x, "float32"))


def fake_quant(x, fmt, axis=None, scale=None):
    """Rounds a tensor to a format and back, with a straight-through gradient.

    `q = round_to_format(x / s) * s`; `dq/dx = 1`, and 0 where a given `scale`
    clips.

    Example:
    >>> fake_quant(np.array([0.1, -0.7, 1.4], "float32"), "int4")
    # scale 0.2: [0.2 * round(0.5), ...] = [0.0, -0.8, 1.4]

    Args:
        x: Floating tensor `(...)`.
        fmt: Format or name of one.
        axis: The axis that keeps a scale of its own; `None` for one scale for
            the tensor.
        scale: Scale or scales that broadcast with `x`, in the format's own
            units (`x = scale` is the value 1); `None` for
            `absmax / fmt.max_value`. Unscaled formats take none.

    Returns:
        Tensor of `x`'s shape and dtype. The arithmetic is float32.

    Raises:
        ValueError: If the format is unknown, both `axis` and `scale` are
            given, or an unscaled format gets a scale.
    """
    fmt = get_format(fmt)
    x = ops.convert_to_tensor(x)
    dtype = keras.backend.standardize_dtype(x.dtype)
    if not dtype.startswith(("float", "bfloat")):
        raise ValueError(
            f"`x` must be a floating tensor. Received: dtype={dtype}."
        )
    if scale is not None and (axis is not None or not fmt.is_scaled):
        raise ValueError(
            "`scale` replaces the absmax of a scaled format: give no `axis` "
            "with it (shape the scale to broadcast), and none to bf16, fp16 "
            f"or fp32. Received: fmt={fmt.name}, axis={axis}, scale={scale}."
        )
    if scale is None:
        row = ops.convert_to_tensor(fmt.row())
        scale = absmax_scale(x, row, axis)
        codes = quantize(x, row, scale)
    else:
        scale = ops.stop_gradient(ops.cast(scale, "float32"))
        codes = quantize(x, fmt.row(normalized=False), scale, clips=True)
    return ops.cast(codes * scale, dtype)


def running_mean(mean, seen, value, momentum):
    """Next value of an exponential moving average that has no stale start.

    `m * mean + (1 - m) * value` with `m = min(momentum, t / (t + 1))` after
    `t` values: a plain mean at first, so that the initial value counts for
    nothing.

    Args:
        mean: The average so far, a scalar.
        seen: Number `t` of values it has seen, a float scalar.
        value: The new value.
        momentum: Weight of the past in the long run, in [0, 1).
    """
    momentum = ops.minimum(momentum, seen / (seen + 1.0))
    return momentum * mean + (1.0 - momentum) * value


def _reduced_axes(x, axis):
    if axis is None:
        return None
    rank = len(x.shape)
    kept = [axis] if isinstance(axis, int) else list(axis)
    if any(not -rank <= a < rank for a in kept):
        raise ValueError(
            f"`axis` must be in [-{rank}, {rank}) for a tensor of rank {rank}. "
            f"Received: axis={axis}."
        )
    positive = {a % rank for a in kept}
    return tuple(a for a in range(rank) if a not in positive)
