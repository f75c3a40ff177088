from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from ai_edge_litert.interpreter import Interpreter

from fliqs_tf import convert
from fliqs_tf.export import export_tflite
from fliqs_tf.export import litert
from fliqs_tf.export import modes
from fliqs_tf.export import ranges
from fliqs_tf.export import twin
from fliqs_tf.export import weights
from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.graph import type_name
from fliqs_tf.export.runner import Runner
from tests.export import small_models

_MIXED = {
    "stem": "int8",
    "depthwise": "int5",
    "pointwise": "int4",
    "down": {"weight": "e4m3", "input": "int8"},
    "logits": "e2m1",
}


class _IntegerTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.images = small_models.images()
        self.path = self.create_tempfile().full_path

    def _graph(self):
        with open(self.path, "rb") as file:
            return Graph(file.read())


class StaticTest(_IntegerTestCase):
    def test_trained_int8_grid(self):
        """Every layer's operands are what they were in training."""
        model = small_models.fixed(small_models.residual(), "int8")
        report = export_tflite(model, self.path, "int8", self.images)
        self.assertLess(report.verification.rms_error, 0.04)
        graph = self._graph()
        for (path, _), (_, bound) in twin.learned_ranges(model).items():
            (stored,) = weights.stored_tensors(graph, path)
            operator = weights.reader(graph, stored)
            source = graph.tensors[int(operator.inputs[0])]
            self.assertEqual(type_name(source.type), "INT8")
            np.testing.assert_array_equal(source.quantization.zeroPoint, [0])
            np.testing.assert_allclose(
                source.quantization.scale, [bound / 127], rtol=2e-7
            )
        # The first layer has no norm's zero channels before it.
        layer = twin.fixed_layers(model)["logits"]
        codes, scale = layer.quantized_kernel()
        (stored,) = weights.stored_tensors(graph, "logits")
        np.testing.assert_array_equal(
            graph.raw(stored).view(np.int8).reshape(5, 16).T, codes
        )
        np.testing.assert_allclose(
            graph.tensors[stored].quantization.scale, scale.ravel(), rtol=2e-7
        )

    @parameterized.parameters("unsigned", "affine")
    def test_trained_grid_with_a_zero_point(self, signedness):
        model = convert.to_searchable(
            small_models.residual(), "int8", input_signedness=signedness
        )
        model = small_models.fixed(model, "int8")
        export_tflite(model, self.path, "int8", self.images)
        graph = self._graph()
        for path in ("pointwise", "down", "logits"):
            low, high = twin.learned_ranges(model)[path, "input"]
            (stored,) = weights.stored_tensors(graph, path)
            operator = weights.reader(graph, stored)
            found = graph.tensors[int(operator.inputs[0])].quantization
            scale = (high - low) / 255
            np.testing.assert_allclose(found.scale, [scale], rtol=2e-7)
            # The least integer, -128, stands for `low`.
            zero = round(-128 - low / scale)
            np.testing.assert_array_equal(found.zeroPoint, [zero])
            if signedness == "unsigned":
                self.assertEqual((low, zero), (0.0, -128))

    def test_gates_are_not_rounded_twice(self):
        """The runtime's own scale of a sigmoid is that of its readers."""
        layers = keras.layers
        inputs = keras.Input(small_models.IMAGE)
        x = layers.Conv2D(16, 3, activation="silu")(inputs)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = layers.Conv2D(4, 1, activation="silu")(gate)
        x = x * layers.Conv2D(16, 1, activation="sigmoid")(gate)
        model = keras.Model(inputs, layers.Conv2D(5, 1)(x))
        model = small_models.fixed(model, "int8")
        report = export_tflite(model, self.path, "int8", self.images)
        self.assertLess(report.verification.rms_error, 0.03)
        graph = self._graph()
        used = [graph.builtin(operator) for operator in graph.operators]
        self.assertEqual(used.count(Builtin.LOGISTIC), 3)
        # That of the input alone.
        self.assertEqual(used.count(Builtin.QUANTIZE), 1)

    @parameterized.parameters(("int8", 0.04), ("int16", 4e-4))
    def test_mixed_weights_in_one_file(self, activations, limit):
        model = small_models.fixed(small_models.residual(), _MIXED)
        report = export_tflite(
            model,
            self.path,
            activations,
            self.images,
            reference_kernels=True,
        )
        self.assertLess(report.verification.rms_error, limit)
        self.assertLess(report.reference_kernels.rms_error, limit)
        # Against the model with narrower inputs the difference is larger.
        self.assertGreater(report.trained.rms_error, 0.05)
        rows = {row.path: row for row in report.layers}
        stored = [row.stored_type for row in report.layers]
        self.assertEqual(
            stored,
            [
                *("INT8", "INT8", "INT4 packed"),
                *("UINT8 table of 8-bit codes", "INT8"),
            ],
        )
        kind = activations.upper()
        self.assertRegex(
            rows["pointwise"].stored_input, f"{kind}, scale.*trained as int4"
        )
        self.assertRegex(rows["down"].stored_input, "FLOAT32")

    def test_layer_without_input_format_computes_in_float(self):
        assignment = _MIXED | {"stem": {"weight": "int8", "input": None}}
        model = small_models.fixed(small_models.residual(), assignment)
        report = export_tflite(model, self.path, "int8", self.images)
        self.assertEqual(report.layers[0].stored_input, "FLOAT32")
        self.assertEqual(report.layers[0].stored_type, "INT8")

    @parameterized.parameters("int8", "int16")
    def test_layers_without_integers_do_not_round(self, activations):
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8, activation="relu", name="first"),
                layers.Dense(3, name="last"),
            ]
        )
        data = np.random.default_rng(0).standard_normal((40, 6), "float32")
        # The range of half of the values, so that rounding them clips.
        model = small_models.fixed(model, "e4m3", 0.5 * data)
        report = export_tflite(model, self.path, activations, data)
        self.assertLess(report.verification.max_relative_error, 1e-6)
        rows = [row.stored_input for row in report.layers]
        self.assertEqual(rows, ["FLOAT32 not rounded"] * 2)

    def test_layer_without_integers_in_front_of_others(self):
        formats = {**_MIXED, "stem": "e4m3"}
        model = small_models.fixed(small_models.residual(), formats)
        report = export_tflite(model, self.path, "int8", 2.0 * self.images)
        self.assertLess(report.verification.rms_error, 0.04)
        graph = self._graph()
        tensors = {p: weights.stored_tensors(graph, p) for p in formats}
        # The last two read sums and means in INT8, one of them in float32.
        self.assertEqual(modes.unrounded_layers(graph, tensors), ["stem"])

    def test_inputs_and_outputs_are_float32(self):
        model = small_models.fixed(small_models.residual(), "int4")
        export_tflite(model, self.path, "int8", self.images)
        graph = self._graph()
        for number in graph.inputs + graph.outputs:
            self.assertEqual(type_name(graph.tensors[number].type), "FLOAT32")

    @parameterized.parameters("int8", "int16")
    def test_untrained_ranges_are_refused(self, activations):
        plain = small_models.residual()
        model = small_models.fixed(plain, "int8")
        layer = model.get_layer("down")
        layer._input_state["updates"].assign(0.0)
        with self.assertRaisesRegex(ValueError, r"without data in \['down'\]"):
            export_tflite(model, self.path, activations, self.images)

    @parameterized.parameters(
        ("int8", "symmetric"), ("int8", "affine"), ("int16", "symmetric")
    )
    def test_inputs_that_were_always_zero(self, activations, signedness):
        dense = keras.layers.Dense
        inputs = keras.Input((6,))
        x = dense(4, name="live")(inputs)
        # No value passes the ReLU.
        below = keras.initializers.Constant(-100.0)
        dead = dense(4, bias_initializer=below, activation="relu")(inputs)
        x += dense(4, name="after_dead", bias_initializer="ones")(dead)
        data = np.random.default_rng(0).standard_normal((40, 6), "float32")
        model = convert.to_searchable(
            keras.Model(inputs, x), "int8", input_signedness=signedness
        )
        model = small_models.fixed(model, "int8", data)
        report = export_tflite(model, self.path, activations, data)
        self.assertLess(report.verification.rms_error, 0.02)
        rows = {row.path: row.stored_input for row in report.layers}
        self.assertRegex(rows["after_dead"], f"{activations.upper()}, scale")

    def test_ranges_of_each_tensor_are_measured(self):
        model = small_models.fixed(
            small_models.residual(), "int8", input_range="dynamic"
        )
        report = export_tflite(model, self.path, "int8", self.images)
        self.assertLess(report.verification.rms_error, 0.06)

    def test_accuracy_on_labels(self):
        model = small_models.fixed(small_models.residual(), "int8")
        labels = np.asarray(model(self.images)).argmax(-1)
        data = tf.data.Dataset.from_tensor_slices((self.images, labels))
        data = data.batch(16)
        report = export_tflite(
            model, self.path, "int8", data, accuracy_drop=0.5
        )
        self.assertEqual(report.trained.reference_accuracy, 1.0)
        self.assertLess(report.trained.accuracy_drop, 0.2)
        factor = weights._factor

        def small(*arguments):
            found = factor(*arguments)
            return None if found is None else found * np.float32(0.01)

        # All weights become the largest ones of their grid.
        with (
            mock.patch.object(weights, "_factor", small),
            self.assertRaisesRegex(
                RuntimeError,
                r"Labels do not prove it: .* naming one class always has 0\."
                r".*must not drop by more than 0\.01",
            ),
        ):
            export_tflite(model, self.path, "int8", data)

    def test_several_inputs_and_outputs(self):
        layers = keras.layers
        left = keras.Input(small_models.IMAGE, name="left")
        right = keras.Input(small_models.IMAGE, name="right")
        shared = layers.Conv2D(8, 3, name="shared", activation="relu")
        x, y = shared(left), shared(right)
        z = layers.Flatten()(
            layers.MaxPooling2D()(layers.Concatenate()([x, y]))
        )
        model = keras.Model(
            {"left": left, "right": right},
            {"u": layers.Dense(3, name="u")(z), "v": layers.Dense(2)(z)},
        )
        data = {"left": self.images, "right": self.images[::-1]}
        model = small_models.fixed(model, "int8", data)
        report = export_tflite(model, self.path, "int8", data)
        self.assertLess(report.verification.rms_error, 0.04)

    @parameterized.product(
        activations=("int8", "int16"),
        outputs=(
            lambda x, y, z: [y, z],
            lambda x, y, z: {"z": z, "y": y, "x": x},
            lambda x, y, z: [z, z * 2.0, -y, z],
            lambda x, y, z: [*keras.ops.split(y, 2, axis=-1), y, z],
        ),
    )
    def test_outputs_that_are_read_inside(self, activations, outputs):
        inputs = keras.Input((6,), name="x")
        dense = keras.layers.Dense
        embedding = dense(16, activation="relu", name="embedding")(inputs)
        logits = dense(5, name="logits")(embedding)
        model = keras.Model(inputs, outputs(inputs, embedding, logits))
        data = np.random.default_rng(0).standard_normal((40, 6), "float32")
        model = small_models.fixed(model, "int8", data)
        report = export_tflite(model, self.path, activations, data)
        self.assertLess(report.verification.rms_error, 0.02)
        graph = self._graph()
        types = {type_name(graph.tensors[n].type) for n in graph.outputs}
        self.assertEqual(types, {"FLOAT32"})
        for row in report.layers:
            self.assertRegex(row.stored_input, f"{activations.upper()}, scale")
        # The one of the embedding is fused into its product.
        used = [graph.builtin(operator) for operator in graph.operators]
        self.assertNotIn(Builtin.RELU, used)
        # By name, as a program would read them.
        run = Interpreter(self.path).get_signature_runner()
        received = run(x=data[:1])
        expected = dict(
            zip(
                litert.output_names(model),
                keras.tree.flatten(model(data[:1])),
                strict=True,
            )
        )
        self.assertEqual(set(received), set(expected))
        for name, value in received.items():
            np.testing.assert_allclose(value, expected[name], atol=0.1)


