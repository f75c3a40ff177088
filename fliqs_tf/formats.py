"""Number formats as values: what a bit pattern of `b` bits can represent.

A format is three numbers: mantissa bits `M`, lowest exponent `e_min` and
largest value `v_max`. Its grid is the union over exponents `e >= e_min` of the
multiples of `2**(e - M)`, cut at `v_max`; below `2**e_min` the spacing stays
`2**(e_min - M)` (subnormals). A signed integer of `b` bits is the case where
every value is subnormal: step 1 and `v_max = 2**(b - 1) - 1`, so that it
equals the float `E1M(b - 2)` up to scale.

No code is reserved for infinity or NaN unless the name says so (`e4m3` reaches
480, the OCP variant `e4m3fn` 448), subnormals are kept, values saturate.
"""

import dataclasses
import functools
import re

import numpy as np

_FLOAT_NAME = re.compile(r"e([1-9]\d*)m(0|[1-9]\d*)")
_INT_BITS = (2, 3, 4, 5, 6, 7, 8, 16)
_MAX_EXPONENT_BITS = 8
_MAX_MANTISSA_BITS = 10
_FLOAT32_MIN_EXPONENT = -126
_FLOAT32_MAX_EXPONENT = 127


@dataclasses.dataclass(frozen=True)
class Format:
    """A number format.

    Args:
        name: Canonical name, the serial form (`get_format(fmt.name) == fmt`).
        bits: Width in bits, the sign included.
        mantissa_bits: Bits `M` below the leading one.
        min_exponent: Exponent `e_min` of the smallest normal number.
        max_value: Largest representable value `v_max`.
        is_integer: Whether every value is a multiple of one step.
        is_scaled: Whether a tensor is divided by a scale before it is rounded
            (`bf16`, `fp16` and `fp32` are used as they are).
    """

    name: str
    bits: int
    mantissa_bits: int
    min_exponent: int
    max_value: float
    is_integer: bool = False
    is_scaled: bool = True

    def __str__(self) -> str:
        return self.name

    def values(self) -> np.ndarray:
        """Every representable value.

        Returns:
            Ascending float64 array; `-0` and `0` count once.

        Raises:
            ValueError: If the format is wider than 16 bits.
        """
        if self.bits > 16:
            raise ValueError(
                "`values()` lists formats of at most 16 bits. Received: "
                f"{self.name} of {self.bits} bits."
            )
        step = 2.0 ** (self.min_exponent - self.mantissa_bits)
        binade = 2**self.mantissa_bits
        parts = [np.arange(binade) * step]
        exponent = self.min_exponent
        while 2.0**exponent <= self.max_value:
            significands = np.arange(binade, 2 * binade)
            parts.append(significands * 2.0 ** (exponent - self.mantissa_bits))
            exponent += 1
        positive = np.concatenate(parts)
        positive = positive[positive <= self.max_value]
        return np.concatenate([-positive[:0:-1], positive])

    @property
    def unit(self) -> float:
        """Power of two that brings `max_value` into `[1, 2)`.

        `code * unit` is the value in the format's own units; a scale in own
        units times `unit` is the scale of codes. 1 for unscaled formats.
        """
        if not self.is_scaled:
            return 1.0
        return 2.0 ** float(np.floor(np.log2(self.max_value)))

    def row(self, normalized: bool = True) -> np.ndarray:
        """The four numbers that the rounding kernel reads.

        Args:
            normalized: Whether values are counted in multiples of `unit`. A
                power of two changes no bit of the result but keeps the scale
                near the tensor's absmax, where an E8 format's own scale
                (`absmax / 2**128`) would not be a normal float32.

        Returns:
            float32 array `[2**e_min, 2**M, v_max, is_scaled]`, each an exact
            float32.
        """
        shift = int(np.log2(self.unit)) if normalized else 0
        # float32 has neither exponent 128 nor, with subnormals flushed, -127.
        smallest = max(self.min_exponent - shift, _FLOAT32_MIN_EXPONENT)
        top = int(np.floor(np.log2(self.max_value)))
        largest = self.max_value * 2.0**-shift
        if top - shift > _FLOAT32_MAX_EXPONENT:
            largest *= 2.0 ** (_FLOAT32_MAX_EXPONENT - (top - shift))
        return np.array(
            [
                2.0**smallest,
                2.0**self.mantissa_bits,
                largest,
                float(self.is_scaled),
            ],
            np.float32,
        )


def _integer(bits: int) -> Format:
    return Format(
        f"int{bits}",
        bits,
        mantissa_bits=bits - 2,
        min_exponent=bits - 2,
        max_value=float(2 ** (bits - 1) - 1),
        is_integer=True,
    )


def _float(exponent_bits: int, mantissa_bits: int) -> Format:
    bias = 2 ** (exponent_bits - 1) - 1
    max_exponent = 2**exponent_bits - 1 - bias
    return Format(
        f"e{exponent_bits}m{mantissa_bits}",
        1 + exponent_bits + mantissa_bits,
        mantissa_bits=mantissa_bits,
        min_exponent=1 - bias,
        max_value=2.0**max_exponent * (2 - 2.0**-mantissa_bits),
        # One exponent bit leaves only the binade next to the subnormals, whose
        # spacing is theirs: a uniform grid.
        is_integer=False,
    )


_NAMED = {
    "bf16": Format("bf16", 16, 7, -126, 2.0**127 * (2 - 2.0**-7), False, False),
    "fp16": Format("fp16", 16, 10, -14, 65504.0, False, False),
    "fp32": Format(
        "fp32", 32, 23, -126, 2.0**127 * (2 - 2.0**-23), False, False
    ),
    # OCP 8-bit floats (OFP8, 2023): the codes for NaN, and in E5M2 infinity,
    # are not values.
    "e4m3fn": Format("e4m3fn", 8, 3, -6, 448.0),
    "e5m2_ocp": Format("e5m2_ocp", 8, 2, -14, 57344.0),
}


@functools.cache
def _parse(name: str) -> Format | None:
    if name in _NAMED:
        return _NAMED[name]
    if name.startswith("int") and name[3:] in {str(b) for b in _INT_BITS}:
        return _integer(int(name[3:]))
    match = _FLOAT_NAME.fullmatch(name)
    if match:
        exponent_bits, mantissa_bits = int(match[1]), int(match[2])
        if (
            exponent_bits <= _MAX_EXPONENT_BITS
            and mantissa_bits <= _MAX_MANTISSA_BITS
        ):
            return _float(exponent_bits, mantissa_bits)
    return None


def get_format(name: str | Format) -> Format:
    """Returns the format of a name.

    Example:
    >>> get_format("e4m3").max_value
    480.0

    Args:
        name: `"int2"` to `"int8"`, `"int16"`, `"e<E>m<M>"` with 1 to 8
            exponent and 0 to 10 mantissa bits, `"e4m3fn"`, `"e5m2_ocp"`,
            `"bf16"`, `"fp16"` or `"fp32"`; a `Format` is returned as it is.

    Raises:
        ValueError: If no format has this name.
    """
    if isinstance(name, Format):
        return name
    fmt = _parse(name) if isinstance(name, str) else None
    if fmt is None:
        raise ValueError(
            "A format is one of int2..int8, int16, e<E>m<M> (E 1..8, M 0..10), "
            f"{', '.join(sorted(_NAMED))}. Received: {name!r}. Give one of "
            "these names, for example 'int4' or 'e2m1'."
        )
    return fmt
