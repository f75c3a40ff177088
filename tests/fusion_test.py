"""Large tensors take another way through the kernel, to the same bits."""

import contextlib
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

from fliqs_tf import fusion
from fliqs_tf import numerics
from fliqs_tf.convert import to_searchable

_NAMES = ("int4", "int8", "e2m1", "e4m3", "bf16", "fp32")


@contextlib.contextmanager
def nothing_is_large():
    with mock.patch.object(fusion, "MIN_SIZE", 2**40):
        yield


def tensors():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1031, 1033)).astype("float32")
    x[5, 6] = np.inf
    return {
        "ordinary": np.where(np.isfinite(x), x, 0.0).astype("float32"),
        "all binades": (x * 2.0 ** rng.integers(-60, 60, x.shape)).astype(
            "float32"
        ),
        "infinite": x,
    }


class SameBitsTest(parameterized.TestCase):
    @parameterized.product(
        name=_NAMES, axis=(None, 0, 1), mode=("eager", "graph", "xla")
    )
    @pytest.mark.one_in(4)
    def test_as_small_tensors(self, name, axis, mode):
        def quantized(x):
            return numerics.fake_quant(x, name, axis=axis)

        if mode != "eager":
            quantized = tf.function(
                quantized, jit_compile=mode == "xla", autograph=False
            )
        for kind, x in tensors().items():
            with self.subTest(kind):
                with nothing_is_large():
                    expected = numerics.fake_quant(x, name, axis=axis)
                np.testing.assert_array_equal(
                    quantized(tf.constant(x)), expected
                )

    @parameterized.parameters("int4", "e4m3")
    def test_codes_and_gradients_under_a_given_scale(self, name):
        x = tf.constant(tensors()["ordinary"])
        row = numerics.format_table([name])[0]
        scale = tf.constant(0.3)

        def run():
            with tf.GradientTape() as tape:
                tape.watch(x)
                codes = numerics.quantize(x, row, scale, clips=True)
                loss = ops.sum(codes * x)
            return codes, tape.gradient(loss, x)

        with nothing_is_large():
            expected = run()
        for actual, wanted in zip(run(), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)

    @parameterized.parameters("float16", "bfloat16")
    def test_half_precision(self, dtype):
        x = ops.cast(tensors()["ordinary"], dtype)
        with nothing_is_large():
            expected = numerics.fake_quant(x, "int4", axis=-1)
        actual = numerics.fake_quant(x, "int4", axis=-1)
        self.assertEqual(actual.dtype, expected.dtype)
        np.testing.assert_array_equal(
            ops.cast(actual, "float32"), ops.cast(expected, "float32")
        )


class MagnitudeTest(parameterized.TestCase):
    @parameterized.parameters(
        ((2**20,), 0),
        ((2**20 + 7,), 0),
        ((1500, 1001), 0),
        ((1500, 1001), 1),
        ((2**20 + 5, 1), 1),
        ((17, 3, 5, 7001), 1),
        ((3, 500_000), 1),
        ((65, 33, 23, 22), 2),
        ((4, 5), 1),
        ((), 0),
    )
    def test_equals_numpy(self, shape, kept):
        rng = np.random.default_rng(1)
        x = rng.standard_normal(shape).astype("float32")
        axes = tuple(range(len(shape) - kept))
        np.testing.assert_array_equal(
            fusion.max_magnitude(tf.constant(x), kept),
            np.abs(x).max(axes, keepdims=True) if axes else np.abs(x),
        )

    def test_nan_is_larger_than_infinity(self):
        for size in (10, 2**20 + 3):
            for place in (0, size // 2, size - 1):
                x = np.full(size, -np.inf, "float32")
                self.assertEqual(
                    fusion.max_magnitude(tf.constant(x), 0), np.inf
                )
                x[place] = np.nan
                top = fusion.max_magnitude(tf.constant(x), 0)
                self.assertTrue(np.isnan(top))


class ChoiceTest(absltest.TestCase):
    """Which tensors are compiled for."""

    def calls(self, shape, *signature):
        seen = []

        def plain(x):
            seen.append("plain")
            return x

        def compiled(x):
            seen.append("compiled")
            return x

        function = fusion.fused(compiled, plain)
        if signature:
            function = tf.function(
                function,
                input_signature=[tf.TensorSpec(signature, "float32")],
            )
        function(tf.zeros(shape))
        return seen

    def test_by_the_number_of_elements(self):
        self.assertEqual(self.calls((2**20,)), ["compiled"])
        self.assertEqual(self.calls((2**20 - 1,)), ["plain"])

    def test_open_batches_decide_when_they_run(self):
        self.assertCountEqual(
            self.calls((8, 2**18), None, 2**18), ["compiled", "plain"]
        )

    def test_small_samples_are_never_compiled_for(self):
        self.assertEqual(self.calls((8, 1000), None, 1000), ["plain"])

    def test_new_shapes_are_not_traced_one_by_one(self):
        seen = []
        function = fusion.fused(lambda x: (seen.append(x.shape), x + 1.0)[1])
        for rows in range(1024, 1034):
            function(tf.zeros((rows, 1024)))
        self.assertLessEqual(len(seen), 2)


class ModelTest(absltest.TestCase):
    """A model whose activations are large enough to be compiled for."""

    def model(self):
        inputs = keras.Input((64, 64, 3))
        x = keras.layers.Conv2D(128, 1)(inputs)
        x = keras.layers.Conv2D(2, 1)(x)
        outputs = keras.layers.GlobalAveragePooling2D()(x)
        return to_searchable(keras.Model(inputs, outputs), "int_l")

    def test_open_batch_in_fit_and_predict(self):
        x = np.random.default_rng(2).standard_normal((3, 64, 64, 3))
        model = self.model()
        model.compile("sgd", "mse")
        model.fit(x, np.zeros((3, 2)), batch_size=2, verbose=0)
        actual = model.predict(x, verbose=0)
        with nothing_is_large():
            expected = model(x)
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)

    def test_saved_model(self):
        x = np.random.default_rng(3).standard_normal((3, 64, 64, 3))
        x = x.astype("float32")
        model = self.model()
        path = self.create_tempdir().full_path
        model.export(path, verbose=False)
        loaded = tf.saved_model.load(path)
        np.testing.assert_allclose(
            loaded.serve(x), model(x), rtol=1e-6, atol=1e-7
        )

    def test_mirrored_strategy(self):
        strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
        with strategy.scope():
            model = self.model()
            model.compile("sgd", "mse")
        x = np.zeros((4, 64, 64, 3), "float32")
        history = model.fit(x, np.zeros((4, 2)), batch_size=4, verbose=0)
        self.assertTrue(np.isfinite(history.history["loss"][0]))


if __name__ == "__main__":
    absltest.main()
