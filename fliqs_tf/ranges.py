"""Where the scale of a layer's input comes from: statistics, and grids.

Limits are one number (the largest magnitude) for symmetric grids, and the pair
`low, high` with `low <= 0 <= high` for others.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from fliqs_tf import numerics
from fliqs_tf.choices import check_choice
from fliqs_tf.formats import Format

RANGES = ("dynamic", "ema", "percentile", "lsq")
SIGNEDNESS = ("symmetric", "unsigned", "affine")
# Enough for a tail of one in a thousand, and quick to sort.
_SAMPLE = 2**16
# Sizes have few prime factors: fewer odd numbers in a row all share one.
_CANDIDATES = 32


def limits_of(x, signedness: str, percentile: float | None = None):
    """Limits of the values of a tensor.

    Args:
        x: Floating tensor `(...)`.
        signedness: One of `SIGNEDNESS`.
        percentile: Share of the values within the limits, in per cent (of the
            magnitudes if symmetric, and else at either end); `None` for all.
            It is taken from some 65,536 elements of larger tensors, of all
            channels and places; where it is 0, the limits are those of all
            of these.

    Returns:
        float32 tensor, a scalar if symmetric and else `(2,)`. No gradient.
    """
    if percentile is None and signedness == "symmetric":
        return ops.reshape(numerics.absmax(x), ())
    x = ops.cast(ops.stop_gradient(ops.convert_to_tensor(x)), "float32")
    if percentile is None:
        ends = ops.stack([ops.min(x), ops.max(x)])
    else:
        x = _sample(x)
        share = percentile / 100.0
        if signedness == "symmetric":
            x = ops.abs(x)
            limit = ops.quantile(x, share)
            return ops.where(limit > 0, limit, ops.max(x))
        ends = ops.quantile(x, [1.0 - share, share])
        whole = ops.stack([ops.min(x), ops.max(x)])
        ends = ops.where(ops.any(ends != 0), ends, whole)
    # Zero is always within, and always a value of the grid.
    return ops.stack([ops.minimum(ends[0], 0.0), ops.maximum(ends[1], 0.0)])


def _sample(x):
    """Every k-th element, flat.

    A k with a factor in common with the size of an axis would meet some places
    of that axis only: the next one that has none.
    """
    sizes = {size for size in x.shape[1:] if size}
    factors = [
        factor
        for factor in range(2, max(sizes, default=1) + 1)
        if any(size % factor == 0 for size in sizes)
    ]
    x = ops.reshape(x, (-1,))
    k = ops.shape(x)[0] // _SAMPLE // 2 * 2 + 1
    if factors:
        steps = k + 2 * np.arange(_CANDIDATES, dtype="int32")
        is_prime_to = ops.all(steps[:, None] % factors != 0, axis=1)
        k = ops.take(steps, ops.argmax(ops.cast(is_prime_to, "int32")))
    return x[::k]


def first_learned_limit(x, levels: int):
    """The limit that a learned range starts from.

    `min(absmax, 2 mean|x| sqrt(Q))`: the step `2 mean|x| / sqrt(Q)` of LSQ
    (Esser et al. 2020, section 2.1) times `Q`, and no more than is needed.

    Args:
        x: Floating tensor, the first batch.
        levels: Number `Q` of positive values of the narrowest format.
    """
    x = ops.cast(ops.stop_gradient(x), "float32")
    limit = 2.0 * ops.mean(ops.abs(x)) * float(levels) ** 0.5
    return ops.minimum(limits_of(x, "symmetric"), limit)


def grid_of(limits, row, signedness: str, is_integer):
    """Scale and ends of the grid that limits ask for.

    Symmetric, and for all but integers: `scale = limit / v_max`. Unsigned
    integers: `scale = high / n` with `n = 2^b - 1`, codes `0..n`. Affine:
    `scale = (high - low) / n`, codes `-z..n - z` with the zero point
    `z = round(-low / scale)` already subtracted, so that
    `codes * scale` is the value.

    Args:
        limits: What `limits_of` returns.
        row: float32 `(4,)`, normalised; an integer's is that of `nonnegative`.
        signedness: One of `SIGNEDNESS`.
        is_integer: Boolean scalar: whether the row is an integer's.

    Returns:
        `(scale, bounds)`: float32 scalar, and float32 `(2,)` in normalised
        codes; `None` if symmetric.
    """
    if signedness == "symmetric":
        return numerics.range_scale(limits, row), None
    low, high = limits[0], limits[1]
    symmetric = numerics.range_scale(ops.maximum(-low, high), row)
    if signedness == "unsigned":
        low = ops.zeros_like(low)
    scale = numerics.range_scale(high - low, row)
    step = row[0] / row[1]
    zero = ops.clip(ops.round(-low / scale / step) * step, 0.0, row[2])
    bounds = ops.stack([-zero, row[2] - zero])
    whole = ops.stack([-row[2], row[2]])
    return (
        ops.where(is_integer, scale, symmetric),
        ops.where(is_integer, ops.stop_gradient(bounds), whole),
    )


def has_step(fmt: Format) -> bool:
    """Whether all values of a format are multiples of one step."""
    return fmt.is_integer and not fmt.block_size


def nonnegative(fmt: Format) -> Format:
    """An integer's codes `0..2^b - 1`, as the grid of one more bit and sign."""
    if not has_step(fmt):
        return fmt
    return dataclasses.replace(
        fmt,
        mantissa_bits=fmt.bits - 1,
        min_exponent=fmt.bits - 1,
        max_value=2.0**fmt.bits - 1.0,
    )


