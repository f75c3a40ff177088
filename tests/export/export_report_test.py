import json
import os
import tempfile

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import export_report
from fliqs_tf.export import export_tflite
from fliqs_tf.export import twin
from fliqs_tf.export import weights
from fliqs_tf.export.graph import Graph
from tests.export import small_models

_ASSIGNMENT = {
    "stem": "int4",
    "depthwise": {"weight": "int5", "input": None},
    "pointwise": "e2m1",
    "down": "e4m4",
    "logits": "fp32",
}


class ExportReportTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.path = os.path.join(folder.name, "model.tflite")
        cls.model = small_models.fixed(small_models.residual(), _ASSIGNMENT)
        cls.report = export_tflite(cls.model, cls.path)

    def test_layers(self):
        rows = [
            (
                layer.path,
                layer.kind,
                layer.weight_format,
                layer.input_format,
                layer.stored_type,
                layer.weight_bytes,
                layer.theoretical_bytes,
            )
            for layer in self.report.layers
        ]
        expected = [
            ("stem", "Conv2D", "int4", "int4", "INT4 packed", 108, 108),
            ("depthwise", "DepthwiseConv2D", "int5", None, "INT8", 72, 45),
            (
                *("pointwise", "Conv2D", "e2m1", "e2m1"),
                *("UINT8 table of 4-bit codes", 32, 32),
            ),
            ("down", "Conv2D", "e4m4", "e4m4", "FLOAT16", 2304, 1296),
            ("logits", "Dense", "fp32", "fp32", "FLOAT32", 320, 320),
        ]
        self.assertEqual(rows, expected)

    def test_why_names_what_is_missing(self):
        why = {layer.path: layer.why for layer in self.report.layers}
        self.assertEqual(why["stem"], "")
        self.assertEqual(why["pointwise"], "")
        self.assertEqual(why["logits"], "")
        self.assertRegex(why["depthwise"], "no type of 5 bits.*stand in 8")
        self.assertRegex(why["down"], "no type of 9 bits.*stand in 16")
        path = self.create_tempfile().full_path
        report = export_tflite(self.model, path, containers="fast")
        rows = {layer.path: layer for layer in report.layers}
        self.assertRegex(rows["stem"].why, "fast kernels.*INT8 is the smallest")
        self.assertRegex(rows["down"].why, "FLOAT16 is the smallest")
        report = export_tflite(self.model, path, containers="float32")
        why = {layer.path: layer.why for layer in report.layers}
        self.assertRegex(why["stem"], "asked for plain values")
        self.assertEqual(why["logits"], "")

    def test_inputs(self):
        stored = [layer.stored_input for layer in self.report.layers]
        dropped = "FLOAT32 not rounded"
        self.assertEqual(
            stored, [dropped, "FLOAT32", dropped, dropped, "FLOAT32"]
        )
        path = self.create_tempfile().full_path
        report = export_tflite(self.model, path, "fake_quant")
        self.assertEqual(
            report.layers[0].stored_input, "FLOAT32 rounded to int4"
        )

    def test_json_form(self):
        data = json.loads(json.dumps(self.report.to_dict()))
        self.assertEqual(data["activations"], "float")
        self.assertEqual(data["file_bytes"], os.path.getsize(self.path))
        self.assertEqual(data["verification"]["samples"], 64)
        self.assertEqual(data["layers"][0]["stored_type"], "INT4 packed")

    def test_float32_bytes_leave_out_scalar_state(self):
        plain = small_models.residual()
        expected = sum(weight.nbytes for weight in plain.get_weights())
        self.assertEqual(self.report.float32_bytes, expected)

    def test_text(self):
        self.assertRegex(str(self.report), r"64 random samples.*0 deviate")

    def test_missing_layer_is_seen(self):
        with open(self.path, "rb") as file:
            graph = Graph(file.read())
        graph.rename(graph.find("stem/kernel"), "gone")
        (path, layer), *_ = twin.fixed_layers(self.model).items()
        tensors = weights.stored_tensors(graph, path)
        row = export_report.read_layer(graph, path, layer, tensors, "float")
        self.assertEqual((row.stored_type, row.weight_bytes), ("none", 0))
        self.assertRegex(row.why, "no constant")

    def test_missing_kernel_of_several_is_seen(self):
        """The recurrent one, of which each product takes a slice."""
        inputs = keras.Input((3, 8))
        layer = keras.layers.GRU(4, reset_after=False)
        model = keras.Model(inputs, layer(inputs))
        data = np.ones((2, 3, 8), "float32")
        model = small_models.fixed(model, "int8", data)
        path = self.create_tempfile().full_path
        (row,) = export_tflite(model, path, verify_data=data).layers
        self.assertEqual(row.weight_bytes, 8 * 12)
        self.assertEqual(row.theoretical_bytes, (8 + 4) * 12)
        self.assertRegex(row.why, "no constant that equals one of the kernels")

    def test_container_that_is_narrower_than_the_format(self):
        """FLOAT16 holds the values of these weights in 19 bits."""
        model = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(7, name="dense")]
        )
        model.get_layer("dense").set_weights([np.eye(6, 7), np.zeros(7)])
        model = small_models.fixed(model, "e8m10", np.ones((2, 6), "float32"))
        path = self.create_tempfile().full_path
        (row,) = export_tflite(model, path).layers
        self.assertEqual(row.stored_type, "FLOAT16")
        self.assertLess(row.weight_bytes, row.theoretical_bytes)
        self.assertRegex(row.why, "FLOAT16 holds each of these weights")

    def test_bytes_are_read_from_the_file(self):
        with open(self.path, "rb") as file:
            graph = Graph(file.read())
        tensor = graph.find("depthwise/kernel")
        graph.set_constant(tensor, np.zeros(36, np.uint8))
        layer = twin.fixed_layers(self.model)["depthwise"]
        row = export_report.read_layer(
            graph, "depthwise", layer, [tensor], "float"
        )
        self.assertEqual(row.weight_bytes, 36)


if __name__ == "__main__":
    absltest.main()
