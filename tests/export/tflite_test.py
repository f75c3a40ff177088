import json
import os
import pathlib
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from ai_edge_litert.interpreter import Interpreter

from fliqs_tf import convert
from fliqs_tf.export import export_tflite
from fliqs_tf.export import verify
from fliqs_tf.export import weights
from fliqs_tf.export.graph import Graph
from tests.export import small_models

_FORMATS = (
    *("int2", "int3", "int4", "int5", "int6", "int7", "int8", "int16"),
    *("e2m1", "e3m2", "e4m3", "e5m2", "e8m1"),
    *("bf16", "fp16", "fp32"),
)
_MIXED = {
    "stem": "int4",
    "depthwise": {"weight": "int4", "input": "int8"},
    "pointwise": {"weight": "e2m1", "input": None},
    "down": "int5",
    "logits": "e4m3",
}


class _ExportTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.path = self.folder / "model.tflite"


class FormatsTest(_ExportTestCase):
    @parameterized.parameters(*_FORMATS)
    @pytest.mark.one_in(3)
    def test_training_arithmetic(self, fmt):
        model = small_models.fixed(small_models.residual(), fmt)
        report = export_tflite(
            model,
            self.path,
            activations="fake_quant",
            verify_data=small_models.images(),
        )
        # Sums of 16-bit codes, and of codes of wide exponents, are not exact.
        is_exact = fmt not in ("int16", "bf16", "fp16", "fp32", "e8m1")
        self.assertLessEqual(
            report.max_relative_error, 0.0 if is_exact else 1e-4
        )


