"""The rounding kernel against ml_dtypes and a search in the grid."""

import keras
import ml_dtypes
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

from fliqs_tf import numerics
from fliqs_tf.formats import get_format
from fliqs_tf.numerics import fake_quant
from fliqs_tf.space import SPACES
from tests import grid

_CASTS = {
    "e4m3fn": (ml_dtypes.float8_e4m3fn, 448.0),
    "e5m2_ocp": (ml_dtypes.float8_e5m2, 57344.0),
    "e2m3": (ml_dtypes.float6_e2m3fn, 7.5),
    "e3m2": (ml_dtypes.float6_e3m2fn, 28.0),
    "e2m1": (ml_dtypes.float4_e2m1fn, 6.0),
}
_INTEGERS = ("int2", "int3", "int4", "int5", "int6", "int7", "int8", "int16")
# Every float that the spaces have, the corners of the family, and the OCP ones.
_FLOATS = (
    *SPACES["fp_l"],
    *("e1m0", "e1m2", "e1m10", "e5m10", "e6m3", "e7m0", "e3m10"),
    *("e4m3fn", "e5m2_ocp"),
)
# The exponents of these do not fit in a scaled float32.
_WIDE = ("e8m0", "e8m3", "e8m7", "e7m8")


def quantized(x, *args, **kwargs):
    return ops.convert_to_numpy(fake_quant(x, *args, **kwargs))


def assert_bits_equal(actual, desired):
    """Equal to the bit, but for the sign of zero."""
    np.testing.assert_array_equal(actual, desired)


class GivenScaleTest(parameterized.TestCase):
    @parameterized.parameters(*_CASTS)
    def test_equals_the_cast_of_ml_dtypes(self, name):
        cast, top = _CASTS[name]
        x = grid.probes(grid.magnitudes_of(name), np.random.default_rng(0))
        expected = np.clip(x, -top, top).astype(cast).astype(np.float32)
        assert_bits_equal(quantized(x, name, scale=1.0), expected)
        # A power of two moves the grid, and nothing else.
        assert_bits_equal(
            quantized(x * np.float32(0.25), name, scale=0.25), expected * 0.25
        )

    @parameterized.parameters(*_INTEGERS)
    def test_integer_equals_clipped_round_half_even(self, name):
        top = 2.0 ** (int(name[3:]) - 1) - 1
        x = grid.probes(grid.magnitudes_of(name), np.random.default_rng(1))
        assert_bits_equal(
            quantized(x, name, scale=1.0), np.clip(np.round(x), -top, top)
        )

    def test_equals_search_in_the_grid(self):
        rng = np.random.default_rng(2)
        for name in (*_INTEGERS, *_FLOATS):
            magnitudes = grid.magnitudes_of(name)
            x = grid.probes(magnitudes, rng)
            # Not a power of two: the division rounds, as it must in float32.
            for scale in (np.float32(1.0), np.float32(0.3), np.float32(1e-3)):
                with self.subTest(name=name, scale=scale):
                    scaled = x * scale
                    expected = grid.round_to(magnitudes, scaled / scale)
                    assert_bits_equal(
                        quantized(scaled, name, scale=scale),
                        expected.astype(np.float32) * scale,
                    )

    def test_scale_for_each_channel(self):
        x = np.array([[0.4, 0.6, 9.0], [4.0, 6.0, -90.0]], np.float32)
        np.testing.assert_array_equal(
            quantized(x, "int4", scale=np.array([[1.0], [10.0]])),
            [[0.0, 1.0, 7.0], [0.0, 10.0, -70.0]],
        )

    def test_infinity_saturates(self):
        x = np.array([np.inf, -np.inf, 1.0], np.float32)
        np.testing.assert_array_equal(
            quantized(x, "int4", scale=0.5), [3.5, -3.5, 1.0]
        )
        np.testing.assert_array_equal(
            quantized(x, "e4m3", scale=1.0), [480.0, -480.0, 1.0]
        )

    def test_wide_exponents_reach_the_ends_of_float32(self):
        # E8 reaches 2^128; float32 ends just below, where the kernel does.
        x = np.float32([2.0**-126, 2.0**-100 * 1.0625, 2.0**127 * 1.0625])
        np.testing.assert_array_equal(
            quantized(x, "e8m3", scale=1.0),
            np.float32([2.0**-126, 2.0**-100, 2.0**127]),
        )

    @parameterized.parameters(
        dict(fmt="int4", axis=0, scale=1.0),
        dict(fmt="bf16", scale=1.0),
        dict(fmt="fp32", scale=1.0),
    )
    def test_impossible_scale_is_refused(self, **kwargs):
        with self.assertRaisesRegex(ValueError, "Received: fmt="):
            fake_quant(np.ones(3, "float32"), **kwargs)


