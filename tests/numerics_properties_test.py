"""The rounding kernel: gradients, compilers, and what always holds."""

import hypothesis
import hypothesis.extra.numpy
import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import strategies
from keras import ops

from fliqs_tf import numerics
from fliqs_tf.formats import get_format
from fliqs_tf.numerics import fake_quant
from fliqs_tf.space import SPACES
from tests import grid

_INTEGERS = ("int2", "int3", "int4", "int5", "int6", "int7", "int8", "int16")
# Every float that the spaces have, the corners of the family, and the OCP ones.
_FLOATS = (
    *SPACES["fp_l"],
    *("e1m0", "e1m2", "e1m10", "e5m10", "e6m3", "e7m0", "e3m10"),
    *("e4m3fn", "e5m2_ocp"),
)
_PROPERTY = hypothesis.settings(
    max_examples=60, deadline=None, derandomize=True, database=None
)
_NAMES = strategies.sampled_from((*_INTEGERS, *_FLOATS, "bf16", "fp16"))
# Normal float32 numbers, and not so large that a scaled one overflows.
_NUMBERS = strategies.one_of(
    strategies.just(0.0),
    *(
        strategies.floats(low, high, width=32, allow_subnormal=False)
        for low, high in ((2.0**-60, 2.0**60), (-(2.0**60), -(2.0**-60)))
    ),
)
_ARRAYS = hypothesis.extra.numpy.arrays(
    np.float32, strategies.integers(1, 40), elements=_NUMBERS
)


def quantized(x, *args, **kwargs):
    return ops.convert_to_numpy(fake_quant(x, *args, **kwargs))


class GradientTest(parameterized.TestCase):
    def _gradient(self, x, *args, **kwargs):
        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            q = fake_quant(x, *args, **kwargs)
            # Unlike upstream gradients, to see that they are handed through.
            total = tf.reduce_sum(q * self.upstream(x))
        return tape.gradient(total, x).numpy()

    def upstream(self, x):
        size = int(np.prod(x.shape))
        return tf.reshape(tf.range(1.0, size + 1.0), x.shape)

    @parameterized.parameters("int2", "int8", "e2m1", "e8m7", "bf16", "fp32")
    def test_straight_through_under_absmax(self, name):
        x = np.random.default_rng(0).standard_normal((4, 5)).astype("float32")
        for axis in (None, 0, -1):
            np.testing.assert_allclose(
                self._gradient(x, name, axis=axis), self.upstream(x), rtol=1e-6
            )

    def test_zero_where_a_given_scale_clips(self):
        # INT4 at scale 0.5 ends at 3.5, and values at the end are inside.
        x = np.float32([-9.0, -3.5, -1.2, 0.0, 3.4, 3.5, 3.6, np.inf])
        np.testing.assert_allclose(
            self._gradient(x, "int4", scale=0.5), [0, 2, 3, 4, 5, 6, 0, 0]
        )
        # E2M1 ends at 6 times the scale.
        np.testing.assert_allclose(
            self._gradient(x, "e2m1", scale=0.5), [0, 0, 3, 4, 0, 0, 0, 0]
        )

    @parameterized.parameters("int4", "e4m3", "e8m7", "bf16")
    def test_finite_and_one_for_zeros(self, name):
        x = np.zeros((2, 3), "float32")
        np.testing.assert_allclose(
            self._gradient(x, name), self.upstream(x), rtol=1e-6
        )
        np.testing.assert_allclose(
            self._gradient(x, name, axis=0), self.upstream(x), rtol=1e-6
        )

    def test_scale_takes_no_gradient(self):
        scale = tf.constant(0.5)
        with tf.GradientTape() as tape:
            tape.watch(scale)
            q = fake_quant(tf.constant([1.2, 9.0]), "int4", scale=scale)
        self.assertIsNone(tape.gradient(q, scale))

    def test_dtype_of_the_gradient(self):
        for dtype in ("float16", "bfloat16", "float64"):
            x = tf.cast([1.0, -2.0], dtype)
            with tf.GradientTape() as tape:
                tape.watch(x)
                q = fake_quant(x, "int4")
            gradient = tape.gradient(q, x)
            self.assertEqual(gradient.dtype, x.dtype)
            np.testing.assert_array_equal(tf.cast(gradient, "float32"), [1, 1])


