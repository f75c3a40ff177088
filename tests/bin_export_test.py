"""The entry point of exports, as it is called from a shell."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
import onnxruntime
import pytest
from absl.testing import absltest

from fliqs_tf.export import inspect
from tests.export import small_models
from tests.refusals import refusals

_ROOT = pathlib.Path(__file__).resolve().parent.parent


class ExportTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        keras.utils.set_random_seed(0)
        formats = dict.fromkeys(("stem", "depthwise", "pointwise"), "int8")
        formats |= {"down": "fp32", "logits": "int5"}
        fixed = small_models.fixed(small_models.residual(), formats)
        fixed.save(cls.folder / "model.keras")

    def _run(self, *flags):
        """Exit code and what was printed, of an export in the folder."""
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "fliqs_tf.bin.export",
                "--model_file=model.keras",
                *flags,
            ],
            cwd=self.folder,
            # Tables of all columns, and no warnings between the lines.
            env={**os.environ, "PYTHONPATH": str(_ROOT), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        return result.returncode, result.stdout, result.stderr

    @pytest.mark.slow
    def test_recipe_for_a_float_file(self):
        code, output, errors = self._run(
            "--output=float.tflite",
            "--activations=float",
            "--containers=float32",
        )
        self.assertEqual(code, 0, errors)
        rows = inspect(self.folder / "float.tflite").rows
        self.assertEqual({row.stored_type for row in rows}, {"FLOAT32"})
        code, output, errors = self._run(
            "--recipe=recipe.json",
            "--float_file=float.tflite",
            "--activations=int8",
        )
        self.assertEqual(code, 0, errors)
        self.assertRegex(output, r"stem .* int8 +INT8")
        self.assertRegex(output, "recipe.json: ai-edge-quantizer makes [0-9]")
        self.assertRegex(output, "logits: .* has no int5 .* to INT8")
        text = (self.folder / "recipe.json").read_text("utf-8")
        operations = [entry["operation"] for entry in json.loads(text)]
        self.assertContainsSubset({"CONV_2D", "FULLY_CONNECTED"}, operations)

    def test_onnx(self):
        code, output, errors = self._run("--output=model.onnx")
        self.assertEqual(code, 0, errors)
        self.assertRegex(output, r"stem .* int8 +INT8")
        self.assertRegex(output, "model.onnx: .*activations=fake_quant")
        # As whoever has the file alone sees it.
        session = onnxruntime.InferenceSession(self.folder / "model.onnx")
        images = small_models.images(count=3)
        (received,) = session.run(None, {session.get_inputs()[0].name: images})
        model = keras.models.load_model(self.folder / "model.keras")
        np.testing.assert_allclose(
            received, model(images), atol=1e-5 * np.abs(received).max()
        )

    def test_flags_that_do_not_go_together(self):
        cases = {
            "--output=o.onnx --containers=fast": (
                "--containers .* Received: --output=o.onnx"
            ),
            "--output=o.onnx --reference_kernels": (
                "--reference_kernels .* Received: --output=o.onnx"
            ),
            "--recipe=r.json": "--float_file must have a value",
            "--recipe=r.json --float_file=f.tflite --output=o.tflite": (
                "--output .* Received: --recipe=r.json"
            ),
        }
        messages = refusals(
            "fliqs_tf.bin.export",
            {
                case: ["--model_file=model.keras", *case.split()]
                for case in cases
            },
            self.folder,
        )
        for case, expected in cases.items():
            self.assertRegex(messages.get(case, "accepted"), expected)
        for name in ("o.onnx", "o.tflite", "r.json"):
            self.assertFalse((self.folder / name).exists())


if __name__ == "__main__":
    absltest.main()
