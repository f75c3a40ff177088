"""Factors of the inputs of a matrix product stay out of its weights."""

from unittest import mock

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import export_tflite
from fliqs_tf.export import litert
from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.slots import PREFIX
from tests.export import small_models

_L = keras.layers


def _shared():
    """A product behind a norm and before it."""
    inputs = keras.Input((6,))
    dense, norm = _L.Dense(6, activation="relu"), _L.BatchNormalization()
    x = norm(dense(norm(dense(inputs))))
    return keras.Model(inputs, _L.Dense(3)(x))


def _sequence(*layers, shape=(6,)):
    return keras.Sequential([keras.Input(shape), *layers])


# Name -> model, and how many multiplications are left in its file.
_MODELS = {
    "norm": (lambda: _sequence(_L.BatchNormalization(), _L.Dense(3)), 1),
    "rescaling": (
        lambda: _sequence(
            _L.Rescaling([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), _L.Dense(3)
        ),
        1,
    ),
    # Into the weights of the layer in front, whose outputs it scales.
    "between": (
        lambda: _sequence(_L.Dense(5), _L.BatchNormalization(), _L.Dense(3)),
        0,
    ),
    "behind_relu": (
        lambda: _sequence(
            _L.Dense(5, activation="relu"), _L.BatchNormalization(), _L.Dense(3)
        ),
        1,
    ),
    "behind_flatten": (
        lambda: _sequence(
            _L.Conv2D(4, 3, activation="relu"),
            _L.Flatten(),
            _L.BatchNormalization(),
            _L.Dropout(0.5),
            _L.Dense(3),
            shape=(4, 4, 2),
        ),
        1,
    ),
    "shared": (_shared, 2),
}


class UnfoldedTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = self.create_tempdir().full_path + "/model"
        keras.utils.set_random_seed(0)

    def _model(self, name):
        make, _ = _MODELS[name]
        model = small_models.shaken(make())
        # The converter folds nothing into products without a bias.
        for layer in model.layers:
            if isinstance(layer, _L.Dense):
                layer.bias.assign(np.linspace(-1, 1, layer.units))
        return model

    def _fixed(self, name, formats="int4"):
        model = self._model(name)
        return small_models.fixed(model, formats, self._data(model))

    def _data(self, model):
        random = np.random.default_rng(0)
        shape = (20, *model.inputs[0].shape[1:])
        return random.standard_normal(shape).astype("float32")

    def _graph(self):
        with open(self.path, "rb") as file:
            return Graph(file.read())

    @parameterized.parameters(*_MODELS)
    def test_kernels_are_stored_in_their_formats(self, name):
        model = self._fixed(name)
        report = export_tflite(model, self.path, verify_data=self._data(model))
        self.assertLess(report.max_relative_error, 2e-6)
        for row in report.layers:
            self.assertEqual(row.stored_type, "INT4 packed")
            self.assertEqual(row.weight_bytes, row.theoretical_bytes)
        graph = self._graph()
        kinds = [graph.builtin(operator) for operator in graph.operators]
        _, count = _MODELS[name]
        self.assertEqual(kinds.count(Builtin.MUL), count)
        for tensor in range(len(graph.tensors)):
            self.assertNotIn(PREFIX, graph.name(tensor))

    def test_dynamic_range(self):
        model = self._fixed("norm")
        report = export_tflite(model, self.path, "dynamic", self._data(model))
        self.assertEqual(report.layers[0].stored_type, "INT4 packed")

    @parameterized.parameters("int8", "int16")
    def test_features_of_other_magnitudes_in_integers(self, activations):
        model = self._model("norm")
        scales = np.logspace(-2, 3, 6).astype("float32")
        data = self._data(model) * scales
        model.layers[0].moving_variance.assign(scales**2)
        model = small_models.fixed(model, "int8", data)
        report = export_tflite(model, self.path, activations, data)
        # A single scale for all features has an error of 0.6.
        self.assertLess(report.verification.rms_error, 0.02)
        self.assertEqual(report.layers[0].stored_type, "INT8")
        self.assertStartsWith(
            report.layers[0].stored_input, activations.upper()
        )

    def test_unrounded_inputs_in_the_arithmetic_of_training(self):
        formats = {"weight": "int4", "input": "fp32"}
        model = self._model("rescaling")
        data = self._data(model)
        model = small_models.fixed(
            model, {model.layers[-1].name: formats}, data
        )
        report = export_tflite(model, self.path, "fake_quant", data)
        self.assertEqual(report.layers[0].stored_type, "INT4 packed")
        self.assertLess(report.max_relative_error, 1e-6)

    def test_float32_weights_take_the_factors(self):
        model = self._fixed("norm", "fp32")
        export_tflite(model, self.path, verify_data=self._data(model))
        self.assertLen(self._graph().operators, 1)

    def test_others_are_converted_once(self):
        model = small_models.fixed(small_models.residual(), "int4")
        with mock.patch.object(
            litert, "convert", wraps=litert.convert
        ) as convert:
            export_tflite(model, self.path, verify_data=small_models.images(9))
        convert.assert_called_once()


if __name__ == "__main__":
    absltest.main()