class CompiledTest(parameterized.TestCase):
    @parameterized.product(
        name=("int2", "int4", "int7", "int8", "e2m1", "e4m3", "e8m7", "bf16"),
        jit_compile=(False, True),
    )
    def test_same_bits_as_eager(self, name, jit_compile):
        x = np.random.default_rng(0).standard_normal((64, 33)).astype("float32")
        x = np.concatenate([x, np.zeros((1, 33), "float32")])

        @tf.function(jit_compile=jit_compile)
        def compiled(x, scale):
            found = [
                fake_quant(x, name),
                fake_quant(x, name, axis=-1),
                fake_quant(x, name, axis=0),
            ]
            if get_format(name).is_scaled:
                found.append(fake_quant(x, name, scale=scale))
            return found

        scale = tf.constant(0.0131)
        found = compiled(x, scale)
        expected = compiled.python_function(x, scale)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)

    @parameterized.parameters(False, True)
    def test_sampled_row_is_traced_once(self, jit_compile):
        names = ("int4", "e2m1", "int8", "e4m3", "bf16")
        table = numerics.format_table(names)
        traces = []

        @tf.function(jit_compile=jit_compile)
        def sampled(x, index):
            traces.append(index)
            row = ops.take(ops.convert_to_tensor(table), index, axis=0)
            scale = numerics.absmax_scale(x, row, axis=-1)
            return numerics.quantize(x, row, scale) * scale

        x = np.random.default_rng(0).standard_normal((7, 9)).astype("float32")
        x = tf.constant(x)
        for index, name in enumerate(names):
            np.testing.assert_array_equal(
                sampled(x, tf.constant(index)), fake_quant(x, name, axis=-1)
            )
        self.assertLen(traces, 1)

    def test_unknown_batch_size(self):
        @tf.function(input_signature=[tf.TensorSpec((None, 3), "float32")])
        def compiled(x):
            return fake_quant(x, "int4", axis=-1)

        x = np.random.default_rng(0).standard_normal((5, 3)).astype("float32")
        np.testing.assert_array_equal(
            compiled(x), fake_quant(x, "int4", axis=-1)
        )

    def test_symbolic_tensor(self):
        x = keras.Input((4,))
        q = keras.layers.Lambda(lambda x: fake_quant(x, "int4"))(x)
        self.assertEqual(q.shape, (None, 4))


class PropertyTest(parameterized.TestCase):
    """Holds for every format, every array and every scale."""

    @_PROPERTY
    @hypothesis.given(
        _ARRAYS, _NAMES, strategies.floats(2.0**-6, 2.0**6, width=32)
    )
    def test_idempotent(self, x, name, scale):
        kwargs = {"scale": scale} if get_format(name).is_scaled else {}
        once = quantized(x, name, **kwargs)
        np.testing.assert_array_equal(quantized(once, name, **kwargs), once)

    @_PROPERTY
    @hypothesis.given(_ARRAYS, _NAMES)
    def test_idempotent_under_absmax(self, x, name):
        once = quantized(x, name)
        np.testing.assert_allclose(quantized(once, name), once, rtol=5e-7)

    @_PROPERTY
    @hypothesis.given(_ARRAYS, _NAMES)
    def test_monotone(self, x, name):
        q = quantized(np.sort(x), name)
        self.assertTrue(np.all(np.diff(q) >= 0))

    @_PROPERTY
    @hypothesis.given(_ARRAYS, _NAMES)
    def test_odd(self, x, name):
        np.testing.assert_array_equal(quantized(-x, name), -quantized(x, name))

    @_PROPERTY
    @hypothesis.given(_ARRAYS, _NAMES, strategies.integers(-20, 20))
    def test_power_of_two_scales_through(self, x, name, power):
        hypothesis.assume(get_format(name).is_scaled)
        factor = np.float32(2.0**power)
        np.testing.assert_array_equal(
            quantized(x * factor, name), quantized(x, name) * factor
        )

    @_PROPERTY
    @hypothesis.given(_ARRAYS, _NAMES)
    def test_on_the_grid_and_nearest(self, x, name):
        hypothesis.assume(get_format(name).is_scaled)
        scale = np.float32(2.0**-3)
        codes = quantized(x, name, scale=scale) / np.float64(scale)
        magnitudes = grid.magnitudes_of(name)
        self.assertTrue(np.isin(np.abs(codes), magnitudes).all())
        # Nearer than either neighbour, or as near: at most half a step away.
        y = np.clip(x / scale, -magnitudes[-1], magnitudes[-1]).astype(float)
        best = np.abs(np.abs(y)[:, None] - magnitudes).min(1)
        np.testing.assert_array_equal(np.abs(codes - y), best)


class GatheredGradientTest(absltest.TestCase):
    def test_rows_of_a_rounded_table(self):
        table = tf.constant([[0.5, 3.0], [1.0, -2.0], [7.0, 0.25]])
        for scale in (None, 0.25):
            with tf.GradientTape() as tape:
                tape.watch(table)
                rows = tf.gather(fake_quant(table, "int4", scale=scale), [1, 1])
                loss = tf.reduce_sum(rows * [[1.0, 10.0], [100.0, 1000.0]])
            # The scale 1/4 clips at 7/4, below the row's second value.
            second = 1010.0 if scale is None else 0.0
            gradient = tf.convert_to_tensor(tape.gradient(loss, table))
            np.testing.assert_array_equal(
                gradient, [[0, 0], [101, second], [0, 0]]
            )


if __name__ == "__main__":
    absltest.main()