class AbsmaxTest(parameterized.TestCase):
    def test_example_by_hand(self):
        # Scale 1.4 / 7 = 0.2: 0.5 -> 0 (half to even), -3.5 -> -4, 7.
        np.testing.assert_allclose(
            quantized(np.array([0.1, -0.7, 1.4], "float32"), "int4"),
            [0.0, -0.8, 1.4],
            rtol=1e-6,
        )

    def test_equals_search_in_the_grid(self):
        rng = np.random.default_rng(3)
        for name in (*_INTEGERS, *_FLOATS):
            with self.subTest(name):
                magnitudes = grid.magnitudes_of(name)
                top = magnitudes[-1]
                x = grid.probes(magnitudes, rng)
                x = np.append(x[np.abs(x) <= top], np.float32(top))
                # Subnormal float32 once the largest is below 2: see numerics.
                x = x[(x == 0) | (np.abs(x) / top >= 2.0**-126)]
                # absmax = top: the scale is 1, and every value exact.
                expected = grid.round_to(magnitudes, x).astype(np.float32)
                assert_bits_equal(quantized(x, name), expected)
                assert_bits_equal(quantized(x * 8, name), expected * 8)

    def test_largest_magnitude_is_kept(self):
        rng = np.random.default_rng(4)
        for name in (*_INTEGERS, *_FLOATS, *_WIDE):
            with self.subTest(name):
                x = rng.standard_normal((20, 50)).astype("float32")
                q = quantized(x, name, axis=0)
                np.testing.assert_allclose(
                    np.abs(q).max(1), np.abs(x).max(1), rtol=2e-7
                )

    def test_axis_keeps_a_scale_of_its_own(self):
        x = np.random.default_rng(5).standard_normal((3, 4, 5))
        x = (x * 10.0 ** np.arange(4)[:, None]).astype("float32")
        for axis in (0, 1, 2, -1, -2, -3):
            rows = np.moveaxis(x, axis, 0)
            expected = np.stack([quantized(row, "e2m1") for row in rows])
            np.testing.assert_array_equal(
                quantized(x, "e2m1", axis=axis), np.moveaxis(expected, 0, axis)
            )
        # Several axes.
        np.testing.assert_array_equal(
            quantized(x, "int4", axis=(1, -1))[:, 2, 3],
            quantized(x[:, 2, 3], "int4"),
        )

    def test_no_axis_is_one_scale(self):
        x = np.array([[0.3, 0.1], [7.0, 3.4]], np.float32)
        np.testing.assert_array_equal(
            quantized(x, "int4"), [[0.0, 0.0], [7.0, 3.0]]
        )
        np.testing.assert_array_equal(quantized(np.float32(3), "int4"), 3.0)

    @parameterized.parameters(2, -3, 7)
    def test_axis_outside_the_tensor_is_refused(self, axis):
        with self.assertRaisesRegex(ValueError, f"Received: axis={axis}"):
            fake_quant(np.ones((2, 3), "float32"), "int4", axis=axis)

    def test_wide_exponents_against_float64(self):
        rng = np.random.default_rng(6)
        x = rng.standard_normal(4000) * 2.0 ** rng.integers(-50, 50, 4000)
        x = x.astype(np.float32).astype(np.float64)
        for name in _WIDE:
            with self.subTest(name):
                exponent, mantissa = (int(p) for p in name[1:].split("m"))
                # Far from the ends of its exponents the format is a float of
                # M bits, of numbers relative to `absmax / v_max` (of which
                # only the fraction matters).
                scale = np.abs(x).max() / (2 - 2.0**-mantissa)
                scaled = x / scale
                step = 2.0 ** (np.floor(np.log2(np.abs(scaled))) - mantissa)
                bias = 2 ** (exponent - 1) - 1
                # The lowest binade, once the largest is [1, 2).
                lowest = 1 - bias - (2**exponent - 1 - bias)
                step = np.maximum(step, 2.0 ** (lowest - mantissa))
                expected = np.round(scaled / step) * step * scale
                actual = quantized(x.astype("float32"), name)
                # One number in many lies so close to a tie that the rounding
                # of the scale to float32 decides.
                error = np.abs(actual - expected)
                close = error <= 1e-6 * np.abs(expected) + 1e-30
                self.assertGreater(close.mean(), 0.999)
                self.assertTrue(np.all(error <= 1.001 * step * scale + 1e-30))

    def test_mixed_binades_keep_their_relative_error(self):
        x = (1.3 * 2.0 ** np.arange(-100, 20)).astype("float32")
        q = quantized(x, "e8m3").astype("float64")
        np.testing.assert_array_less(np.abs(q - x) / x, 2.0**-4 + 1e-6)


