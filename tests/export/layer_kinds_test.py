import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.attention_products import with_attention_products
from fliqs_tf.export import export_tflite
from tests.export import small_models

_IMAGE = (8, 8, 4)
_SEQUENCE = (6, 8)


def _attention():
    inputs = keras.Input(_SEQUENCE)
    layer = keras.layers.MultiHeadAttention(2, 4, name="layer")
    return keras.Model(inputs, layer(inputs, inputs))


def _single(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


_KINDS = {
    "attention": _attention,
    "conv1d": lambda: _single(keras.layers.Conv1D(5, 3), _SEQUENCE),
    "einsum": lambda: _single(
        keras.layers.EinsumDense("abc,cd->abd", (None, 5)), _SEQUENCE
    ),
    "transpose": lambda: _single(
        keras.layers.Conv2DTranspose(6, 3, strides=2), _IMAGE
    ),
    "lstm": lambda: _single(keras.layers.LSTM(5, unroll=True), _SEQUENCE),
    "separable": lambda: _single(keras.layers.SeparableConv2D(6, 3), _IMAGE),
}


class LayerKindsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = self.create_tempfile().full_path

    def _export(self, kind, activations):
        model = _KINDS[kind]()
        random = np.random.default_rng(0)
        data = random.standard_normal((20, *model.inputs[0].shape[1:]))
        data = data.astype("float32")
        model = small_models.fixed(model, "int4", data)
        return export_tflite(model, self.path, activations, data)

    @parameterized.parameters(*_KINDS)
    def test_float(self, kind):
        report = self._export(kind, "float")
        self.assertLess(report.max_relative_error, 2e-6)
        for row in report.layers:
            self.assertStartsWith(row.stored_type, "INT")

    @parameterized.parameters("attention", "conv1d", "einsum", "transpose")
    def test_training_arithmetic(self, kind):
        report = self._export(kind, "fake_quant")
        self.assertLess(report.max_relative_error, 2e-6)

    @parameterized.parameters("lstm", "separable")
    def test_several_kernels_have_no_training_arithmetic(self, kind):
        with self.assertRaisesRegex(ValueError, "layers with one kernel"):
            self._export(kind, "fake_quant")

    def test_products_of_attention(self):
        model = with_attention_products(_attention())
        random = np.random.default_rng(0)
        data = random.standard_normal((20, *_SEQUENCE)).astype("float32")
        model = small_models.fixed(model, "int4", data)
        for activations in ("float", "fake_quant"):
            report = export_tflite(model, self.path, activations, data)
            self.assertLess(report.max_relative_error, 2e-6)
            rows = {row.path: row for row in report.layers}
            row = rows["layer/scores"]
            self.assertEqual(row.stored_type, "none")
            expected = "rounded to int4"
            if activations == "float":
                expected = "not rounded"
            self.assertIn(expected, row.stored_input)
        for activations in ("int8", "int16", "dynamic"):
            with self.assertRaisesRegex(ValueError, "float and fake_quant"):
                export_tflite(model, self.path, activations, data)

    def test_embedding_is_exact_but_not_small(self):
        indices = keras.Input((6,), dtype="int32")
        x = keras.layers.Embedding(11, 8, name="table")(indices)
        x = keras.layers.GlobalAveragePooling1D()(x)
        model = keras.Model(indices, keras.layers.Dense(3)(x))
        data = np.random.default_rng(0).integers(0, 11, (20, 6))
        model = small_models.fixed(model, "int4", data)
        report = export_tflite(model, self.path, verify_data=data)
        self.assertLess(report.max_relative_error, 2e-6)
        table = next(row for row in report.layers if row.path == "table")
        self.assertEqual(table.stored_type, "none")
        self.assertRegex(table.why, "no constant")


class InputsTest(absltest.TestCase):
    def test_strings_are_refused(self):
        inputs = keras.Input((1,), dtype="string")
        outputs = keras.layers.Lambda(
            lambda x: keras.ops.ones((1, 2)), output_shape=(2,)
        )(inputs)
        model = keras.Model(inputs, outputs)
        path = self.create_tempfile().full_path
        with self.assertRaisesRegex(ValueError, "dtype='string'"):
            export_tflite(model, path)


if __name__ == "__main__":
    absltest.main()
