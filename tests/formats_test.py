"""Formats against ml_dtypes, the paper's table and decoded bit patterns."""

import itertools
import os
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import formats
from fliqs_tf.formats import get_format
from fliqs_tf.space import get_space
from tests import grid

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_EXPONENT_BITS = range(1, 9)
_MANTISSA_BITS = range(11)
_ALL_FLOATS = [(e, m) for e in _EXPONENT_BITS for m in _MANTISSA_BITS]

# Bits, largest value, smallest normal and smallest subnormal (None: there are
# none) of the paper's floats.
_PAPER = {
    "e1m2": (4, 3.5, 2.0, 0.5),
    "e2m1": (4, 6.0, 1.0, 0.5),
    "e3m0": (4, 16.0, 0.25, None),
    "e1m3": (5, 3.75, 2.0, 0.25),
    "e2m2": (5, 7.0, 1.0, 0.25),
    "e3m1": (5, 24.0, 0.25, 0.125),
    "e4m0": (5, 256.0, 2.0**-6, None),
    "e1m4": (6, 3.875, 2.0, 0.125),
    "e2m3": (6, 7.5, 1.0, 0.125),
    "e3m2": (6, 28.0, 0.25, 0.0625),
    "e4m1": (6, 384.0, 2.0**-6, 2.0**-7),
    "e2m4": (7, 7.75, 1.0, 2.0**-4),
    "e3m3": (7, 30.0, 0.25, 2.0**-5),
    "e4m2": (7, 448.0, 2.0**-6, 2.0**-8),
    "e5m1": (7, 98304.0, 2.0**-14, 2.0**-15),
    "e2m5": (8, 7.875, 1.0, 2.0**-5),
    "e3m4": (8, 31.0, 0.25, 2.0**-6),
    "e4m3": (8, 480.0, 2.0**-6, 2.0**-9),
    "e5m2": (8, 114688.0, 2.0**-14, 2.0**-16),
    "bf16": (16, 2.0**127 * 1.9921875, 2.0**-126, 2.0**-133),
    "fp16": (16, 65504.0, 2.0**-14, 2.0**-24),
    "e4m3fn": (8, 448.0, 2.0**-6, 2.0**-9),
    "e5m2_ocp": (8, 57344.0, 2.0**-14, 2.0**-16),
}


def finite_values(dtype):
    """Every finite value of a dtype, from all its bit patterns."""
    if np.dtype(dtype).itemsize == 2:
        codes = np.arange(2**16, dtype=np.uint16)
    else:
        codes = np.arange(2**8, dtype=np.uint8)
    with np.errstate(invalid="ignore"):  # Codes of NaN.
        values = codes.view(dtype).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


