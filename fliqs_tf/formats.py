"""Number formats as values: what a bit pattern of `b` bits can represent.

A format is three numbers: mantissa bits `M`, lowest exponent `e_min` and
largest value `v_max`. Its grid is the union over exponents `e >= e_min` of the
multiples of `2**(e - M)`, cut at `v_max`; below `2**e_min` the spacing stays
`2**(e_min - M)` (subnormals). A signed integer of `b` bits is the case where
every value is subnormal: step 1 and `v_max = 2**(b - 1) - 1`, so that it
equals the float `E1M(b - 2)` up to scale.

No code is reserved for infinity or NaN unless the name says so (`e4m3` reaches
480, the OCP variant `e4m3fn` 448), subnormals are kept, values saturate.

Two more kinds share the rest of the house. A block format (OCP Microscaling
Formats MX v1.0, 2023) is an element format of which each 32 elements have a
power of two as a scale of their own, stored in 8 bits (E8M0). A codebook is a
list of values (`codebooks.py`).
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
_BLOCK_SIZE = 32
_BLOCK_SCALE_BITS = 8

# The last number of a row: how a tensor is scaled (a codebook as `SCALED`).
UNSCALED, SCALED, BLOCK_SCALED, CODEBOOK = 0.0, 1.0, 2.0, 3.0


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
        block_size: Elements that share a power of two as their scale; 0 for
            formats that leave the scale to the quantizer.
        codebook: The values of a registered format, ascending; empty for
            formats that the three numbers describe.
    """

    name: str
    bits: int
    mantissa_bits: int
    min_exponent: int
    max_value: float
    is_integer: bool = False
    is_scaled: bool = True
    block_size: int = 0
    codebook: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.name

    def values(self) -> np.ndarray:
        """Every representable value.

        Returns:
            Ascending float64 array; `-0` and `0` count once.

        Raises:
            ValueError: If the format is wider than 16 bits.
        """
        if self.codebook:
            return np.array(self.codebook, np.float64)
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
    def storage_bits(self) -> float:
        """Bits of an element with its share of the block's scale."""
        if not self.block_size:
            return float(self.bits)
        return self.bits + _BLOCK_SCALE_BITS / self.block_size

    @property
    def unit(self) -> float:
        """Power of two that brings `max_value` into `[1, 2)`.

        `code * unit` is the value in the format's own units; a scale in own
        units times `unit` is the scale of codes. 1 for unscaled formats.
        """
        if not self.is_scaled:
            return 1.0
        return 2.0 ** float(np.floor(np.log2(self.max_value)))

    def refines(self, other: "Format") -> bool:
        """Whether it is another format with more bits for the mantissa.

        Then both cover the same range, this one in finer steps. True between
        integers, and between floats of the same exponents, both with a scale
        of the same kind; never where a codebook is one of the two.
        """
        is_finer = self.mantissa_bits > other.mantissa_bits
        return is_finer and self._kind == other._kind

    @property
    def _kind(self) -> tuple:
        """What formats share of which one only has finer steps."""
        exponents = () if self.is_integer else (self.min_exponent, self.unit)
        return self.is_integer, self._scaling, exponents

    def row(self, normalized: bool = True) -> np.ndarray:
        """The four numbers that the rounding kernel reads.

        Args:
            normalized: Whether values are counted in multiples of `unit`. A
                power of two changes no bit of the result but keeps the scale
                near the tensor's absmax, where an E8 format's own scale
                (`absmax / 2**128`) would not be a normal float32.

        Returns:
            float32 array `[2**e_min, 2**M, v_max, scaling]`, each an exact
            float32; `scaling` is `UNSCALED`, `SCALED`, `BLOCK_SCALED` or
            `CODEBOOK`.
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
                self._scaling,
            ],
            np.float32,
        )

    @property
    def _scaling(self) -> float:
        if self.block_size:
            return BLOCK_SCALED
        if self.codebook:
            return CODEBOOK
        return SCALED if self.is_scaled else UNSCALED


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


def _block_format(name: str, element: Format) -> Format:
    return dataclasses.replace(element, name=name, block_size=_BLOCK_SIZE)


# OCP MX v1.0, table 1. The integer has 6 bits behind the point, and -2, which
# has no counterpart, is left out.
_NAMED |= {
    "mxfp8_e4m3": _block_format("mxfp8_e4m3", _NAMED["e4m3fn"]),
    "mxfp8_e5m2": _block_format("mxfp8_e5m2", _NAMED["e5m2_ocp"]),
    "mxfp6_e3m2": _block_format("mxfp6_e3m2", _float(3, 2)),
    "mxfp6_e2m3": _block_format("mxfp6_e2m3", _float(2, 3)),
    "mxfp4": _block_format("mxfp4", _float(2, 1)),
    "mxint8": Format(
        "mxint8", 8, 6, 0, 127 / 64, is_integer=True, block_size=_BLOCK_SIZE
    ),
}
_REGISTERED: dict[str, Format] = {}


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
    fmt = None
    if isinstance(name, str):
        fmt = _REGISTERED.get(name) or _parse(name)
    if fmt is None:
        named = sorted({**_NAMED, **_REGISTERED})
        raise ValueError(
            "A format is one of int2..int8, int16, e<E>m<M> (E 1..8, M 0..10), "
            f"{', '.join(named)}. Received: {name!r}. Give one of these names, "
            "for example 'int4' or 'e2m1', or add your own with "
            "`fliqs.register_format`."
        )
    return fmt


def register(fmt: Format) -> None:
    """Makes `get_format` know a format; see `fliqs.register_format`.

    Raises:
        ValueError: If a format of this name exists.
    """
    if fmt.name in _REGISTERED or _parse(fmt.name) is not None:
        raise ValueError(
            "A new format needs a name that no format has. Received: "
            f"name={fmt.name!r}. Choose another."
        )
    _REGISTERED[fmt.name] = fmt
