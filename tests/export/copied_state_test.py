"""State that is no weight, and layers that compute in less than float32."""

import keras
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import export_onnx
from fliqs_tf.export import export_recipe
from fliqs_tf.export import export_tflite
from fliqs_tf.export import twin
from fliqs_tf.export.runner import Runner
from fliqs_tf.layers.base import walk
from tests.export import small_models

_L = keras.layers


class _Shift(keras.layers.Layer):
    """Computes with a number that its configuration does not tell."""

    shift = 0.0

    def call(self, x):
        return x + self.shift

    def get_config(self):
        return super().get_config()


@keras.saving.register_keras_serializable("tests")
class _Tripled(keras.Model):
    """Computes more than its graph."""

    def call(self, x, training=None):
        return 3.0 * super().call(x, training=training)


class _Twice(keras.Model):
    """Has an output more than its graph."""

    def call(self, x, training=None):
        return 2 * [super().call(x, training=training)]


class _Negated(keras.Sequential):
    def call(self, x, training=None):
        return -super().call(x, training=training)


class _TrainedOtherwise(keras.Model):
    """Computes what its graph does."""

    def train_step(self, data):
        return {}


def _images():
    return 5.0 * small_models.images() + 20.0


def _normalized():
    """A network behind an adapted `Normalization`, with a `Lambda`."""
    norm = _L.Normalization(name="norm")
    norm.adapt(_images())
    inputs = keras.Input(small_models.IMAGE)
    x = _L.Conv2D(8, 3, activation="relu", name="conv")(norm(inputs))
    x = _L.GlobalAveragePooling2D()(x)
    x = _L.Lambda(lambda x: 2.0 * x, name="twice")(x)
    return keras.Model(inputs, _L.Dense(3, name="dense")(x))


class StateTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = self.create_tempdir().full_path + "/model"

    @parameterized.parameters(
        (export_tflite, "float"),
        (export_tflite, "fake_quant"),
        (export_tflite, "int8"),
        (export_tflite, "dynamic"),
        (export_onnx, "float"),
        (export_onnx, "fake_quant"),
    )
    def test_files_keep_what_was_adapted(self, export, activations):
        model = small_models.fixed(_normalized(), "int8", _images())
        report = export(model, self.path, activations, _images())
        # Without the mean the error is several times the output.
        self.assertLess(report.trained.rms_error, 0.05)
        if activations == "fake_quant":
            self.assertLess(report.verification.max_relative_error, 1e-6)

    @parameterized.parameters(
        twin.copy,
        twin.weight_only_reference,
        lambda model: twin.container_reference(model, "int8"),
        twin.float_twin,
    )
    def test_twins_have_the_mean(self, make):
        model = small_models.fixed(_normalized(), "int8", _images())
        np.testing.assert_array_equal(
            make(model).get_layer("norm").mean,
            _images().mean((0, 1, 2))[None, None, None],
        )

    def test_large_constants_in_onnx(self):
        """More elements than TensorFlow copies into a graph by itself."""
        data = np.arange(600, dtype="float32").reshape(3, 200)
        norm = _L.Normalization()
        norm.adapt(data)
        inputs = keras.Input((200,))
        model = small_models.fixed(
            keras.Model(inputs, _L.Dense(3)(norm(inputs))), "int8", data
        )
        report = export_onnx(model, self.path, verify_data=data)
        self.assertLess(report.verification.max_relative_error, 1e-5)

    @parameterized.parameters(
        ("first", "in front of layer 'first'"),
        ("last", "behind the last quantized layer"),
    )
    def test_what_cannot_be_copied(self, name, place):
        inputs = keras.Input((4,))
        x = _L.Dense(3, name="first")(_Shift(name="shift_first")(inputs))
        model = keras.Model(inputs, _Shift(name="shift_last")(x))
        model = small_models.fixed(model, "int8", np.ones((2, 4), "float32"))
        model.get_layer(f"shift_{name}").shift = 3.0
        with open(self.path + ".tflite", "wb") as file:
            file.write(b"    TFL3")
        exports = (
            lambda: export_tflite(model, self.path),
            lambda: export_onnx(model, self.path),
            lambda: export_recipe(model, self.path, self.path + ".tflite"),
        )
        for export in exports:
            with self.assertRaisesRegex(
                ValueError, f"deviates on 64 of 64 samples, first {place}"
            ):
                export()