class ModelsTest(_ExportTestCase):
    @parameterized.product(
        activations=("float", "fake_quant"), input_range=("ema", "dynamic")
    )
    def test_mixed_formats(self, activations, input_range):
        model = small_models.fixed(
            small_models.residual("silu"), _MIXED, input_range=input_range
        )
        report = export_tflite(
            model, self.path, activations, small_models.images()
        )
        limit = 2e-6 if activations == "float" else 0.0
        self.assertLessEqual(report.max_relative_error, limit)
        self.assertEqual(report.argmax_agreement, 40)
        self.assertEqual(report.file_bytes, os.path.getsize(self.path))
        self.assertEqual(os.listdir(self.folder), ["model.tflite"])

    @parameterized.parameters("float", "fake_quant")
    def test_shared_nested_and_several_inputs(self, activations):
        layers = keras.layers
        block = keras.Sequential(
            [
                keras.Input(small_models.IMAGE),
                layers.Conv2D(4, 3, name="conv"),
                layers.BatchNormalization(),
                layers.ReLU(),
            ],
            name="block",
        )
        left = keras.Input(small_models.IMAGE, name="left")
        right = keras.Input(small_models.IMAGE, name="right")
        shared = layers.Conv2D(8, 3, name="shared")
        x = layers.BatchNormalization()(shared(block(left)))
        y = layers.BatchNormalization()(shared(block(right)))
        z = layers.GlobalAveragePooling2D()(x + y)
        model = small_models.shaken(
            keras.Model(
                {"left": left, "right": right},
                {"u": layers.Dense(3)(z), "v": layers.Dense(1)(z)},
            )
        )
        images = small_models.images()
        data = {"right": images, "left": images[::-1]}
        model = small_models.fixed(model, "int4", data)
        report = export_tflite(model, self.path, activations, data)
        self.assertLess(report.max_relative_error, 2e-6)
        stored = {layer.path: layer.weight_bytes for layer in report.layers}
        self.assertEqual(stored["block/conv"], 3 * 3 * 3 * 4 / 2)
        # Two norms behind one kernel make two sets of signs and scales.
        copies = 2 if activations == "float" else 1
        self.assertEqual(stored["shared"], copies * 3 * 3 * 4 * 8 / 2)

    @parameterized.parameters("float", "fake_quant")
    def test_convolution_options(self, activations):
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((9, 9, 4)),
                layers.Conv2D(8, 3, dilation_rate=2, padding="same"),
                layers.Conv2D(8, 3, groups=2, activation="tanh"),
                layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2),
                layers.AveragePooling2D(2, 1, padding="same"),
                layers.Reshape((9, 16)),
                layers.Dense(3, activation="sigmoid"),
                layers.Flatten(),
                layers.Dense(4, activation="softmax"),
            ]
        )
        random = np.random.default_rng(0)
        data = random.standard_normal((20, 9, 9, 4)).astype("float32")
        model = small_models.fixed(model, "int8", data)
        report = export_tflite(model, self.path, activations, data)
        self.assertLess(report.max_relative_error, 2e-6)
        self.assertEqual({r.stored_type for r in report.layers}, {"INT8"})

    def test_half_precision_model_is_compared_in_float32(self):
        plain = small_models.residual()
        model = small_models.fixed(plain, "int4")
        expected = model(small_models.images(), training=False)
        config = model.get_config()
        text = json.dumps(config).replace(
            '"name": "float32"', '"name": "mixed_bfloat16"'
        )
        half = keras.Model.from_config(json.loads(text))
        half.set_weights(model.get_weights())
        self.assertEqual(half.get_layer("stem").compute_dtype, "bfloat16")
        images = small_models.images()
        export_tflite(half, self.path, "fake_quant", images)
        outputs = _run(self.path, images)
        np.testing.assert_array_equal(outputs, expected)

    def test_model_compiled_with_what_cannot_be_serialised(self):
        model = small_models.fixed(small_models.residual(), "int8")
        model.compile(loss=lambda y, p: keras.ops.mean(p - y))
        export_tflite(model, self.path)

    @parameterized.parameters("fake_quant", "int8", "int16", "dynamic")
    def test_inputs_that_are_booleans(self, activations):
        model = keras.Sequential(
            [keras.Input((6,), dtype="bool"), keras.layers.Dense(3)]
        )
        data = np.random.default_rng(0).integers(0, 2, (20, 6)).astype(bool)
        model = small_models.fixed(model, "int4", data)
        report = export_tflite(model, self.path, activations, data)
        limit = 0.0 if activations == "fake_quant" else 0.02
        self.assertLessEqual(report.verification.rms_error, limit)

    def test_model_without_quantized_layers(self):
        report = export_tflite(small_models.residual(), self.path)
        self.assertEmpty(report.layers)

    def test_fixed_model_is_not_changed(self):
        model = small_models.fixed(small_models.residual(), "int4")
        before = model.get_config(), model.get_weights()
        inputs = model.get_layer("stem").output
        export_tflite(model, self.path, "fake_quant")
        self.assertEqual(model.get_config(), before[0])
        self.assertIs(model.get_layer("stem").output, inputs)
        for old, new in zip(before[1], model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


class ProofTest(_ExportTestCase):
    def setUp(self):
        super().setUp()
        self.model = small_models.fixed(small_models.residual(), _MIXED)
        factor = weights._factor

        def wrong(*arguments):
            found = factor(*arguments)
            return None if found is None else found * np.float32(1.01)

        self.corruption = mock.patch.object(weights, "_factor", wrong)

    def test_corruption_leaves_no_file(self):
        with (
            self.corruption,
            self.assertRaisesRegex(
                RuntimeError, r"Received: max_relative_error=0\.0\d+.*40 given"
            ),
        ):
            export_tflite(self.model, self.path, "float", small_models.images())
        self.assertEmpty(os.listdir(self.folder))

    def test_corruption_leaves_the_older_file(self):
        self.path.write_bytes(b"older")
        with self.corruption, self.assertRaises(RuntimeError):
            export_tflite(self.model, self.path, "fake_quant")
        self.assertEqual(os.listdir(self.folder), ["model.tflite"])
        self.assertEqual(self.path.read_bytes(), b"older")

    def test_allowed_mismatch_is_recorded(self):
        with self.corruption:
            report = export_tflite(self.model, self.path, allow_mismatch=True)
        self.assertTrue(report.mismatch_allowed)
        self.assertFalse(report.verification.passed)
        self.assertGreater(report.verification.deviating_samples, 0)
        self.assertTrue(self.path.exists())

    def test_random_inputs_are_stated(self):
        report = export_tflite(self.model, self.path)
        self.assertEqual(report.verification.data, "random")
        self.assertEqual(report.samples, verify.RANDOM_SAMPLES)

    def test_failed_conversion_leaves_no_file(self):
        with (
            mock.patch.object(Graph, "to_bytes", side_effect=OSError("full")),
            self.assertRaises(OSError),
        ):
            export_tflite(self.model, self.path)
        self.assertEmpty(os.listdir(self.folder))


class ArgumentsTest(_ExportTestCase):
    def setUp(self):
        super().setUp()
        self.model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(2, name="dense")]
        )

    def test_path(self):
        with self.assertRaisesRegex(ValueError, "a folder"):
            export_tflite(self.model, self.folder)
        with self.assertRaisesRegex(ValueError, "existing folder"):
            export_tflite(self.model, self.folder / "none" / "model.tflite")
        with (
            mock.patch("os.open", side_effect=PermissionError(13, "no")),
            self.assertRaisesRegex(ValueError, "can be written.*Received"),
        ):
            export_tflite(self.model, self.path)

    def test_activations(self):
        with self.assertRaisesRegex(ValueError, "float, fake_quant.*'int7'"):
            export_tflite(self.model, self.path, activations="int7")
        # Data where a mode is expected.
        with self.assertRaisesRegex(ValueError, "float, fake_.*Received.*arr"):
            export_tflite(self.model, self.path, np.ones((2, 3), "float32"))

    def test_searchable_model(self):
        searchable = convert.to_searchable(self.model, "int_s")
        with self.assertRaisesRegex(ValueError, r"\['dense'\].*to_fixed"):
            export_tflite(searchable, self.path)

    def test_model(self):
        with self.assertRaisesRegex(ValueError, "Functional or Sequential"):
            export_tflite(keras.layers.Dense(2), self.path)
        unbuilt = keras.Sequential([keras.layers.Dense(2)])
        with self.assertRaisesRegex(ValueError, "built"):
            export_tflite(unbuilt, self.path)

    def test_fixed_batch(self):
        inputs = keras.Input(batch_shape=(3, 4))
        model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
        with self.assertRaisesRegex(ValueError, r"batch dimension.*\(3, 4\)"):
            export_tflite(model, self.path)

    @parameterized.parameters(
        (np.zeros((0, 4)), "at least one sample"),
        (np.zeros((3, 5)), r"\(None, 4\).*\(3, 5\)"),
        (np.zeros((4,)), r"\(None, 4\)"),
        ([np.zeros((2, 4))] * 2, "one array for each"),
        ({"other": np.zeros((2, 4))}, "must name the inputs"),
    )
    def test_verify_data(self, data, message):
        with self.assertRaisesRegex(ValueError, message):
            export_tflite(self.model, self.path, verify_data=data)
        self.assertEmpty(os.listdir(self.folder))

    @parameterized.parameters("float", "fake_quant")
    def test_model_in_float64(self, activations):
        model = keras.Sequential(
            [
                keras.Input((4,), dtype="float64"),
                keras.layers.Dense(2, dtype="float64", name="dense"),
            ]
        )
        data = np.ones((3, 4))
        model = small_models.fixed(model, "int8", data)
        with self.assertRaisesRegex(ValueError, "refused tf.*layer 'dense'"):
            export_tflite(model, self.path, activations, data)

    def test_layer_that_litert_lacks(self):
        model = keras.Sequential([keras.Input((4,)), _Digamma(name="odd")])
        message = r"refused tf\.Digamma of layer 'odd'\."
        with self.assertRaisesRegex(ValueError, message):
            export_tflite(model, self.path)


class _Digamma(keras.layers.Layer):
    def call(self, inputs):
        return tf.math.digamma(inputs)


def _run(path, images):
    runner = Interpreter(str(path)).get_signature_runner()
    (outputs,) = runner(image=images).values()
    return outputs


if __name__ == "__main__":
    absltest.main()
