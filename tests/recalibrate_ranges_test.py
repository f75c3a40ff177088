"""Recalibration of what is not batch norm, and of norms across replicas."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest

import fliqs_tf as fliqs


class RecalibrateTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.x = rng.normal(3.0, 2.0, (32, 5)).astype("float32")
        self.data = tf.data.Dataset.from_tensor_slices(self.x).batch(8)

    def test_ranges_of_a_model_without_norm(self):
        layer = fliqs.layers.Dense(3, formats="int4")
        model = keras.Sequential([keras.Input((5,)), layer])
        self.assertFalse(layer.is_calibrated())
        fliqs.recalibrate(model, self.data)
        self.assertTrue(layer.is_calibrated())
        expected = np.abs(self.x.reshape(4, 8, 5)).max((1, 2)).mean()
        (found,) = (w for w in layer.weights if w.name == "input_range")
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_synchronized_norm(self):
        model = keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.BatchNormalization(synchronized=True, name="norm"),
            ]
        )
        fliqs.recalibrate(model, self.data)
        batches = self.x.reshape(4, 8, 5)
        norm = model.get_layer("norm")
        np.testing.assert_allclose(
            norm.moving_mean, batches.mean(1).mean(0), rtol=1e-5
        )
        np.testing.assert_allclose(
            norm.moving_variance, batches.var(1).mean(0), rtol=1e-4
        )


if __name__ == "__main__":
    absltest.main()