class SubclassTest(parameterized.TestCase):
    """Graphs of a class with a `call` of its own."""

    def setUp(self):
        super().setUp()
        self.path = self.create_tempdir().full_path + "/model"
        self.inputs = keras.Input((4,))
        model = keras.Model(self.inputs, _L.Dense(3)(self.inputs))
        data = np.random.default_rng(0).standard_normal((9, 4))
        self.data = data.astype("float32")
        self.fixed = small_models.fixed(model, "int8", self.data)

    def _of_class(self, cls):
        return cls(self.fixed.inputs, self.fixed.outputs, name="net")

    def _exports(self):
        float_file = self.path + ".tflite"
        export_tflite(self.fixed, float_file, containers="float32")
        return (
            *(
                lambda model, mode=mode: export_tflite(
                    model, self.path, mode, self.data, allow_mismatch=True
                )
                for mode in ("float", "fake_quant", "int8", "dynamic")
            ),
            lambda model: export_onnx(model, self.path, verify_data=self.data),
            lambda model: export_recipe(
                model, self.path, float_file, verify_data=self.data
            ),
        )

    def test_another_result_is_refused_in_every_mode(self):
        model = self._of_class(_Tripled)
        for export in self._exports():
            with self.assertRaisesRegex(
                ValueError,
                "must compute what its layers do.*Received: _Tripled, whose own"
                r" `call` deviates on 9 of 9 samples.*Model\(inputs, fixed\(",
            ):
                export(model)

    def test_another_number_of_outputs(self):
        with self.assertRaisesRegex(
            ValueError, r"_Twice.*shapes \[\(9, 3\), \(9, 3\)\] instead of"
        ):
            export_tflite(self._of_class(_Twice), self.path, "float", self.data)

    def test_sequential(self):
        model = _Negated(self.fixed.layers)
        with self.assertRaisesRegex(ValueError, "_Negated.*9 of 9 samples"):
            export_tflite(model, self.path, verify_data=self.data)

    def test_the_way_out(self):
        model = keras.Model(self.inputs, self._of_class(_Tripled)(self.inputs))
        export_tflite(model, self.path, "fake_quant", self.data)
        with open(self.path, "rb") as file:
            (made,) = Runner(file.read())([self.data])
        expected = 3.0 * self.fixed(self.data)
        np.testing.assert_allclose(made, expected, rtol=1e-6)

    def test_the_same_result_is_exported(self):
        report = export_tflite(
            self._of_class(_TrainedOtherwise), self.path, verify_data=self.data
        )
        self.assertTrue(report.verification.passed)


class PrecisionTest(parameterized.TestCase):
    def _fixed(self, policy):
        """Wrappers, attention and a model built on what a layer computed."""
        keras.config.set_dtype_policy(policy)
        self.addCleanup(keras.config.set_dtype_policy, "float32")
        inputs = keras.Input((6, 8))
        x = _L.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
        x = _L.TimeDistributed(_L.Dense(4, name="inner"), name="times")(x)
        x = keras.Sequential([_L.ReLU(), _L.Dense(4)], name="block")(x)
        x = _L.Bidirectional(_L.LSTM(3), name="both")(x)
        model = keras.Model(inputs, _L.Dense(3, dtype="float32")(x))
        keras.config.set_dtype_policy("float32")
        return small_models.fixed(model, "int8", self._data())

    def _data(self):
        random = np.random.default_rng(0)
        return random.standard_normal((20, 6, 8)).astype("float32")

    @parameterized.parameters("mixed_bfloat16", "mixed_float16")
    def test_twins_compute_in_float32(self, policy):
        model = self._fixed(policy)
        made = twin.float32_reference(model)
        precisions = {p: la.compute_dtype for p, la in walk(made)}
        self.assertSameElements(precisions.values(), ["float32"])
        self.assertIn("attention/query", precisions)
        self.assertIn("both/forward_lstm", precisions)
        # Half precision rounds to 8 or 11 bits, and INT8 codes flip at that.
        self.assertLess(
            np.abs(made(self._data()) - model(self._data())).max(), 0.05
        )

    @parameterized.parameters("mixed_bfloat16", "float16")
    def test_batch_norm_has_the_bits_of_the_twin(self, policy):
        keras.config.set_dtype_policy(policy)
        self.addCleanup(keras.config.set_dtype_policy, "float32")
        inputs = keras.Input(small_models.IMAGE)
        x = _L.Conv2D(8, 3, use_bias=False)(inputs)
        x = _L.ReLU()(_L.BatchNormalization()(x))
        model = keras.Model(inputs, _L.Dense(3)(_L.Flatten()(x)))
        keras.config.set_dtype_policy("float32")
        model = small_models.fixed(small_models.shaken(model), "int4")
        path = self.create_tempdir().full_path + "/model"
        report = export_tflite(model, path, "fake_quant", small_models.images())
        self.assertEqual(report.verification.max_relative_error, 0.0)

    @parameterized.product(
        policy=("mixed_bfloat16", "mixed_float16"),
        export=(export_tflite, export_onnx),
    )
    @pytest.mark.slow
    def test_files(self, policy, export):
        path = self.create_tempdir().full_path + "/model"
        report = export(self._fixed(policy), path, verify_data=self._data())
        self.assertLess(report.verification.max_relative_error, 1e-5)


if __name__ == "__main__":
    absltest.main()
