"""Scales, and rounding to any format with its gradient.

`q = round(x / s) * s`, with the kernel of `rounding.py` and a scale `s` that is
given or comes from the largest magnitude of a tensor, a channel or a block.

Gradient: straight-through (`dq/dx = 1`), and zero where a given scale clips.
An absmax scale never clips; a block's scale does by less than one step of the
top binade, which counts as rounding. No scale takes a gradient.

Defined hazards: a tensor (or channel) of zeros stays zero; NaN stays NaN;
infinity under a given scale or in `bf16` and `fp16` saturates; infinity under
an absmax scale has no finite scale, and the whole group turns NaN. Values
that are subnormal in float32 may be flushed to zero, as TensorFlow does.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from fliqs_tf import blocks
from fliqs_tf import fusion
from fliqs_tf.codebooks import codebook_table
from fliqs_tf.formats import BLOCK_SCALED
from fliqs_tf.formats import CODEBOOK
from fliqs_tf.formats import Format
from fliqs_tf.formats import get_format
from fliqs_tf.rounding import power_of_two
from fliqs_tf.rounding import round_to_codebook
from fliqs_tf.rounding import round_to_row

BLOCK_SIZE = 32
# Below this absmax the scale would leave float32's normal range.
TINY = 2.0**-120


def format_table(formats: Sequence[str | Format]) -> np.ndarray:
    """Stacks the normalised rows of formats.

    Returns:
        float32 array of shape `(len(formats), 4)`.
    """
    return np.stack([get_format(fmt).row() for fmt in formats])


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
    return range_scale(absmax(x, axis), row)


def absmax(x, axis=None):
    """Largest magnitudes: float32, size 1 on every axis but `axis`.

    No gradient; NaN counts as larger than infinity.
    """
    x = ops.cast(ops.stop_gradient(ops.convert_to_tensor(x)), "float32")
    rank = len(x.shape)
    kept = _kept_axes(rank, axis)
    if kept == tuple(range(rank - len(kept), rank)):
        return fusion.max_magnitude(x, len(kept))
    reduced = tuple(other_axes(rank, axis))
    return ops.max(ops.abs(x), axis=reduced, keepdims=True)


def range_scale(limit, row):
    """Scale of a given range: `limit / v_max`, or 1 for unscaled formats."""
    limit = ops.cast(limit, "float32")
    # Graph compilers turn a division by a constant into a multiplication by its
    # reciprocal, which rounds otherwise. This divisor is no constant to them.
    largest = ops.where(limit > 0, row[2], 1.0)
    scale = ops.maximum(limit, TINY) / largest
    return ops.where(row[3] > 0, scale, ops.ones_like(scale))


def quantize(
    x, row, scale, clips=False, bounds=None, codebook=None, noise=None
):
    """Rounds `x / scale` to the grid of a row.

    Forward: `codes = round_to_row(x / scale, row)`. Gradient: `1 / scale`
    (straight-through), and zero where `x / scale` is beyond the bounds if
    `clips`.

    Args:
        x: Floating tensor `(...)`.
        row: float32 `(4,)`.
        scale: float32 tensor that broadcasts with `x`.
        clips: Whether the scale was given, so that values may lie beyond it; a
            bool or a boolean scalar.
        bounds: See `round_to_row`.
        codebook: Codebook that goes with the row, if the row's format may have
            one; see `round_to_codebook`.
        noise: See `round_to_row`.

    Returns:
        Codes, a float32 tensor `(...)`; `codes * scale` approximates `x`.
    """
    row = ops.convert_to_tensor(row, "float32")
    scale = ops.stop_gradient(ops.cast(scale, "float32"))
    options = (bounds, codebook, noise)
    return _straight_through(_codes, x, row, scale, options, scale, clips)


def quantize_blocks(
    x,
    row,
    scale,
    axes,
    size=None,
    clips=False,
    bounds=None,
    codebook=None,
    noise=None,
):
    """Quantizes with scales that may vary along some axes.

    Where the row is of a block format, each block's scale is the power of two
    `2**floor(log2(absmax))` (in normalised units; MX v1.0, 5.2 and 6.3, in the
    format's own: `2**(floor(log2(absmax)) - e_max)`). Unlike E8M0 it ends at
    `2**-120` below.

    Args:
        x: Floating tensor `(...)`.
        row: float32 `(4,)`, normalised.
        scale: Scale for formats of other kinds, of size 1 on `axes`.
        axes: Axes along which blocks run, see `blocks.split`.
        size: Elements of a group, if formats of other kinds have an absmax
            scale for each group as well. Block formats need 32.
        clips: See `quantize`.
        bounds: See `quantize`.
        codebook: See `quantize`.
        noise: See `quantize`.

    Returns:
        float32 `(codes, scale)`. Where the scale varies along `axes` the codes
        are the rounded values themselves, and the scale is 1.
    """
    parts, join = blocks.split(ops.cast(x, "float32"), axes, size or BLOCK_SIZE)
    if noise is not None:
        noise, _ = blocks.split(noise, axes, size or BLOCK_SIZE)
    top = ops.stop_gradient(ops.max(ops.abs(parts), axis=2, keepdims=True))
    row = ops.convert_to_tensor(row, "float32")
    is_block = ops.equal(row[3], BLOCK_SCALED)
    other = blocks.align(scale, axes) if size is None else range_scale(top, row)
    power = power_of_two(ops.maximum(top, TINY))
    inner = ops.where(is_block, power, other)
    codes = quantize(
        parts,
        row,
        inner,
        clips=ops.logical_not(is_block) if clips else False,
        bounds=bounds,
        codebook=codebook,
        noise=noise,
    )
    varies = is_block if size is None else ops.ones_like(is_block)
    codes = codes * ops.stop_gradient(ops.where(varies, inner, 1.0))
    return join(codes), ops.where(varies, 1.0, scale)


def _straight_through(kernel, x, row, scale, options, divisor, clips):
    """Calls `kernel(x, row, scale, *options)` with the gradient `1 / divisor`.

    Zero where `x / scale` is beyond the bounds, if the scale clips. The divisor
    `None` is 1.
    """

    @ops.custom_gradient
    def rounded(x):
        def grad(*args, upstream=None):
            if upstream is None:
                (upstream,) = args
            if clips is False:
                # Which for a table may be a gradient of rows, and no tensor.
                return upstream if divisor is None else upstream / divisor
            bounds = options[0]
            if bounds is None:
                bounds = ops.stack([-row[2], row[2]])
            return _clipped_gradient(x, upstream, scale, divisor, bounds, clips)

        return kernel(x, row, scale, *options), grad

    return rounded(ops.cast(x, "float32"))


def _codes_of(x, row, scale, bounds, codebook, noise):
    y = x / scale
    codes = round_to_row(y, row, bounds, noise)
    if codebook is None:
        return codes
    levels = round_to_codebook(y, codebook, noise)
    return ops.where(ops.equal(row[3], CODEBOOK), levels, codes)


_codes = fusion.fused(_codes_of)


@fusion.fused
def _values(x, row, scale, bounds, codebook, noise):
    return _codes_of(x, row, scale, bounds, codebook, noise) * scale


@fusion.fused
def _clipped_gradient(x, upstream, scale, divisor, bounds, clips):
    y = x / scale
    inside = ops.logical_and(y >= bounds[0], y <= bounds[1])
    inside = ops.logical_or(inside, ops.logical_not(clips))
    if divisor is not None:
        upstream = upstream / divisor
    return ops.where(inside, upstream, 0.0)


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
            the tensor. Blocks of a block format run along all other axes, the
            last one fastest; with `None`, along the last axis.
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
    takes_scale = fmt.is_scaled and not fmt.block_size
    if scale is not None and (axis is not None or not takes_scale):
        raise ValueError(
            "`scale` replaces the absmax of a scaled format: give no `axis` "
            "with it (shape the scale to broadcast), and none to bf16, fp16, "
            f"fp32 or block formats. Received: fmt={fmt.name}, axis={axis}, "
            f"scale={scale}."
        )
    row = ops.convert_to_tensor(fmt.row(normalized=scale is None))
    codebook = codebook_table([fmt], normalized=scale is None)
    if codebook is not None:
        codebook = ops.convert_to_tensor(codebook[0])
    clips = scale is not None
    if scale is None:
        scale = absmax_scale(x, row, axis)
    else:
        scale = ops.stop_gradient(ops.cast(scale, "float32"))
    if fmt.block_size:
        rank = len(x.shape)
        axes = [rank - 1] if axis is None else other_axes(rank, axis)
        values, _ = quantize_blocks(x, row, scale, axes)
    else:
        options = (None, codebook, None)
        values = _straight_through(_values, x, row, scale, options, None, clips)
    return ops.cast(values, dtype)


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


def other_axes(rank: int, axis) -> list[int]:
    """Axes but those that keep a scale of their own."""
    kept = _kept_axes(rank, axis)
    return [a for a in range(rank) if a not in kept]


def _kept_axes(rank, axis) -> tuple[int, ...]:
    if axis is None:
        return ()
    kept = [axis] if isinstance(axis, int) else list(axis)
    if any(not -rank <= a < rank for a in kept):
        raise ValueError(
            f"`axis` must be in [-{rank}, {rank}) for a tensor of rank {rank}. "
            f"Received: axis={axis}."
        )
    return tuple(sorted({a % rank for a in kept}))