def positive_values(fmt: Format) -> int:
    """Number of positive values, about; that of codes for nonnegative ones."""
    return (
        int(fmt.max_value) if has_step(fmt) else max(1, 2 ** (fmt.bits - 1) - 1)
    )


def let_scale_learn(codes, x, scale, row, bounds):
    """Adds to codes the gradient in their scale, and the value 0.

    Of `codes = round(clip(x / s))`, straight through: `-x / s^2`, and 0 where
    it clips. With the product `codes * s` that is LSQ's `q - x / s` (in steps),
    and the bound where it clips.

    Args:
        codes: float32 tensor `(...)`.
        x: The tensor that was rounded.
        scale: float32 scalar, with its gradient.
        row: float32 `(4,)`.
        bounds: See `numerics.round_to_row`.
    """
    y = ops.stop_gradient(ops.cast(x, "float32") / scale)
    low, high = (-row[2], row[2]) if bounds is None else (bounds[0], bounds[1])
    inside = ops.logical_and(y >= low, y <= high)
    slope = ops.where(inside, -y, 0.0)
    return codes + slope * (scale / ops.stop_gradient(scale) - 1.0)


def scale_gradient(value, factor):
    """The value itself; its gradient times a factor."""
    scaled = value * factor
    return scaled + ops.stop_gradient(value - scaled)


def check_range(range: str) -> None:
    """Raises unless a range is one of `RANGES`."""
    check_choice("range", range, RANGES)


def check(range: str, signedness: str, percentile: float) -> None:
    """Raises unless the options of an input quantizer go together."""
    check_choice("signedness", signedness, SIGNEDNESS)
    if range == "lsq" and signedness == "affine":
        raise ValueError(
            "A learned range is one number, which affine grids have two of. "
            "Received: range='lsq', signedness='affine'. Use 'unsigned' or "
            "another range."
        )
    if not 50.0 < percentile <= 100.0:
        raise ValueError(
            "`percentile` must be in (50, 100]. Received: "
            f"percentile={percentile}."
        )


def scalar_weight(layer: keras.layers.Layer, name: str, shape, trainable):
    """A float32 variable of zeros that replicas average."""
    return layer.add_weight(
        name=name,
        shape=shape,
        dtype="float32",
        initializer="zeros",
        trainable=trainable,
        aggregation="mean",
        # A range is float32 under mixed precision too.
        autocast=False,
    )
