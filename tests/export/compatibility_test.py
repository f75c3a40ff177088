"""One model per format, through whatever converter is installed.

A release of TensorFlow, LiteRT, tf2onnx or ONNX Runtime that breaks a width is
to be seen here on the day it is installed.
"""

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.codebooks import register_format
from fliqs_tf.export import export_tflite
from fliqs_tf.space import SPACES
from tests.export import small_models

_CODEBOOK = "compatibility_levels"
_FORMATS = tuple(
    dict.fromkeys(
        [
            *(name for space in SPACES.values() for name in space),
            *("int2", "int3", "int16", "bf16", "fp16", "fp32"),
            *("e4m3fn", "e5m2_ocp"),
            *("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3"),
            *("mxfp4", "mxint8", _CODEBOOK),
        ]
    )
)
_MODES = {
    "int8": ("int2", "int3", "int4", "int5", "int6", "int7", "int8", "e2m1"),
    "int16": ("int4", "int8"),
    "dynamic": ("int4", "int8"),
}


class CompatibilityTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        register_format(_CODEBOOK, [-1.0, -0.3, 0.0, 0.3, 1.0])
        random = np.random.default_rng(0)
        cls.data = random.standard_normal((8, 5, 5, 3)).astype("float32")

    @parameterized.parameters(*_FORMATS)
    def test_weights(self, fmt):
        report = self._export(fmt, "float")
        self.assertLess(report.max_relative_error, 2e-6)
        for row in report.layers:
            self.assertNotEqual(row.stored_type, "none")

    @parameterized.parameters(
        *((mode, fmt) for mode, formats in _MODES.items() for fmt in formats)
    )
    def test_integer_arithmetic(self, mode, fmt):
        report = self._export(fmt, mode)
        # Sums, pooled maps and outputs have 8 bits there and are exact here.
        self.assertLess(report.verification.rms_error, 0.03)
        if mode != "dynamic":
            for row in report.layers:
                self.assertStartsWith(row.stored_input, mode.upper())

    def _export(self, fmt, mode):
        layers = keras.layers
        plain = keras.Sequential(
            [
                keras.Input((5, 5, 3)),
                layers.Conv2D(4, 3, activation="relu", name="conv"),
                layers.DepthwiseConv2D(2, name="depthwise"),
                layers.Flatten(),
                layers.Dense(3, name="dense"),
            ]
        )
        model = small_models.fixed(plain, fmt, self.data)
        path = self.create_tempfile().full_path
        return export_tflite(model, path, mode, self.data)


if __name__ == "__main__":
    absltest.main()
