import json
import pathlib
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import export_tflite
from fliqs_tf.export import file_metadata
from fliqs_tf.export import inspect
from fliqs_tf.export import ranges
from fliqs_tf.export import trace
from fliqs_tf.export import weights
from fliqs_tf.export.graph import Graph
from tests.export import small_models

_MIXED = {
    "stem": "int8",
    "depthwise": "int5",
    "pointwise": "int4",
    "down": {"weight": "e4m3", "input": "int8"},
    "logits": {"weight": "e2m1", "input": None},
}


class _FileTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.create_tempdir().full_path, "m.tflite")
        self.images = small_models.images()
        self.model = small_models.fixed(small_models.residual(), _MIXED)


class _Stateful(tf.Module):
    """Keeps a running sum, by operators without inputs or outputs."""

    def __init__(self):
        super().__init__()
        self.sum = tf.Variable(tf.zeros([1, 4]))
        self.kernel = tf.Variable(tf.ones([4, 3]))

    @tf.function(input_signature=[tf.TensorSpec([1, 4], name="x")])
    def call(self, x):
        self.sum.assign_add(x)
        return tf.matmul(tf.reshape(self.sum, (1, 4)), self.kernel)

    def converted(self) -> bytes:
        converter = tf.lite.TFLiteConverter.from_concrete_functions(
            [self.call.get_concrete_function()], self
        )
        converter.experimental_enable_resource_variables = True
        return converter.convert()


class InspectTest(_FileTestCase):
    @parameterized.parameters("float", "fake_quant", "int8", "dynamic")
    def test_own_file(self, activations):
        report = export_tflite(self.model, self.path, activations, self.images)
        found = inspect(self.path)
        self.assertEqual(found.file_bytes, report.file_bytes)
        asked = {row.name: (row.asked, row.asked_input) for row in found.rows}
        expected = {
            row.path: (row.weight_format, row.input_format)
            for row in report.layers
        }
        self.assertEqual(asked, expected)
        rows = {row.name: row for row in found.rows}
        self.assertEqual(rows["pointwise"].stored_type, "INT4")
        self.assertEqual(rows["pointwise"].stored_bits, 4)
        self.assertEqual(rows["down"].stored_bits, 8)
        self.assertTrue(rows["down"].decoded)
        for layer in report.layers:
            row = rows[layer.path]
            self.assertEqual(row.stored_bytes, layer.weight_bytes)
        if activations == "int8":
            self.assertEqual(rows["stem"].input_type, "INT8")
            self.assertFalse(rows["stem"].decoded)
        self.assertEqual(found.metadata["activations"], activations)
        self.assertTrue(found.metadata["passed"])
        self.assertIn("fliqs_tf", found.metadata["versions"])
        agreement = found.metadata["agreements"]["verification"]
        self.assertEqual(agreement["samples"], 40)
        self.assertEqual(agreement["rms_error"], report.verification.rms_error)
        self.assertRegex(str(found), f"activations={activations}.*fliqs_tf")

    def test_file_of_another_tool(self):
        converter = tf.lite.TFLiteConverter.from_keras_model(
            small_models.residual()
        )
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        self.path.write_bytes(converter.convert())
        found = inspect(self.path)
        self.assertIsNone(found.metadata)
        self.assertRegex(str(found), "without metadata.*another tool")
        stored = sum(row.stored_bytes for row in found.rows)
        self.assertIn(f"of which weights {stored:,};", str(found))
        self.assertLen(found.rows, 5)
        for row in found.rows:
            self.assertIsNone(row.asked)
            self.assertGreaterEqual(row.stored_bits, 8)

    def test_operators_without_inputs_or_outputs(self):
        content = _Stateful().converted()
        self.path.write_bytes(content)
        (row,) = inspect(self.path).rows
        self.assertEqual(row.operator, "FULLY_CONNECTED")
        self.assertEqual((row.weights, row.stored_bytes), (12, 48))
        graph = Graph(content)
        self.assertTrue(any(not len(o.outputs) for o in graph.operators))
        (output,) = graph.outputs
        self.assertEqual(trace._layer_before(graph, output, []), "")
        self.assertEqual(ranges.learned_ranges(graph, [], {}, {}), {})

    def test_what_is_no_model(self):
        with self.assertRaisesRegex(ValueError, "must be a file"):
            inspect(self.path)
        self.path.write_bytes(b"something else")
        with self.assertRaisesRegex(ValueError, "TFL3"):
            inspect(self.path)


class MetadataTest(_FileTestCase):
    def test_survives_json_and_other_entries(self):
        export_tflite(self.model, self.path)
        graph = Graph(self.path.read_bytes())
        graph.set_metadata("other", b"text")
        again = Graph(graph.to_bytes())
        self.assertEqual(again.metadata("other"), b"text")
        text = again.metadata(file_metadata.NAME)
        self.assertNotIn(b"Infinity", text)
        self.assertEqual(json.loads(text)["layout"], 1)

    def test_damaged_entry_is_none(self):
        graph = Graph(self._converted())
        graph.set_metadata(file_metadata.NAME, b"{")
        self.assertIsNone(file_metadata.read(graph))

    def test_allowed_mismatch_is_in_the_file(self):
        export_tflite(self.model, self.path, tolerance=0.0, allow_mismatch=True)
        found = inspect(self.path)
        self.assertFalse(found.metadata["passed"])
        self.assertTrue(found.metadata["mismatch_allowed"])
        self.assertIn("OUTSIDE", str(found))

    def _converted(self):
        export_tflite(self.model, self.path)
        return self.path.read_bytes()


class TraceTest(_FileTestCase):
    def test_first_deviating_layer_is_named(self):
        factor = weights._factor
        size = self.model.get_layer("pointwise").kernel.numpy().size

        def wrong(constant, found, axis):
            result = factor(constant, found, axis)
            if result is not None and found.size == size:
                return result * np.float32(2)
            return result

        with (
            mock.patch.object(weights, "_factor", wrong),
            self.assertRaisesRegex(
                RuntimeError,
                "behind layer 'pointwise': the inputs of layer 'down' have an "
                r"RMS error of 0\.\d+",
            ),
        ):
            export_tflite(self.model, self.path, verify_data=self.images)
        self.assertFalse(self.path.exists())

    def test_last_layer(self):
        inputs = keras.Input((4,))
        layer = keras.layers.Dense(3, name="last")
        model = small_models.fixed(
            keras.Model(inputs, layer(inputs)),
            "int8",
            np.ones((2, 4), "float32"),
        )
        with self.assertRaisesRegex(RuntimeError, "behind layer 'last'"):
            export_tflite(model, self.path, "dynamic", tolerance=1e-9)


if __name__ == "__main__":
    absltest.main()