class DynamicTest(_IntegerTestCase):
    def test_integer_weights_and_float_tensors(self):
        model = small_models.fixed(small_models.residual(), _MIXED)
        report = export_tflite(model, self.path, "dynamic", self.images)
        self.assertLess(report.verification.rms_error, 0.02)
        rows = {row.path: row for row in report.layers}
        self.assertRegex(rows["stem"].stored_input, "at each call")
        self.assertEqual(rows["pointwise"].stored_type, "INT4 packed")
        self.assertEqual(rows["down"].stored_input, "FLOAT32 not rounded")


class ScalingTest(_IntegerTestCase):
    @parameterized.parameters(
        # The converter folds these into the convolution, which then reads
        # pixels; its range was learned on what the layer gets.
        {"scale": 1 / 255, "offset": 0.0, "padding": "same"},
        {"scale": -2.0, "offset": 0.0, "padding": "same"},
        {"scale": 1 / 127.5, "offset": -1.0, "padding": "valid"},
        {"scale": 1 / 127.5, "offset": -1.0, "padding": "same"},
    )
    def test_preprocessing_in_front(self, scale, offset, padding):
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Rescaling(scale, offset),
                keras.layers.Conv2D(8, 3, padding=padding, name="stem"),
                keras.layers.Flatten(),
                keras.layers.Dense(10, name="logits"),
            ]
        )
        pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1))
        pixels = pixels.astype("float32")
        fixed = convert.to_fixed(model, {"stem": "int8", "logits": "int8"})
        fixed(pixels, training=True)
        report = export_tflite(fixed, self.path, "int8", pixels)
        self.assertLess(report.verification.rms_error, 0.02)

    def test_fits_a_scaling_or_none(self):
        given = np.array([-1.0, 0.0, 0.2, 3.0], np.float32)
        for factor, offset in ((255.0, 0.0), (-2.0, 0.0), (127.5, 127.5)):
            found = ranges._fit(given, np.sort(factor * given + offset))
            self.assertAlmostEqual(found.factor, factor, places=3)
            self.assertAlmostEqual(found.offset, offset, places=3)
        # The trained grid to the bit, whatever the order of summation was.
        same = ranges._fit(given, given * np.float32(1 + 1e-6))
        self.assertEqual(same, ranges.Scaling())
        self.assertIsNone(ranges._fit(given, np.sort(given**3)))


class RunnerTest(_IntegerTestCase):
    def test_kept_tensors_come_back_as_numbers(self):
        model = small_models.fixed(small_models.residual(), "int8")
        export_tflite(model, self.path, "int8", self.images)
        graph = self._graph()
        with open(self.path, "rb") as file:
            runner = Runner(file.read(), keeps_tensors=True)
        runner([self.images[:1]])
        (stored,) = weights.stored_tensors(graph, "stem")
        source = int(weights.reader(graph, stored).inputs[0])
        _, bound = twin.learned_ranges(model)["stem", "input"]
        np.testing.assert_allclose(
            runner.tensor(source),
            np.clip(self.images[:1], -bound, bound),
            atol=bound / 127,
        )


if __name__ == "__main__":
    absltest.main()
