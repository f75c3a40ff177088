"""One elementwise kernel that rounds to any format.

With scale `s` and `y = x / s`

    e = max(floor(log2|y|), e_min)
    q = clip(round_half_even(y / 2^(e - M)) * 2^(e - M), -v_max, v_max) * s

`2^floor(log2|y|)` is read from the exponent bits of `y`, so it is exact. The
format enters as data (a row of four floats), not as code: a sampled format is
a gathered row, without a branch, and costs the same for 2 formats as for 16.
Block formats differ in `s` only, which a row's last number selects. Codebooks
have a second table, which only spaces with a codebook carry.

Stochastic rounding takes the upper neighbour with the probability that makes
the mean of the result `y`: `floor(t) + [u < t - floor(t)]` for `t` in steps and
`u` uniform in [0, 1) (Gupta et al. 2015, arXiv 1502.02551).
"""

from keras import ops

from fliqs_tf import fusion

_EXPONENT_BITS = 0x7F800000
# Keeps a quotient of zeros finite.
_TINY = 2.0**-120


def round_to_row(y, row, bounds=None, noise=None):
    """Rounds scaled values to the grid of a row, half to even.

    Args:
        y: float32 tensor `(...)`.
        row: float32 `(4,)`: `[2**e_min, 2**M, v_max, scaling]`.
        bounds: float32 `(2,)`, the ends `low, high` of the grid, which lie on
            it; `None` for `-v_max, v_max`.
        noise: Uniform numbers in [0, 1), for stochastic rounding.

    Returns:
        float32 tensor `(...)` of values on the grid.
    """
    smallest, steps = row[0], row[1]
    low, high = (-row[2], row[2]) if bounds is None else (bounds[0], bounds[1])
    # Clipping first is the same as clipping last (rounding is monotone and the
    # ends are on the grid) and keeps infinity out of the division.
    y = ops.clip(y, low, high)
    binade = ops.maximum(power_of_two(y), smallest)
    # y / binade is in (-2, 2): no step of the kernel can over- or underflow.
    y = y / binade * steps
    if noise is None:
        y = ops.round(y)
    else:
        below = ops.floor(y)
        y = below + ops.cast(noise < y - below, "float32")
    # A power of two: its reciprocal is exact, and one division less an element
    # brings the kernel to the speed of memory.
    return y * (1.0 / steps) * binade


def round_to_codebook(y, codebook, noise=None):
    """Rounds scaled values to the nearest level, at a tie to the lower one.

    Args:
        y: float32 tensor `(...)`.
        codebook: float32 `(2, levels)`, see `codebooks.codebook_table`.
        noise: Uniform numbers in [0, 1), for stochastic rounding.
    """
    middles, levels = codebook[0], codebook[1]
    if noise is None:
        found = ops.searchsorted(middles[:-1], ops.reshape(y, (-1,)))
        nearest = ops.reshape(ops.take(levels, found), ops.shape(y))
    else:
        y = ops.clip(y, levels[0], levels[-1])
        found = ops.searchsorted(levels[1:-1], ops.reshape(y, (-1,)), "right")
        below, above = (
            ops.reshape(ops.take(levels, found + i), ops.shape(y))
            for i in (0, 1)
        )
        # The last level repeats up to the width of the table.
        share = (y - below) / ops.maximum(above - below, _TINY)
        nearest = ops.where(noise < share, above, below)
    return ops.where(ops.isnan(y), y, nearest)


def power_of_two(x):
    """`2**floor(log2|x|)`, 0 for 0."""
    bits = ops.bitwise_and(fusion.view(x, "int32"), _EXPONENT_BITS)
    return fusion.view(bits, "float32")
