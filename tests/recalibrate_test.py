"""Re-estimated batch-norm statistics."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf.recalibrate import Recalibration


def make_data(batches=4, size=8):
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (batches * size, 5)).astype("float32")
    return x, tf.data.Dataset.from_tensor_slices(x).batch(size)


def make_model():
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.BatchNormalization(momentum=0.9, name="first"),
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(name="second"),
        ]
    )


class RecalibrateTest(parameterized.TestCase):
    def test_statistics_are_means_over_batches(self):
        x, data = make_data()
        model = make_model()
        layer = model.get_layer("first")
        layer.moving_mean.assign([100.0] * 5)
        fliqs.recalibrate(model, data)
        batches = x.reshape(4, 8, 5)
        np.testing.assert_allclose(
            layer.moving_mean, batches.mean(1).mean(0), rtol=1e-5
        )
        np.testing.assert_allclose(
            layer.moving_variance, batches.var(1).mean(0), rtol=1e-4
        )
        self.assertEqual(layer.momentum, 0.9)
        self.assertEqual(model.get_layer("second").momentum, 0.99)

    def test_weights_are_left_alone(self):
        _, data = make_data()
        model = make_model()
        before = [np.array(w) for w in model.trainable_weights]
        fliqs.recalibrate(model, data)
        for one, other in zip(before, model.trainable_weights, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_no_more_batches_than_asked(self):
        x, data = make_data()
        model = make_model()
        fliqs.recalibrate(model, data.repeat(), steps=2)
        np.testing.assert_allclose(
            model.get_layer("first").moving_mean,
            x[:16].reshape(2, 8, 5).mean(1).mean(0),
            rtol=1e-5,
        )

    def test_batches_with_targets(self):
        x, data = make_data()
        model, other = make_model(), make_model()
        other.set_weights(model.get_weights())
        fliqs.recalibrate(model, data)
        fliqs.recalibrate(other, data.map(lambda x: (x, x[:, 0])))
        np.testing.assert_array_equal(
            model.get_layer("second").moving_mean,
            other.get_layer("second").moving_mean,
        )

    def test_frozen_norm_is_left_alone(self):
        _, data = make_data()
        model = make_model()
        model.get_layer("first").trainable = False
        fliqs.recalibrate(model, data)
        np.testing.assert_array_equal(
            model.get_layer("first").moving_mean, [0] * 5
        )
        self.assertTrue(np.all(model.get_layer("second").moving_mean != 0))

    def test_norm_of_a_nested_model(self):
        x, data = make_data()
        inner = make_model()
        outer = keras.Sequential([keras.Input((5,)), inner])
        fliqs.recalibrate(outer, data)
        np.testing.assert_allclose(
            inner.get_layer("first").moving_mean, x.mean(0), rtol=1e-4
        )

    def test_norm_that_is_called_twice(self):
        x, data = make_data()
        norm = keras.layers.BatchNormalization(momentum=0.9)
        inputs = keras.Input((5,))
        model = keras.Model(inputs, [norm(inputs), norm(2.0 * inputs)])
        fliqs.recalibrate(model, data)
        batches = x.reshape(4, 8, 5)
        np.testing.assert_allclose(
            norm.moving_mean, 1.5 * batches.mean(1).mean(0), rtol=1e-5
        )
        # Of the means of 1 and of 4 times the variance.
        np.testing.assert_allclose(
            norm.moving_variance, 2.5 * batches.var(1).mean(0), rtol=1e-4
        )
        # It is a norm as before.
        norm(x, training=True)
        np.testing.assert_allclose(
            norm.moving_mean,
            (0.9 * 1.5 + 0.1) * batches.mean(1).mean(0),
            rtol=1e-5,
        )

    def test_calls_that_infer_do_not_count(self):
        class Twice(keras.Model):
            def __init__(self):
                super().__init__()
                self.norm = keras.layers.BatchNormalization()
                self.kept = keras.layers.BatchNormalization()

            def call(self, inputs, training=False):
                x = self.norm(inputs, training=training)
                x = self.norm(x + 9.0, training=False)
                return self.kept(x, training=False)

        x, data = make_data()
        model = Twice()
        model(x)
        model.kept.moving_mean.assign([3.0] * 5)
        fliqs.recalibrate(model, data)
        np.testing.assert_allclose(model.norm.moving_mean, x.mean(0), rtol=1e-4)
        np.testing.assert_array_equal(model.kept.moving_mean, [3.0] * 5)

    def test_statistics_are_those_of_the_formats(self):
        x, data = make_data()
        model = keras.Sequential(
            [
                keras.Input((5,)),
                fliqs.layers.Dense(3, formats="int2", input_range="dynamic"),
                keras.layers.BatchNormalization(name="norm"),
            ]
        )
        fliqs.recalibrate(model, data)
        outputs = np.stack([model.layers[0](batch) for batch in data])
        np.testing.assert_allclose(
            model.get_layer("norm").moving_mean,
            outputs.mean(1).mean(0),
            rtol=1e-4,
            atol=1e-5,
        )

    def test_model_without_norm(self):
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
        before = model.get_weights()
        fliqs.recalibrate(model, make_data()[1])
        np.testing.assert_array_equal(model.get_weights()[0], before[0])

    def test_no_data(self):
        _, data = make_data()
        model = make_model()
        with self.assertRaisesRegex(ValueError, "empty"):
            fliqs.recalibrate(model, data.take(0))
        self.assertEqual(model.get_layer("first").momentum, 0.9)


class RecalibrationTest(parameterized.TestCase):
    @parameterized.parameters({}, {"steps_per_execution": 3})
    def test_once_after_the_last_step(self, **options):
        x, data = make_data()
        model, seen = make_model(), []
        norm = model.get_layer("first")

        class Recorder(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                seen.append(norm.moving_mean.numpy())

        model.compile("sgd", "mse", **options)
        labelled = data.map(lambda x: (x, x[:, :3]))
        history = model.fit(
            labelled,
            epochs=2,
            verbose=0,
            validation_data=labelled,
            callbacks=[Recalibration(labelled), Recorder()],
        ).history
        # Running means have not arrived after an epoch of 4 steps.
        means = x.reshape(4, 8, 5).mean(1).mean(0)
        self.assertTrue(np.all(np.abs(seen[0]) < 0.5 * np.abs(means)))
        np.testing.assert_allclose(seen[1], means, rtol=1e-5)
        loss = model.evaluate(labelled, verbose=0)
        self.assertAlmostEqual(history["val_loss"][-1], loss, places=6)

    def test_model_without_norm_is_not_called(self):
        _, data = make_data()
        model = keras.Sequential(
            [
                keras.Input((5,)),
                fliqs.layers.Dense(3, formats="int8", input_range="ema"),
            ]
        )
        model.compile("sgd", "mse")
        labelled = data.map(lambda x: (x, x[:, :3]))
        model.fit(labelled, verbose=0, callbacks=[Recalibration(labelled)])
        (updates,) = [
            v for v in model.non_trainable_variables if "updates" in v.path
        ]
        self.assertEqual(int(updates), 4)


if __name__ == "__main__":
    absltest.main()
