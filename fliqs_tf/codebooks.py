"""Formats that are a list of values, such as NF4."""

import re
from collections.abc import Sequence

import numpy as np

from fliqs_tf.formats import Format
from fliqs_tf.formats import get_format
from fliqs_tf.formats import register

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MAX_LEVELS = 256


def register_format(
    name: str, values: Sequence[float], bits: int | None = None
) -> Format:
    """Adds a format of your own: a codebook of values.

    A scaled tensor is rounded to the nearest value, at a tie to the lower one.
    The scale is that of other formats: the tensor's (or channel's) largest
    magnitude over the codebook's. The name then works wherever a format's
    does; whoever loads a model with it must have registered it before.

    Example:
    >>> nf4 = fliqs.register_format("nf4", [
    ...     -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
    ...     0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0])
    >>> nf4.bits
    4
    >>> search = fliqs.SearchModel(model, space=("nf4", "int8"))

    Args:
        name: New name: a lower-case letter, then letters, digits and "_".
        values: 2 to 256 different finite numbers, in any order. Without 0
            among them, zeros do not stay zero.
        bits: Width in bits, for the costs. Defaults to what numbers the
            values.

    Returns:
        The format.

    Raises:
        ValueError: If the name is taken or of another form, the values are no
            codebook, or `bits` cannot number them.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            "A format's name is a lower-case letter, then letters, digits and "
            f"'_'. Received: name={name!r}."
        )
    levels = np.unique(np.asarray(values, np.float32).astype(np.float64))
    if (
        np.ndim(values) != 1
        or len(levels) != len(values)
        or not 2 <= len(levels) <= _MAX_LEVELS
        or not np.all(np.isfinite(levels))
    ):
        raise ValueError(
            f"A codebook is a list of 2 to {_MAX_LEVELS} finite numbers that "
            f"differ in float32. Received: values={values!r}."
        )
    needed = int(np.ceil(np.log2(len(levels))))
    bits = needed if bits is None else bits
    if not isinstance(bits, int) or bits < needed:
        raise ValueError(
            f"{len(levels)} values need at least {needed} bits. Received: "
            f"bits={bits!r}."
        )
    fmt = Format(
        name,
        bits,
        # Not read: the values say all.
        mantissa_bits=0,
        min_exponent=0,
        max_value=float(np.abs(levels).max()),
        codebook=tuple(levels.tolist()),
    )
    register(fmt)
    return fmt


def codebook_table(
    formats: Sequence[str | Format], normalized: bool = True
) -> np.ndarray | None:
    """Stacks what rounding to codebooks reads.

    Args:
        formats: Formats, some of them codebooks.
        normalized: Whether values are in multiples of the format's `unit`.

    Returns:
        float32 `(formats, 2, levels)`: levels `[1]`, ascending, the last one
        repeated; and `[0, i]` the largest float32 number that is not above the
        middle of levels `i` and `i + 1`, so that comparing with it decides
        exactly. Zeros for other formats; `None` if all are others.
    """
    options = [get_format(fmt) for fmt in formats]
    width = max(len(fmt.codebook) for fmt in options)
    if not width:
        return None
    table = np.zeros((len(options), 2, width), np.float32)
    for entry, fmt in zip(table, options, strict=True):
        if fmt.codebook:
            levels = fmt.values() / (fmt.unit if normalized else 1.0)
            levels = np.pad(levels, (0, width - len(levels)), "edge")
            # Exact: float32 numbers of like size fill a float64's 53 bits.
            middles = (levels[:-1] + levels[1:]) / 2
            below = middles.astype(np.float32)
            above = below > middles
            below[above] = np.nextafter(below[above], np.float32(-np.inf))
            entry[0, :-1], entry[1] = below, levels
    return table