class UnscaledTest(parameterized.TestCase):
    def test_bfloat16_equals_the_cast(self):
        rng = np.random.default_rng(7)
        x = rng.integers(0, 2**32, 100_000, np.uint32).view(np.float32)
        values = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
        values = values.astype(np.float32)
        middles = (np.arange(2**16, dtype=np.uint32) << 16) + 0x8000
        x = np.concatenate([x, values, middles.view(np.float32)])
        x = x[np.isfinite(x) & (np.abs(x) >= np.finfo(np.float32).tiny)]
        top = np.float32(2.0**127 * 1.9921875)
        with np.errstate(over="ignore"):
            cast = x.astype(ml_dtypes.bfloat16).astype(np.float32)
        assert_bits_equal(quantized(x, "bf16"), np.clip(cast, -top, top))

    def test_float16_equals_the_cast(self):
        rng = np.random.default_rng(8)
        values = np.arange(2**16, dtype=np.uint16).view(np.float16)
        values = np.unique(values[np.isfinite(values)].astype(np.float32))
        x = np.concatenate(
            [
                values,
                (values[1:] + values[:-1]) / 2,
                rng.standard_normal(50_000).astype(np.float32) * 100,
                rng.standard_normal(50_000).astype(np.float32) * 1e-6,
                [65519.0, 65520.0, 1e6, -1e6],
            ]
        ).astype(np.float32)
        with np.errstate(over="ignore"):
            cast = x.astype(np.float16).astype(np.float32)
        assert_bits_equal(quantized(x, "fp16"), np.clip(cast, -65504, 65504))

    def test_float32_is_the_identity(self):
        rng = np.random.default_rng(9)
        x = rng.integers(0, 2**32, 100_000, np.uint32).view(np.float32)
        x = x[np.isfinite(x) & (np.abs(x) >= np.finfo(np.float32).tiny)]
        x = np.append(x, np.float32([0, np.finfo(np.float32).max]))
        assert_bits_equal(quantized(x, "fp32"), x)

    def test_axis_changes_nothing(self):
        x = np.random.default_rng(10).standard_normal((3, 4)).astype("float32")
        np.testing.assert_array_equal(
            quantized(x, "bf16", axis=0), quantized(x, "bf16")
        )

    def test_infinity_saturates(self):
        x = np.array([np.inf, -np.inf], np.float32)
        np.testing.assert_array_equal(quantized(x, "fp16"), [65504.0, -65504.0])
        top = 2.0**127 * 1.9921875
        np.testing.assert_array_equal(quantized(x, "bf16"), [top, -top])


