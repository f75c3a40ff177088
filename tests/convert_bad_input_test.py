"""Models that cannot be converted, in whole or in part, and what is said."""

import math
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from keras import layers
from keras import ops

import fliqs_tf as fliqs
from tests.any_models import Blocks
from tests.any_models import assert_same
from tests.any_models import attention
from tests.any_models import subclassed

_ROOT = pathlib.Path(__file__).resolve().parent.parent


class Lowpass(layers.Layer):
    """A layer of one's own with a kernel, as in the documentation."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(3, input_shape[-1]), name="kernel")
        self.bias = self.activation = None

    def filter(self, inputs, kernel):
        return sum(ops.roll(inputs, i, axis=1) * kernel[i] for i in range(3))

    def call(self, inputs):
        return self.filter(inputs, self.kernel)


class Tripled(keras.Model):
    def call(self, inputs):
        return 3.0 * super().call(inputs)


class Negated(keras.Sequential):
    def call(self, inputs):
        return -super().call(inputs)


class BadInputTest(parameterized.TestCase):
    def test_call_of_one_s_own_is_kept_or_refused(self):
        inputs = keras.Input((3,))
        model = Tripled(inputs, layers.Dense(2)(inputs))
        x = np.ones((1, 3), "float32")
        searchable = fliqs.to_searchable(model, "fp32", input_range="dynamic")
        np.testing.assert_allclose(searchable(x), model(x), rtol=1e-6)
        model.compile("adam", "mse")
        for other in (model, Negated([keras.Input((3,)), layers.Dense(2)])):
            with self.assertRaisesRegex(
                ValueError, f"Received: .*{type(other).__name__}, which has a"
            ):
                fliqs.to_searchable(other, "int4")

    def test_unknown_layers_are_reported_and_can_be_taught(self):
        class Custom(Lowpass):
            pass

        inputs = keras.Input((5, 4))
        x = layers.Dense(4, name="dense")(Custom(name="custom")(inputs))
        model = keras.Model(inputs, x)
        report = fliqs.to_searchable(model, "int_s").conversion_report
        self.assertEqual(report.converted, ("dense",))
        self.assertRegex(report.left_alone["custom"], "searchable")

        @fliqs.layers.searchable(Custom)
        class SearchableCustom(fliqs.layers.SearchableLayer, Custom):
            def compute(self, inputs, training):
                inputs, kernel, scale = self.quantize_operands(inputs, training)
                return self.finish(self.filter(inputs, kernel), scale)

            @staticmethod
            def macs(layer, input_shape):
                return math.prod(input_shape[1:]) * layer.kernel.shape[0]

        searchable = fliqs.to_searchable(model, ("int4", "fp32"))
        self.assertIsInstance(searchable.get_layer("custom"), SearchableCustom)
        x = np.random.default_rng(0).standard_normal((2, 5, 4))
        assert_same(searchable(x), model(x))
        self.assertEqual(fliqs.costs.profile(model)["custom"].macs, 60)

    def test_twice(self):
        for model in (attention(), subclassed()):
            searchable = fliqs.to_searchable(model, "int_s")
            with self.assertRaisesRegex(ValueError, "searchable layers"):
                fliqs.to_searchable(searchable, "int_s")
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
        model.quantize("int8")
        with self.assertRaisesRegex(ValueError, "quantized by Keras"):
            fliqs.to_searchable(model, "int_s")
        searchable = fliqs.layers.Dense(3)
        searchable.build((None, 4))
        with self.assertRaisesRegex(ValueError, "Received: mode='int8'"):
            searchable.quantize("int8")

    def test_not_built(self):
        for model in (
            Blocks(),
            keras.Sequential([layers.Dense(3)]),
            "model.keras",
        ):
            with self.assertRaisesRegex(ValueError, "Received"):
                fliqs.to_searchable(model, "int_s")

    def test_no_kernel(self):
        inputs = keras.Input((4,))
        model = keras.Model(inputs, layers.Lambda(lambda x: 2 * x)(inputs))
        with self.assertRaisesRegex(ValueError, "Lambda"):
            fliqs.to_searchable(model, "int_s")

    @parameterized.parameters(
        {"weight_granularity": "64"},
        {"rounding": "up"},
        {"input_signedness": "signed"},
        {"input_range": "lsq", "input_signedness": "affine"},
        {"space": "mxfp4", "weight_granularity": 64},
        {"rules": fliqs.Rule(kind="Dense", formats="int8")},
    )
    def test_bad_options(self, space="int_s", **options):
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
        # At once: not as the last line of Keras's, after all of a config.
        with self.assertRaisesRegex(ValueError, r"^.{0,160}Received: "):
            fliqs.to_searchable(model, space, **options)

    def test_lora(self):
        with self.assertRaisesRegex(ValueError, "Received: lora_rank=2"):
            fliqs.layers.Dense(3, lora_rank=2)
        layer = fliqs.layers.EinsumDense("ab,bc->ac", 3)
        layer.build((None, 4))
        with self.assertRaisesRegex(ValueError, "Merge them"):
            layer.enable_lora(2)
        model = attention()
        model.get_layer("head").enable_lora(2)
        report = fliqs.to_searchable(model, "int_s").conversion_report
        self.assertIn("LoRA", report.left_alone["head"])

    @parameterized.parameters("jax", "torch", "numpy")
    def test_other_backends(self, backend):
        result = subprocess.run(
            [sys.executable, "-c", "import fliqs_tf"],
            cwd=_ROOT,
            env={**os.environ, "KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
        )
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(f"Received: backend='{backend}'", result.stderr)


if __name__ == "__main__":
    absltest.main()
