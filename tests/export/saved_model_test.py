import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

from tests.export import small_models


class SavedModelTest(parameterized.TestCase):
    """Keras's own `export` of a fixed model, rounding of inputs included."""

    @parameterized.parameters("int4", "e4m3")
    @pytest.mark.one_in(2)
    def test_serves_what_the_model_computes(self, fmt):
        model = small_models.fixed(small_models.residual(), fmt)
        images = small_models.images()
        path = self.create_tempdir().full_path
        model.export(path, verbose=False)
        loaded = tf.saved_model.load(path)
        served = loaded.serve(images)
        expected = model(images, training=False)
        # Keras's own `predict` is compiled too, and sums in other orders.
        compiled = model.predict(images, verbose=0)
        scale = np.abs(expected).max()
        difference = np.abs(served - expected).max() / scale
        allowed = np.abs(compiled - expected).max() / scale
        self.assertLessEqual(difference, max(1e-6, 2 * allowed))

    def test_needs_no_layer_of_this_package(self):
        path = self.create_tempdir().full_path
        model = small_models.fixed(small_models.residual(), "int4")
        model.export(path, verbose=False)
        layer = keras.layers.TFSMLayer(path, call_endpoint="serve")
        outputs = layer(small_models.images())
        self.assertEqual(outputs.shape, (40, 5))


if __name__ == "__main__":
    absltest.main()