class HazardTest(parameterized.TestCase):
    @parameterized.parameters("int4", "e4m3", "e8m7", "bf16", "fp16", "fp32")
    def test_zero_tensor_stays_zero(self, name):
        np.testing.assert_array_equal(
            quantized(np.zeros((3, 4), "float32"), name), np.zeros((3, 4))
        )

    def test_zero_channel_stays_zero_beside_others(self):
        x = np.array([[0.0, 0.0], [3.0, -7.0]], np.float32)
        np.testing.assert_array_equal(quantized(x, "int4", axis=0), x)

    @parameterized.parameters("int4", "e2m1", "bf16", "fp16", "fp32")
    def test_nan_stays_nan(self, name):
        x = np.array([[np.nan, 1.0], [1.0, 2.0]], np.float32)
        q = quantized(x, name, axis=0)
        self.assertTrue(np.isnan(q[0, 0]))
        # Other channels do not see it.
        self.assertTrue(np.isfinite(q[1]).all())
        if get_format(name).is_scaled:
            q = quantized(np.array([np.nan, 1.0], "float32"), name, scale=1.0)
            np.testing.assert_array_equal(q, [np.nan, 1.0])

    def test_nan_stays_nan_in_long_tensors(self):
        # Kernels work on packets of 4 to 16 numbers and a remainder.
        for size in (1, 7, 16, 67):
            x = np.ones(size, "float32")
            for place in {0, size // 2, size - 1}:
                bad = x.copy()
                bad[place] = np.nan
                q = quantized(bad, "int8", scale=1.0)
                np.testing.assert_array_equal(np.isnan(q), np.isnan(bad))

    def test_infinity_under_absmax_turns_the_group_nan(self):
        x = np.array([[np.inf, 1.0, 0.0], [1.0, 2.0, 3.0]], np.float32)
        q = quantized(x, "int4", axis=0)
        self.assertTrue(np.isnan(q[0]).all())
        self.assertTrue(np.isfinite(q[1]).all())

    @parameterized.parameters("int4", "int8", "e4m3", "e8m7")
    def test_tiny_and_huge_tensors(self, name):
        for absmax in (2.0**-119, 2.0**-60, 2.0**100, 2.0**127):
            x = np.float32([absmax, -absmax / 2, absmax / 4])
            q = quantized(x, name)
            self.assertTrue(np.isfinite(q).all())
            np.testing.assert_allclose(q[0], x[0], rtol=2e-7)
        x = np.float32([2.0**-125, -(2.0**-126)])
        self.assertTrue(np.isfinite(quantized(x, name)).all())

    @parameterized.parameters("int32", "bool", "uint8")
    def test_other_dtypes_are_refused(self, dtype):
        with self.assertRaisesRegex(ValueError, f"Received: dtype={dtype}"):
            fake_quant(np.ones(3, dtype), "int4")

    def test_unknown_format_is_refused(self):
        with self.assertRaisesRegex(ValueError, "Received: 'int9'"):
            fake_quant(np.ones(3, "float32"), "int9")

    @parameterized.parameters("float16", "bfloat16", "float32", "float64")
    def test_dtype_and_shape_are_kept(self, dtype):
        x = ops.cast(np.random.default_rng(0).standard_normal((2, 3, 4)), dtype)
        for name in ("int4", "e4m3", "bf16", "fp16", "fp32"):
            q = fake_quant(x, name, axis=-1)
            self.assertEqual(keras.backend.standardize_dtype(q.dtype), dtype)
            self.assertEqual(tuple(q.shape), (2, 3, 4))
            # The arithmetic is float32's.
            expected = fake_quant(ops.cast(x, "float32"), name, axis=-1)
            np.testing.assert_array_equal(q, ops.cast(expected, dtype))


class RunningMeanTest(parameterized.TestCase):
    def test_plain_mean_first_then_exponential(self):
        # t / (t + 1) stays below 0.75 up to t = 3: a plain mean of 4 values.
        values = [8.0, 4.0, 0.0, 4.0, 12.0]
        mean, found = 123.0, []
        for seen, value in enumerate(values):
            mean = float(
                numerics.running_mean(mean, float(seen), value, momentum=0.75)
            )
            found.append(mean)
        # 8; (8 + 4) / 2; 12 / 3; 16 / 4; then 0.75 * 4 + 0.25 * 12.
        np.testing.assert_allclose(found, [8, 6, 4, 4, 6], rtol=1e-6)

    def test_no_momentum_keeps_the_last_value(self):
        self.assertEqual(float(numerics.running_mean(5.0, 9.0, 3.0, 0.0)), 3.0)


if __name__ == "__main__":
    absltest.main()