class FormatTest(parameterized.TestCase):
    @parameterized.parameters(
        ("e4m3fn", ml_dtypes.float8_e4m3fn),
        ("e2m3", ml_dtypes.float6_e2m3fn),
        ("e3m2", ml_dtypes.float6_e3m2fn),
        ("e2m1", ml_dtypes.float4_e2m1fn),
        ("e5m2_ocp", ml_dtypes.float8_e5m2),
        ("bf16", ml_dtypes.bfloat16),
        ("fp16", np.float16),
        ("int4", ml_dtypes.int4),
        ("int2", ml_dtypes.int2),
        ("int8", np.int8),
        ("int16", np.int16),
    )
    def test_values_are_those_of_the_dtype(self, name, dtype):
        expected = finite_values(dtype)
        if name.startswith("int"):
            # Symmetric: the most negative code has no counterpart.
            expected = expected[1:]
        np.testing.assert_array_equal(get_format(name).values(), expected)

    @parameterized.parameters(
        ("e4m3", ml_dtypes.float8_e4m3, 240.0),
        ("e5m2", ml_dtypes.float8_e5m2, 57344.0),
        ("e3m4", ml_dtypes.float8_e3m4, 15.5),
    )
    def test_values_below_the_reserved_codes(self, name, dtype, largest):
        expected = finite_values(dtype)
        self.assertEqual(expected[-1], largest)
        values = get_format(name).values()
        np.testing.assert_array_equal(
            values[np.abs(values) <= largest], expected
        )

    @parameterized.parameters(*_EXPONENT_BITS)
    def test_floats_are_their_decoded_bit_patterns(self, exponent):
        for mantissa in _MANTISSA_BITS:
            with self.subTest(mantissa=mantissa):
                self._check_float(exponent, mantissa)

    def _check_float(self, exponent, mantissa):
        fmt = get_format(f"e{exponent}m{mantissa}")
        magnitudes = grid.decode(exponent, mantissa)
        self.assertEqual(fmt.bits, 1 + exponent + mantissa)
        self.assertEqual(fmt.max_value, magnitudes[-1])
        self.assertEqual(fmt.mantissa_bits, mantissa)
        self.assertTrue(fmt.is_scaled)
        bias = 2 ** (exponent - 1) - 1
        self.assertEqual(fmt.min_exponent, 1 - bias)
        self.assertEqual(
            fmt.max_value,
            2.0 ** (2**exponent - 1 - bias) * (2 - 2.0**-mantissa),
        )
        if fmt.bits > 16:
            with self.assertRaisesRegex(ValueError, "Received: e"):
                fmt.values()
            return
        values = fmt.values()
        self.assertEqual(values.dtype, np.float64)
        # Every code is a value; -0 and 0 are one.
        self.assertLen(values, 2**fmt.bits - 1)
        np.testing.assert_array_equal(
            values, np.concatenate([-magnitudes[:0:-1], magnitudes])
        )

    def test_table_of_the_paper(self):
        for name, (bits, largest, normal, subnormal) in _PAPER.items():
            with self.subTest(name):
                fmt = get_format(name)
                self.assertEqual(fmt.bits, bits)
                self.assertEqual(fmt.max_value, largest)
                self.assertEqual(2.0**fmt.min_exponent, normal)
                positive = fmt.values()
                positive = positive[positive > 0]
                self.assertEqual(positive[0], subnormal or normal)
                self.assertEqual(positive[-1], largest)

    def test_the_4_bit_float_by_hand(self):
        positive = [0.5, 1, 1.5, 2, 3, 4, 6]
        np.testing.assert_array_equal(
            get_format("e2m1").values(),
            [*(-v for v in positive[::-1]), 0, *positive],
        )

    @parameterized.parameters(2, 3, 4, 5, 6, 7, 8)
    def test_integer_is_a_float_with_one_exponent_bit(self, bits):
        integer, other = get_format(f"int{bits}"), get_format(f"e1m{bits - 2}")
        self.assertEqual(integer.bits, bits)
        self.assertEqual(other.bits, bits)
        self.assertTrue(integer.is_integer)
        largest = 2 ** (bits - 1) - 1
        np.testing.assert_array_equal(
            integer.values(), np.arange(-largest, largest + 1)
        )
        # The step of E1M(b-2) is its smallest subnormal, or at M = 0 its only
        # value, 2.
        step = 2.0 ** (1 - (bits - 2))
        np.testing.assert_array_equal(other.values(), integer.values() * step)

    def test_wide_formats(self):
        self.assertEqual(get_format("int16").max_value, 32767.0)
        self.assertEqual(get_format("int16").bits, 16)
        self.assertEqual(get_format("fp32").bits, 32)
        self.assertEqual(
            get_format("fp32").max_value, float(np.finfo(np.float32).max)
        )
        with self.assertRaisesRegex(ValueError, "Received: fp32 of 32 bits"):
            get_format("fp32").values()

    def test_only_wide_floats_are_used_as_they_are(self):
        for name in ("bf16", "fp16", "fp32"):
            self.assertFalse(get_format(name).is_scaled)
        for name in ("int2", "int16", "e2m1", "e8m7", "e5m10", "e4m3fn"):
            self.assertTrue(get_format(name).is_scaled)

    @parameterized.parameters(
        ("int8", "int4", True),
        ("int4", "int4", False),
        ("int4", "int8", False),
        ("e3m2", "e3m1", True),
        ("e4m1", "e3m1", False),
        ("e2m5", "int4", False),
        ("mxfp6_e2m3", "e2m1", False),
        ("mxfp6_e2m3", "mxfp4", True),
        ("fp16", "bf16", False),
        ("fp32", "bf16", True),
    )
    def test_refines(self, name, other, expected):
        found = get_format(name).refines(get_format(other))
        self.assertEqual(found, expected)

    def test_a_finer_float_has_the_values_of_the_coarser_one(self):
        names = get_space("fp_l")
        pairs = list(itertools.permutations(map(get_format, names), 2))
        refined = [(a, b) for a, b in pairs if a.refines(b)]
        # By exponent bits: 5, 5, 4 and 2 formats in a chain.
        self.assertLen(refined, 10 + 10 + 6 + 1)
        for fine, coarse in refined:
            self.assertContainsSubset(coarse.values(), fine.values())

    def test_impossible_name_is_refused(self):
        integers = ("int1", "int9", "int0", "int15", "int08", "int-4")
        floats = (
            "e0m3",
            "e9m2",
            "e4m11",
            "e04m3",
            "e4m03",
            "e4",
            "m3",
            "e4m-1",
        )
        spelt = (
            "int",
            "e4m-1",
            "uint8",
            "E4M3",
            "e4m3 ",
            " e4m3",
            "e4m3\n",
            "float32",
            "",
        )
        others = (None, 4, 4.0, ("int4",), ["int4"])
        for name in (*integers, *floats, *spelt, *others):
            with self.subTest(repr(name)):
                with self.assertRaises(ValueError) as context:
                    get_format(name)
                message = str(context.exception)
                self.assertIn(f"Received: {name!r}.", message)
                self.assertIn("int2..int8", message)

    def test_name_round_trip(self):
        names = [
            *(f"int{b}" for b in (2, 3, 4, 5, 6, 7, 8, 16)),
            *(f"e{e}m{m}" for e, m in _ALL_FLOATS),
            *("bf16", "fp16", "fp32", "e4m3fn", "e5m2_ocp"),
        ]
        for name in names:
            fmt = get_format(name)
            self.assertEqual(fmt.name, name)
            self.assertEqual(str(fmt), name)
            self.assertEqual(get_format(fmt.name), fmt)
            self.assertIs(get_format(fmt), fmt)
            self.assertEqual(hash(get_format(name)), hash(fmt))
        self.assertLen({get_format(name) for name in names}, len(names))

    def test_format_is_frozen(self):
        with self.assertRaises(AttributeError):
            get_format("int4").bits = 5

    @parameterized.parameters("int2", "int8", "e2m1", "e8m7", "e3m0", "e1m0")
    def test_unit_brings_the_largest_value_below_two(self, name):
        fmt = get_format(name)
        ratio = fmt.max_value / fmt.unit
        self.assertTrue(1.0 <= ratio < 2.0)
        self.assertEqual(np.log2(fmt.unit), np.round(np.log2(fmt.unit)))

    def test_rows_by_hand(self):
        # INT4: unit 4. Step 1/4 = 2^(e_min - M), so e_min = 0 at M = 2.
        np.testing.assert_array_equal(
            get_format("int4").row(), np.float32([1, 4, 1.75, 1])
        )
        np.testing.assert_array_equal(
            get_format("int4").row(normalized=False), np.float32([4, 4, 7, 1])
        )
        # E4M3: unit 256, e_min -6 - 8.
        np.testing.assert_array_equal(
            get_format("e4m3").row(), np.float32([2.0**-14, 8, 1.875, 1])
        )
        np.testing.assert_array_equal(
            get_format("fp32").row(),
            np.float32([2.0**-126, 2.0**23, np.finfo(np.float32).max, 0]),
        )

    def test_needs_no_keras(self):
        code = (
            "import importlib.util as u, sys\n"
            "spec = u.spec_from_file_location('f', sys.argv[1])\n"
            "module = u.module_from_spec(spec)\n"
            "sys.modules['f'] = module\n"
            "spec.loader.exec_module(module)\n"
            "assert module.get_format('e4m3').max_value == 480\n"
            "print([m for m in ('keras', 'tensorflow') if m in sys.modules])"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, os.fspath(formats.__file__)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertEqual(result.stdout.strip(), "[]")


class GridTest(parameterized.TestCase):
    """The reference of other tests is itself held to ml_dtypes' casts."""

    @parameterized.parameters(
        (4, 3, 448.0, ml_dtypes.float8_e4m3fn),
        (2, 3, 7.5, ml_dtypes.float6_e2m3fn),
        (3, 2, 28.0, ml_dtypes.float6_e3m2fn),
        (2, 1, 6.0, ml_dtypes.float4_e2m1fn),
    )
    def test_reference_rounds_as_ml_dtypes(self, exponent, mantissa, top, cast):
        magnitudes = grid.decode(exponent, mantissa)
        magnitudes = magnitudes[magnitudes <= top]
        x = grid.probes(magnitudes, np.random.default_rng(0))
        np.testing.assert_array_equal(
            grid.round_to(magnitudes, x),
            np.clip(x, -top, top).astype(cast).astype(np.float64),
        )


if __name__ == "__main__":
    absltest.main()
