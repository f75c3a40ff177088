"""Ranges and grids of inputs, granularities of weights, stochastic rounding."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

import fliqs_tf as fliqs
from fliqs_tf import formats
from fliqs_tf import ranges
from fliqs_tf.formats import get_format
from fliqs_tf.numerics import fake_quant
from fliqs_tf.quantizers import InputQuantizer
from fliqs_tf.quantizers import WeightQuantizer
from tests.quantizer_contract import SPACE
from tests.quantizer_contract import Host
from tests.quantizer_contract import QuantizerContract


class InputContractTest(QuantizerContract, parameterized.TestCase):
    quantizer_class = InputQuantizer
    variants = (
        {"range": "percentile"},
        {"range": "percentile", "percentile": 90.0},
        {"signedness": "affine"},
        {"signedness": "unsigned", "range": "dynamic"},
        {"rounding": "stochastic"},
        {"axis": 1},
    )


class WeightContractTest(QuantizerContract, parameterized.TestCase):
    quantizer_class = WeightQuantizer
    variants = (
        {"granularity": "tensor"},
        {"granularity": 8},
        {"rounding": "stochastic"},
    )


def trained(quantizer, *batches):
    host = Host(quantizer)
    for batch in batches:
        host(np.asarray(batch, "float32"), training=True)
    return host


class SignednessTest(parameterized.TestCase):
    @parameterized.parameters("dynamic", "ema")
    def test_unsigned_by_hand(self, range):
        # 0..15 in steps of 1; what is negative is clipped.
        x = np.float32([0, 0.4, 0.6, 1.5, 14.4, 15, -3])
        host = trained(InputQuantizer("int4", range, signedness="unsigned"), x)
        np.testing.assert_allclose(host(x), [0, 0, 1, 2, 14, 15, 0], rtol=1e-6)

    @parameterized.parameters("dynamic", "ema")
    def test_affine_by_hand(self, range):
        # 15 steps from -5 to 10: scale 1, zero point 5.
        x = np.float32([-5, -4.6, -0.4, 0, 0.6, 9.4, 10])
        host = trained(InputQuantizer("int4", range, signedness="affine"), x)
        np.testing.assert_allclose(
            host(x), [-5, -5, 0, 0, 1, 9, 10], rtol=1e-6, atol=1e-7
        )

    def test_zero_is_exact_and_codes_are_as_many_as_the_format_has(self):
        rng = np.random.default_rng(0)
        for bits in (2, 3, 4, 5, 8):
            for shift in (-3.0, -0.3, 0.0, 0.7, 4.0):
                x = (rng.standard_normal(5000) + shift).astype("float32")
                x[0] = 0.0
                for kind in ("unsigned", "affine"):
                    quantizer = InputQuantizer(
                        f"int{bits}", "dynamic", signedness=kind
                    )
                    codes, scale = quantizer.codes(x, False, {})
                    codes = ops.convert_to_numpy(codes)
                    self.assertEqual(codes[0], 0.0)
                    steps = codes * 2.0 ** (bits - 1)
                    np.testing.assert_array_equal(steps, np.round(steps))
                    self.assertLess(np.ptp(steps), 2**bits)
                    low = min(x.min(), 0) if kind == "affine" else 0.0
                    inside = x >= low
                    error = np.abs(codes * float(scale) - x)[inside]
                    step = float(scale) / 2.0 ** (bits - 1)
                    # The zero point is rounded: up to one step at the ends.
                    self.assertLessEqual(error.max(), 1.001 * step)

    def test_floats_stay_symmetric(self):
        x = np.random.default_rng(1).standard_normal(99).astype("float32")
        for kind in ("unsigned", "affine"):
            host = Host(InputQuantizer("e2m1", "dynamic", signedness=kind))
            np.testing.assert_array_equal(
                host(np.abs(x)), fake_quant(np.abs(x), "e2m1")
            )
        host = Host(InputQuantizer("e2m1", "dynamic", signedness="affine"))
        np.testing.assert_array_equal(host(x), fake_quant(x, "e2m1"))

    def test_sampled_beside_floats(self):
        x = np.float32([-1, 0.2, 3, 7])
        for kind in ("unsigned", "affine"):
            host = Host(InputQuantizer(SPACE, "dynamic", signedness=kind))
            host(x)
            for number, name in enumerate(SPACE):
                host.state["choice"].assign(number)
                fixed = Host(InputQuantizer(name, "dynamic", signedness=kind))
                np.testing.assert_array_equal(host(x), fixed(x))
            host.state["choice"].assign(len(SPACE))
            np.testing.assert_array_equal(host(x), x)

    def test_gradient_is_zero_where_it_clips(self):
        host = trained(
            InputQuantizer("int4", signedness="unsigned"), [0.0, 15.0]
        )
        x = tf.constant([-0.5, 0.2, 14.0, 16.0])
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(host(x))
        np.testing.assert_allclose(tape.gradient(total, x), [0, 1, 1, 0])


class PercentileTest(parameterized.TestCase):
    def test_clips_outliers(self):
        x = np.linspace(-1, 1, 10_001).astype("float32")
        x[7] = 1000.0
        for kind, expected in (("symmetric", 0.99), ("affine", 0.98)):
            limits = ranges.limits_of(x, kind, 99.0)
            top = np.ravel(ops.convert_to_numpy(limits))[-1]
            self.assertAlmostEqual(float(top), expected, places=2)

    def test_large_tensors_are_sampled_in_all_channels(self):
        x = np.full((2**14, 64), 0.5, "float32")
        x[:, 5] = 1.0
        # One channel in 64 is 1.6% of the values: the 99th percentile is its.
        self.assertEqual(float(ranges.limits_of(x, "symmetric", 99.0)), 1.0)
        self.assertEqual(float(ranges.limits_of(x, "symmetric", 98.0)), 0.5)

    @parameterized.parameters(
        ((64, 32, 32, 3), -1), ((64, 14, 14, 48), -1), ((64, 64, 16, 5), 1)
    )
    def test_the_sample_has_all_places_of_every_axis(self, shape, axis):
        # Every third or so of the elements, which is a factor of axes here.
        for place in range(shape[axis]):
            x = np.full(shape, -0.5, "float32")
            np.moveaxis(x, axis, 0)[place] = -1.0
            limits = ranges.limits_of(x, "symmetric", 99.9)
            self.assertEqual(float(limits), 1.0)

    @parameterized.parameters("symmetric", "unsigned")
    def test_is_not_zero_for_few_values_that_are_not(self, kind):
        x = np.zeros((8, 5000), "float32")
        x[:, 7] = 3.0  # 0.02% of them.
        top = ops.convert_to_numpy(ranges.limits_of(x, kind, 99.9))
        np.testing.assert_array_equal(top, [0, 3] if kind == "unsigned" else 3)

    @parameterized.parameters(50.0, 101.0, float("nan"))
    def test_bad_percentile(self, percentile):
        with self.assertRaisesRegex(ValueError, "Received: percentile="):
            InputQuantizer("int4", "percentile", percentile=percentile)


class LearnedTest(parameterized.TestCase):
    def gradients(self, x, limit, name, upstream, kind="symmetric"):
        host = Host(InputQuantizer(name, "lsq", signedness=kind))
        host(x, training=True)
        host.state["range"].assign(limit)
        variable = host.trainable_weights[0]
        inputs = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            codes, scale = host.quantizer.codes(inputs, True, host.state)
            loss = tf.reduce_sum(codes * scale * upstream)
        return tape.gradient(loss, [inputs, variable.value])

    @parameterized.parameters("int4", "int8", "e2m1")
    def test_gradient_of_esser(self, name):
        rng = np.random.default_rng(2)
        x = rng.standard_normal((8, 25)).astype("float32")
        upstream = rng.standard_normal((8, 25)).astype("float32")
        limit = 1.3

        fmt = get_format(name)
        scale = np.float32(limit / fmt.max_value)
        q = ops.convert_to_numpy(fake_quant(x, name, scale=scale))
        inside = np.abs(x) <= limit
        slope = np.where(inside, (q - x) / limit, np.sign(x))
        levels = 2 ** (fmt.bits - 1) - 1
        expected = np.sum(upstream * slope) / np.sqrt(25 * levels)
        to_x, to_range = self.gradients(x, limit, name, upstream)
        np.testing.assert_allclose(to_range, expected, rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(to_x, np.where(inside, upstream, 0), 1e-5)

    def test_starts_from_the_first_batch(self):
        x = np.random.default_rng(3).standard_normal((100, 10))
        host = trained(InputQuantizer("int4", "lsq"), x, 5 * x)
        expected = 2 * np.abs(x).mean() * np.sqrt(7)
        expected = min(expected, np.abs(x).max())
        self.assertAlmostEqual(float(host.state["range"]), expected, delta=1e-5)
        self.assertEqual(float(host.state["updates"]), 2.0)

    def test_learns_to_clip_an_outlier(self):
        rng = np.random.default_rng(4)
        x = rng.standard_normal((64, 64)).astype("float32")
        host = trained(InputQuantizer("int3", "lsq"), x)
        host.state["range"].assign(10.0)
        optimizer = keras.optimizers.Adam(0.1)
        losses = []
        for _ in range(150):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((host(x, training=True) - x) ** 2)
            found = tape.gradient(loss, host.trainable_weights)
            optimizer.apply(found, host.trainable_weights)
            losses.append(float(loss))
        self.assertLess(losses[-1], losses[0] / 4)
        self.assertBetween(float(host.state["range"]), 1.0, 4.0)

    def test_is_shared_by_the_formats(self):
        host = Host(InputQuantizer(SPACE, "lsq", signedness="unsigned"))
        host(np.float32([[7.5, 1, 2]]), training=True)
        host.state["range"].assign(7.5)
        x = np.float32([[7.5, 0.26, 9.0, -1.0]])
        for number, expected in enumerate(
            ([7.5, 0.5, 7.5, 0.0], None, [7.5, 0.26, 7.5, 0.0])
        ):
            host.state["choice"].assign(number)
            if expected:
                np.testing.assert_allclose(host(x), [expected], atol=0.02)

    def test_a_step_below_zero_is_not_for_good(self):
        x = np.random.default_rng(7).standard_normal((64, 16))
        host = trained(InputQuantizer("int4", "lsq"), x)
        host.state["range"].assign(-0.05)
        x = tf.constant(x, "float32")
        optimizer = keras.optimizers.Adam(0.1)
        for _ in range(60):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((host(x, training=True) - x) ** 2)
            found = tape.gradient(loss, host.trainable_weights)
            self.assertNotEqual(float(found[0]), 0.0)
            optimizer.apply(found, host.trainable_weights)
        self.assertBetween(float(host.state["range"]), 1.0, 4.0)

    def test_one_bit(self):
        self.addCleanup(formats._REGISTERED.pop, "sign")
        fliqs.register_format("sign", [-1.0, 1.0])
        host = trained(InputQuantizer("sign", "lsq"), [[0.5, -1.5]])
        # 2 mean|x| sqrt(1), and no more than is needed.
        self.assertEqual(float(host.state["range"]), 1.5)
        np.testing.assert_array_equal(host(np.float32([0.1, -2])), [1.5, -1.5])

    def test_affine_is_refused(self):
        with self.assertRaisesRegex(ValueError, "signedness='affine'"):
            InputQuantizer("int4", "lsq", signedness="affine")


class CalibrationTest(parameterized.TestCase):
    @parameterized.parameters("ema", "percentile", "lsq")
    def test_says_whether_it_has_seen_data(self, range):
        quantizer = InputQuantizer("int4", range)
        host = Host(quantizer)
        x = np.ones((2, 3), "float32")
        # As the tensor at hand asks for, until then.
        np.testing.assert_allclose(host(x), x, rtol=0.1)
        self.assertFalse(quantizer.is_calibrated(host.state))
        host(x, training=True)
        self.assertTrue(quantizer.is_calibrated(host.state))

    @parameterized.parameters("ema", "percentile", "lsq")
    def test_no_data_leaves_a_range_as_it_is(self, range):
        # What a replica has of a last batch that is too small for all.
        x = np.ones((2, 3), "float32")
        host = trained(InputQuantizer("int4", range), x)
        learned = float(host.state["range"])
        inputs = tf.ones((0, 3))
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(host(inputs, training=True))
        self.assertEqual(float(host.state["range"]), learned)
        self.assertEqual(float(host.state["updates"]), 1.0)
        if range == "lsq":
            found = tape.gradient(total, host.trainable_weights)
            self.assertEqual(float(found[0]), 0.0)

    def test_dynamic_ranges_need_none(self):
        self.assertTrue(InputQuantizer("int4", "dynamic").is_calibrated({}))


class GranularityTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(5)
        self.kernel = rng.standard_normal((3, 3, 10, 4)).astype("float32")

    @parameterized.parameters("int4", "e4m3", "fp32")
    def test_tensor_is_one_scale(self, name):
        quantizer = WeightQuantizer(name, granularity="tensor")
        codes, scale = quantizer.codes(self.kernel, False, {})
        # Of the shape that layers and exports expect.
        self.assertEqual(tuple(scale.shape), (1, 1, 1, 4))
        np.testing.assert_array_equal(
            codes * scale, fake_quant(self.kernel, name)
        )

    @parameterized.parameters(2, 16, 32, 90, 100)
    def test_groups_are_runs_of_a_channel(self, size):
        quantizer = WeightQuantizer("int4", granularity=size)
        codes, scale = quantizer.codes(self.kernel, False, {})
        np.testing.assert_array_equal(scale, np.ones((1, 1, 1, 4)))
        columns = self.kernel.reshape(90, 4)
        expected = np.concatenate(
            [
                fake_quant(columns[start : start + size], "int4", axis=-1)
                for start in range(0, 90, size)
            ]
        )
        np.testing.assert_array_equal(codes, expected.reshape(3, 3, 10, 4))

    def test_float32_is_left_alone(self):
        quantizer = WeightQuantizer("fp32", granularity=16)
        codes, scale = quantizer.codes(self.kernel, False, {})
        np.testing.assert_array_equal(codes * scale, self.kernel)

    @parameterized.parameters("row", 1, 0, -3, 2.5, True)
    def test_bad_granularity(self, granularity):
        with self.assertRaisesRegex(ValueError, "Received: granularity="):
            WeightQuantizer("int4", granularity=granularity)


class StochasticTest(parameterized.TestCase):
    @parameterized.parameters("int4", "e2m1", "mxfp4")
    def test_mean_is_the_value_and_inference_is_nearest(self, name):
        x = np.linspace(-1, 1, 64).astype("float32")[None]
        host = Host(WeightQuantizer(name, axis=None, rounding="stochastic"))
        np.testing.assert_array_equal(
            host(x),
            Host(WeightQuantizer(name, axis=None))(x),
        )
        draw = tf.function(lambda: host(x, training=True))
        draws = np.stack([draw() for _ in range(400)])
        lows, highs = draws.min(0), draws.max(0)
        self.assertTrue(np.all((lows <= x + 1e-6) & (x <= highs + 1e-6)))
        # Four standard errors of a two-point distribution.
        bound = 4 * (highs - lows).max() / 2 / 20
        self.assertTrue(np.all(np.abs(draws.mean(0) - x) <= bound))

    def test_values_of_the_grid_never_move(self):
        x = np.arange(-127, 128).astype("float32")
        host = Host(WeightQuantizer("int8", axis=None, rounding="stochastic"))
        for _ in range(20):
            np.testing.assert_array_equal(host(x, training=True), x)

    def test_gradient_is_straight_through(self):
        host = Host(WeightQuantizer("int4", rounding="stochastic"))
        x = tf.random.normal((4, 5))
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(host(x, training=True))
        np.testing.assert_allclose(tape.gradient(total, x), np.ones((4, 5)))

    def test_bad_rounding(self):
        with self.assertRaisesRegex(ValueError, "Received: rounding='up'"):
            InputQuantizer("int4", rounding="up")


class ModelTest(parameterized.TestCase):
    """The options in models: searched for two steps, fixed, saved, loaded."""

    def test_a_search_trains_learned_ranges(self):
        rng = np.random.default_rng(6)
        x = rng.standard_normal((64, 8)).astype("float32")
        x[::8] *= 8.0  # Outliers, which few codes should not spread over.
        y = x @ rng.standard_normal((8, 2)).astype("float32")
        inputs = keras.Input((8,))
        model = keras.Model(inputs, keras.layers.Dense(2, name="head")(inputs))
        search = fliqs.SearchModel(
            model, ("int3", "int4"), input_range="lsq", cost_target="1.5xint3"
        )
        head = search.searchable_model.get_layer("head")
        limits = [w for w in head.trainable_weights if "range" in w.name]
        self.assertLen(limits, 1)
        search.compile(keras.optimizers.Adam(0.02), "mse")
        start = float(np.abs(x).max())
        history = search.fit(x, y, batch_size=64, epochs=60, verbose=0)
        losses = history.history["loss"]
        self.assertLess(losses[-1], 0.7 * losses[0])
        learned = float(limits[0])
        self.assertBetween(learned, 0.05 * start, 0.98 * start)
        (fixed,) = (
            w
            for w in search.best_model().get_layer("head").weights
            if w.name == "input_range"
        )
        self.assertEqual(float(fixed), learned)

    @parameterized.parameters(
        {"input_range": "lsq"},
        {"input_range": "percentile", "input_signedness": "affine"},
        {"input_signedness": "unsigned", "weight_granularity": 16},
        {"rounding": "stochastic", "weight_granularity": "tensor"},
    )
    @pytest.mark.one_in(2)
    def test_search_and_save(self, **options):
        inputs = keras.Input((6, 6, 3))
        x = keras.layers.Conv2D(8, 3, activation="relu")(inputs)
        x = keras.layers.DepthwiseConv2D(3)(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(inputs, keras.layers.Dense(4)(x))
        rng = np.random.default_rng(6)
        x = rng.standard_normal((8, 6, 6, 3)).astype("float32")
        y = rng.integers(0, 4, 8)
        searchable = fliqs.to_searchable(model, ("int4", "e4m3"), **options)
        first = searchable.layers[1]
        if "input_range" in options:
            self.assertFalse(first.is_calibrated())
        search = fliqs.SearchModel(searchable, cost_target="1.5xint4")
        search.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
        history = search.fit(x, y, batch_size=4, epochs=1, verbose=0)
        self.assertTrue(np.isfinite(history.history["loss"][0]))
        self.assertTrue(first.is_calibrated())
        fixed = search.best_model()
        for name, value in options.items():
            self.assertEqual(getattr(fixed.layers[1], name), value)
        path = self.create_tempdir().full_path + "/model.keras"
        fixed.save(path)
        loaded = keras.models.load_model(path)
        np.testing.assert_array_equal(loaded(x), fixed(x))
        self.assertTrue(loaded.layers[1].is_calibrated())


if __name__ == "__main__":
    absltest.main()
