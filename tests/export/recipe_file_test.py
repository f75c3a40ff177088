"""Recipes, applied by `ai-edge-quantizer` as somebody else would."""

import json
import pathlib
import re

import keras
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized
from ai_edge_quantizer import quantizer
from ai_edge_quantizer.utils import tfl_flatbuffer_utils

from fliqs_tf.export import export_recipe
from fliqs_tf.export import export_tflite
from fliqs_tf.export import output_errors
from fliqs_tf.export import twin
from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.graph import type_name
from fliqs_tf.export.runner import Runner
from tests.export import small_models

_EXACT = {
    "stem": "int8",
    "depthwise": "int8",
    "pointwise": "int4",
    "down": "int4",
    "logits": "int8",
}
_OTHERS = {
    "stem": "int5",
    "depthwise": "int4",
    "pointwise": "int3",
    "down": "e4m3",
    "logits": "int2",
}
# Of the kernels in the file, by which they can be told apart.
_SHAPES = {
    (8, 3, 3, 3): "stem",
    (1, 3, 3, 8): "depthwise",
    (8, 1, 1, 8): "pointwise",
    (16, 3, 3, 8): "down",
    (5, 16): "logits",
}
_LIMITS = {"float": 1e-6, "dynamic": 0.02, "int8": 0.03, "int16": 1e-3}


class _RecipeTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = pathlib.Path(self.create_tempdir().full_path)
        self.path = folder / "recipe.json"
        self.float_file = folder / "float.tflite"
        self.images = small_models.images()
        keras.utils.set_random_seed(0)
        self.plain = small_models.residual()

    def _write(self, fixed, data=None):
        """Writes the float file of a fixed model."""
        data = self.images if data is None else data
        export_tflite(
            fixed, self.float_file, verify_data=data, containers="float32"
        )

    def _apply(self, **inputs):
        """What the tool makes, given nothing but the two files."""
        tool = quantizer.Quantizer(str(self.float_file), str(self.path))
        ranges = tool.calibrate({"serving_default": [inputs]})
        return bytes(tool.quantize(ranges).quantized_model)

    def _types(self, content):
        """Layer -> type of its weights."""
        graph = Graph(content)
        return {
            _SHAPES[tuple(tensor.shape)]: type_name(tensor.type)
            for number, tensor in enumerate(graph.tensors)
            if graph.size(number) and tuple(tensor.shape) in _SHAPES
        }

    def assertClose(self, content, expected, limit):
        (received,) = Runner(content)([self.images])
        error = output_errors.rms_error(received, np.asarray(expected))
        self.assertLess(error, limit)


