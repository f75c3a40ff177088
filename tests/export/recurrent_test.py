"""Recurrent layers of every making, as one step after another."""

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import export_onnx
from fliqs_tf.export import export_tflite
from fliqs_tf.export import twin
from fliqs_tf.export.slots import Slots
from tests.export import small_models

_L = keras.layers
_STEPS = 4


def _masked():
    """Sequences from both directions, of which some steps are masked."""
    words = keras.Input((_STEPS,), dtype="int32")
    x = _L.Embedding(5, 4, mask_zero=True)(words)
    x = _L.Bidirectional(_L.LSTM(3, return_sequences=True))(x)
    x = _L.Flatten()(x)
    return keras.Model(words, _L.Dense(2)(x))


def _words():
    random = np.random.default_rng(0)
    return random.integers(0, 5, (16, _STEPS)).astype("int32")


class MaskTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        keras.utils.set_random_seed(0)
        self.fixed = small_models.fixed(_masked(), "int8", _words())

    def _assert_alike(self, one, other):
        np.testing.assert_allclose(
            one(_words()), other(_words()), rtol=1e-5, atol=1e-6
        )

    def test_twins_compute_what_the_model_does(self):
        self._assert_alike(
            twin.float_twin(self.fixed), twin.weight_only_reference(self.fixed)
        )
        self._assert_alike(
            twin.fake_quant_twin(self.fixed, Slots()), self.fixed
        )

    def test_steps_that_the_model_itself_takes(self):
        """Keras computes something else than in a loop; so does the twin."""
        for layer in self.fixed._flatten_layers():
            if isinstance(layer, keras.layers.RNN):
                layer.unroll = True
        self._assert_alike(
            twin.float_twin(self.fixed), twin.weight_only_reference(self.fixed)
        )

    @parameterized.parameters(export_tflite, export_onnx)
    def test_files(self, export):
        path = self.create_tempdir().full_path + "/model"
        report = export(self.fixed, path, "fake_quant", _words())
        self.assertLess(report.verification.max_relative_error, 1e-5)


class CellsTest(parameterized.TestCase):
    @parameterized.parameters(
        (lambda: _L.RNN([_L.LSTMCell(4), _L.GRUCell(3)]), (_STEPS, 3)),
        (lambda: _L.ConvLSTM1D(3, 3), (_STEPS, 5, 2)),
    )
    def test_layers_without_a_format(self, make, shape):
        path = self.create_tempdir().full_path + "/model"
        inputs = keras.Input(shape)
        x = _L.Flatten()(make()(inputs))
        random = np.random.default_rng(0)
        data = random.standard_normal((9, *shape)).astype("float32")
        model = keras.Model(inputs, _L.Dense(2, name="last")(x))
        model = small_models.fixed(model, {"last": "int4"}, data)
        report = export_tflite(model, path, verify_data=data)
        self.assertLess(report.max_relative_error, 1e-5)

    def test_open_number_of_steps(self):
        inputs = keras.Input((None, 3))
        x = _L.RNN(_L.LSTMCell(4), name="loop")(inputs)
        model = small_models.fixed(
            keras.Model(inputs, _L.Dense(2)(x)), "int4", np.ones((2, 4, 3))
        )
        with self.assertRaisesRegex(ValueError, "Received: RNN 'loop'"):
            twin.float_twin(model)


if __name__ == "__main__":
    absltest.main()
