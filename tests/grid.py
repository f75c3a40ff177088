"""Rounding by search in a list of values: what the kernel must equal.

Shares nothing with the library: values are decoded bit pattern by bit pattern,
and a number is rounded by looking for its neighbours in the list.
"""

import numpy as np


def decode(exponent_bits, mantissa_bits):
    """Values `>= 0` of a float of which every code is finite, in code order.

    `2^(1 - bias) * m / 2^M` where the exponent's bits are all 0, else
    `2^(e - bias) * (1 + m / 2^M)`, with `bias = 2^(E - 1) - 1`.
    """
    codes = np.arange(2 ** (exponent_bits + mantissa_bits))
    exponent = codes >> mantissa_bits
    mantissa = (codes & (2**mantissa_bits - 1)) / 2.0**mantissa_bits
    bias = 2 ** (exponent_bits - 1) - 1
    normal = 2.0 ** (exponent - bias) * (1 + mantissa)
    return np.where(exponent == 0, 2.0 ** (1 - bias) * mantissa, normal)


def integers(bits):
    """Magnitudes of a symmetric signed integer."""
    return np.arange(2.0 ** (bits - 1))


def round_to(magnitudes, y):
    """Rounds to the nearest of the magnitudes and their negatives, saturating.

    A tie goes to the even multiple of the spacing, which is the even mantissa.
    Where there is no mantissa bit, the neighbours are 1 and 2 of a spacing, and
    the tie goes up.

    Args:
        magnitudes: Ascending float64 values from 0 on, in code order.
        y: Array.

    Returns:
        float64 array; NaN stays NaN.
    """
    y = np.asarray(y, np.float64)
    size = np.minimum(np.abs(y), magnitudes[-1])
    high = np.clip(np.searchsorted(magnitudes, size), 1, len(magnitudes) - 1)
    low = high - 1
    below, above = size - magnitudes[low], magnitudes[high] - size
    spacing = magnitudes[high] - magnitudes[low]
    odd = (magnitudes[low] / spacing) % 2 == 1
    take_high = (above < below) | ((above == below) & odd)
    nearest = magnitudes[np.where(take_high, high, low)]
    return np.where(np.isnan(y), np.nan, np.copysign(nearest, y))


def probes(magnitudes, rng):
    """float32 numbers that try a grid: on it, between, at ties, beyond it."""
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    middles = middles.astype(np.float32)
    spread = rng.standard_normal(2000) * magnitudes[-1] / 2
    small = rng.standard_normal(2000) * magnitudes[1] * 3
    found = np.concatenate(
        [
            magnitudes,
            middles,
            np.nextafter(middles, np.float32(0)),
            np.nextafter(middles, np.float32(np.inf)),
            spread,
            small,
            magnitudes[-1] * np.array([1.01, 1.5, 2.0, 100.0]),
        ]
    ).astype(np.float32)
    found = found[np.isfinite(found)]
    # TensorFlow may take subnormal float32 numbers for zero.
    tiny = (found != 0) & (np.abs(found) < np.finfo(np.float32).tiny)
    found = found[~tiny]
    return np.concatenate([found, -found])


# Largest values of the formats that leave codes out.
_TOPS = {"e4m3fn": 448.0, "e5m2_ocp": 57344.0}


def magnitudes_of(name):
    """Values `>= 0` of a scaled format, in code order, from its name."""
    if name.startswith("int"):
        return integers(int(name[3:]))
    base = {"e4m3fn": "e4m3", "e5m2_ocp": "e5m2"}.get(name, name)
    found = decode(*(int(part) for part in base[1:].split("m")))
    return found[found <= _TOPS.get(name, np.inf)]