class ApplyTest(_RecipeTestCase):
    @parameterized.product(source=("fixed", "plain"), activations=list(_LIMITS))
    @pytest.mark.one_in(3, start=1)
    def test_exact_formats(self, source, activations):
        fixed = small_models.fixed(self.plain, _EXACT)
        if source == "fixed":
            self._write(fixed)
        else:
            self.plain.export(self.float_file, format="litert", verbose=False)
        report = export_recipe(
            fixed, self.path, self.float_file, activations, self.images
        )
        content = self._apply(image=self.images)
        types = {path: name.upper() for path, name in _EXACT.items()}
        self.assertEqual(self._types(content), types)
        for row in report.layers:
            self.assertEqual(row.stored_type.split()[0], types[row.path])
            self.assertEqual(row.why, "")
            self.assertEqual(row.weight_bytes, row.theoretical_bytes)
        self.assertEqual(report.quantized_bytes, len(content))
        # Inputs of layers are quantized as the mode says.
        fixed = twin.uncompiled(fixed)
        if activations in ("int8", "int16"):
            expected = twin.container_reference(fixed, activations)
            self.assertIn(activations.upper(), report.layers[-1].stored_input)
        else:
            expected = twin.weight_only_reference(fixed)
            self.assertIn("FLOAT32", report.layers[-1].stored_input)
        limit = _LIMITS[activations]
        if source == "plain" and activations == "int16":
            # Ranges that were measured before weights are rounded clip.
            limit = _LIMITS["int8"]
        self.assertClose(content, expected(self.images), limit)

    def test_formats_that_the_tool_lacks(self):
        fixed = small_models.fixed(self.plain, _OTHERS)
        self._write(fixed)
        report = export_recipe(
            fixed, self.path, self.float_file, "float", self.images
        )
        content = self._apply(image=self.images)
        types = {
            "stem": "INT8",
            "depthwise": "INT8",
            "pointwise": "INT4",
            "down": "FLOAT32",
            "logits": "INT4",
        }
        self.assertEqual(self._types(content), types)
        text = str(report)
        for path, stored in types.items():
            was = "left as" if stored == "FLOAT32" else "rounded once more, to"
            self.assertRegex(
                text,
                f"(?m)^{path}: .* no {_OTHERS[path]} .* are {was} {stored}",
            )
        expected = twin.weight_only_reference(twin.uncompiled(fixed))
        self.assertClose(content, expected(self.images), 0.03)

    def test_channel_that_a_norm_switches_off(self):
        """Its bias has no INT32 in the unit that the tool would give it."""
        fixed = small_models.fixed(self.plain, "int8")
        self._write(fixed)
        report = export_recipe(
            fixed, self.path, self.float_file, "int16", self.images
        )
        inputs = {row.path: row.stored_input for row in report.layers}
        for path in ("stem", "depthwise", "pointwise"):
            self.assertEqual(inputs[path], "FLOAT32 not rounded")
        for path in ("down", "logits"):
            self.assertIn("INT16", inputs[path])
        self.assertLess(report.verification.rms_error, 1e-3)

    def test_layer_without_input_format_computes_in_float(self):
        formats = _EXACT | {"logits": {"weight": "int4", "input": None}}
        fixed = small_models.fixed(self.plain, formats)
        self._write(fixed)
        report = export_recipe(
            fixed, self.path, self.float_file, "int8", self.images
        )
        self.assertEqual(report.layers[-1].stored_input, "FLOAT32")
        self.assertEqual(report.layers[-1].stored_type, "INT4 packed")
        self.assertIn("INT8", report.layers[-2].stored_input)

    @parameterized.parameters("list", "dictionary")
    def test_order_of_inputs_and_outputs(self, structure):
        """Keras's files have one of their own."""
        layers = keras.layers
        one, two = keras.Input((4,), name="one"), keras.Input((5,), name="aaa")
        joined = layers.Concatenate()([one, two])
        three = layers.Dense(3, name="three")(joined)
        four = layers.Dense(4, name="four")(joined)
        plain = keras.Model([one, two], [three, four])
        random = np.random.default_rng(0)
        data = [random.standard_normal((8, n)).astype("f") for n in (4, 5)]
        if structure == "dictionary":
            plain = keras.Model(
                {"one": one, "aaa": two}, {"u": three, "t": four}
            )
            data = dict(zip(("one", "aaa"), data, strict=True))
        fixed = small_models.fixed(plain, "int8", data)
        plain.export(self.float_file, format="litert", verbose=False)
        for activations in ("float", "int8"):
            report = export_recipe(
                fixed, self.path, self.float_file, activations, data
            )
            self.assertLess(report.verification.rms_error, _LIMITS[activations])

    def test_steps_of_a_recurrent_layer(self):
        inputs = keras.Input((6, 8), name="x")
        plain = keras.Model(inputs, keras.layers.LSTM(5)(inputs))
        random = np.random.default_rng(0)
        data = random.standard_normal((20, 6, 8)).astype("float32")
        fixed = small_models.fixed(plain, "int4", data)
        self._write(fixed, data)
        for activations in ("float", "dynamic", "int8"):
            report = export_recipe(
                fixed, self.path, self.float_file, activations, data
            )
            self.assertEqual(report.layers[0].stored_type, "INT4 packed")
            self.assertEqual(report.layers[0].weight_bytes, (8 + 5) * 20 // 2)
            self.assertLess(report.verification.rms_error, _LIMITS[activations])
        graph = Graph(self._apply(x=data))
        used = [graph.builtin(operator) for operator in graph.operators]
        self.assertEqual(used.count(Builtin.FULLY_CONNECTED), 12)


class ScopesTest(_RecipeTestCase):
    def test_each_entry_is_for_one_operator(self):
        """Names of which one is the beginning of another, or an expression."""
        layers = keras.layers
        model = keras.Sequential([keras.Input((8, 8, 3), name="image")])
        for name in ("conv", "conv_1", "conv_11", "conv.1", "conv.11"):
            model.add(layers.Conv2D(4, 1, name=name))
        model.add(layers.GlobalAveragePooling2D())
        model.add(layers.Dense(2, name="dense"))
        fixed = small_models.fixed(model, "int8")
        model.export(self.float_file, format="litert", verbose=False)
        export_recipe(fixed, self.path, self.float_file, "float", self.images)
        content = self.float_file.read_bytes()
        subgraph = tfl_flatbuffer_utils.read_model(content).subgraphs[0]
        scopes = [
            tfl_flatbuffer_utils.get_op_scope(operator, subgraph.tensors)
            for operator in subgraph.operators
        ]
        # The last operator has the name of no layer.
        self.assertNotIn("dense", scopes[-1])
        entries = json.loads(self.path.read_text("utf-8"))
        found = [
            [scope for scope in scopes if re.search(entry["regex"], scope)]
            for entry in entries
        ]
        for matches in found:
            self.assertLen(matches, 1)
        self.assertLen({scope for (scope,) in found}, 6)
        self.assertIn([scopes[-1]], found)


class RefusalTest(_RecipeTestCase):
    def test_formats_without_an_integer(self):
        fixed = small_models.fixed(self.plain, "e4m3")
        self._write(fixed)
        with self.assertRaisesRegex(ValueError, "stem: e4m3, depthwise: e4m3"):
            export_recipe(fixed, self.path, self.float_file)
        self.assertFalse(self.path.exists())

    def test_file_of_other_weights(self):
        fixed = small_models.fixed(self.plain, "int8")
        keras.utils.set_random_seed(7)
        other = keras.models.clone_model(self.plain)
        other.export(self.float_file, format="litert", verbose=False)
        with self.assertRaisesRegex(ValueError, "no operator has those of"):
            export_recipe(fixed, self.path, self.float_file)

    def test_what_is_no_file_or_no_mode(self):
        fixed = small_models.fixed(self.plain, "int8")
        with self.assertRaisesRegex(ValueError, "`float_file` must be a file"):
            export_recipe(fixed, self.path, self.float_file)
        self.float_file.write_bytes(b"something else")
        with self.assertRaisesRegex(ValueError, "float_file=.*TFL3"):
            export_recipe(fixed, self.path, self.float_file)
        with self.assertRaisesRegex(ValueError, "float, dynamic, int8, int16"):
            export_recipe(fixed, self.path, self.float_file, "fake_quant")

    @parameterized.parameters("int8", "int16")
    def test_outputs_that_are_read_inside(self, activations):
        inputs = keras.Input((6,), name="x")
        x = keras.layers.Dense(8, activation="relu", name="embedding")(inputs)
        logits = keras.layers.Dense(3, name="logits")(x)
        model = keras.Model(inputs, [x, logits])
        data = np.random.default_rng(0).standard_normal((40, 6), "float32")
        fixed = small_models.fixed(model, "int8", data)
        self._write(fixed, data)
        with self.assertRaisesRegex(ValueError, r"outputs \['embedding'\]"):
            export_recipe(fixed, self.path, self.float_file, activations, data)
        report = export_recipe(
            fixed, self.path, self.float_file, "dynamic", data
        )
        self.assertLess(report.verification.rms_error, 0.02)

    def test_the_float_file_is_not_overwritten(self):
        fixed = small_models.fixed(self.plain, "int8")
        self._write(fixed)
        content = self.float_file.read_bytes()
        self.path.symlink_to(self.float_file)
        for path in (self.float_file, self.path):
            with self.assertRaisesRegex(ValueError, "another file than"):
                export_recipe(fixed, path, self.float_file)
        self.assertEqual(self.float_file.read_bytes(), content)

    def test_link_stays_a_link(self):
        fixed = small_models.fixed(self.plain, "int8")
        self._write(fixed)
        target = self.path.with_name("target.json")
        self.path.symlink_to(target)
        export_recipe(fixed, self.path, self.float_file)
        self.assertEqual(self.path.readlink(), target)
        self.assertLen(json.loads(target.read_text("utf-8")), 5)

    def test_disagreement_leaves_the_older_recipe(self):
        """Of unrounded weights the tool makes finer integers than asked."""
        fixed = small_models.fixed(self.plain, _OTHERS)
        self.plain.export(self.float_file, format="litert", verbose=False)
        self.path.write_text("older", "utf-8")
        with self.assertRaisesRegex(RuntimeError, "otherwise than asked.*stem"):
            export_recipe(
                fixed, self.path, self.float_file, verify_data=self.images
            )
        self.assertEqual(self.path.read_text("utf-8"), "older")
        report = export_recipe(
            fixed,
            self.path,
            self.float_file,
            verify_data=self.images,
            allow_mismatch=True,
        )
        self.assertFalse(report.verification.passed)
        self.assertLen(json.loads(self.path.read_text("utf-8")), 4)


if __name__ == "__main__":
    absltest.main()
