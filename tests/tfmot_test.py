"""Keras 2 models through TFMOT, in processes of their own.

Importing TFMOT loads Keras 2 for the rest of a process.
"""

import json
import pathlib
import subprocess
import sys
import textwrap

import pytest
from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parent.parent

_MODELS = """
import json, os, sys
import numpy as np
import tensorflow as tf
import keras
import fliqs_tf as fliqs

loaded = [m for m in ("tf_keras", "tensorflow_model_optimization")
          if m in sys.modules]
version = tf.keras.__version__

from fliqs_tf import tfmot
import tensorflow_model_optimization
import tf_keras

def network(k):
    inputs = k.Input((8, 8, 3))
    x = k.layers.Conv2D(6, 3, padding="same", use_bias=False, name="first")(
        inputs)
    x = k.layers.BatchNormalization(name="norm")(x)
    x = k.layers.ReLU(name="relu")(x)
    x = k.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = k.layers.Flatten(name="flat")(x)
    return k.Model(inputs, k.layers.Dense(4, name="last")(x))

keras.utils.set_random_seed(0)
new, old = network(keras), network(tf_keras)
old.set_weights(new.get_weights())
assignment = {
    "first": {"weight": "int4", "input": "int8"},
    "depthwise": "e4m3",
    "last": {"weight": "e2m1", "input": None},
}
rng = np.random.default_rng(0)
x = rng.standard_normal((16, 8, 8, 3)).astype("float32")
y = rng.integers(0, 4, 16)
"""


def run(code):
    """Runs code after `_MODELS`; returns the JSON of its last line."""
    result = subprocess.run(
        [sys.executable, "-c", _MODELS + textwrap.dedent(code)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise AssertionError(result.stderr[-4000:])
    return json.loads(result.stdout.splitlines()[-1])


class TfmotTest(absltest.TestCase):
    def test_same_weights_and_outputs_as_the_keras_3_model(self):
        found = run("""
            fixed = fliqs.to_fixed(new, assignment, input_range="dynamic")
            applied = tfmot.annotate(old, assignment, input_range="dynamic")
            applied(x)
            equal = {}
            for name in assignment:
                codes, scale = fixed.get_layer(name).quantized_kernel()
                layer = applied.get_layer("quant_" + name)
                inner = layer.layer
                inner = getattr(inner, "layer", inner)
                kernel = getattr(
                    inner, "depthwise_kernel" if name == "depthwise"
                    else "kernel")
                equal[name] = float(np.abs(codes * scale - kernel).max())
            # Each layer is given the same input: one unlike in its last bit
            # may round to the next value of the format.
            outputs = {}
            for name in assignment:
                layer = fixed.get_layer(name)
                given, expected = keras.Model(
                    fixed.inputs, [layer.input, layer.output])(x)
                received = applied.get_layer("quant_" + name)(given.numpy())
                outputs[name] = float(np.abs(expected - received).max())
            whole = float(np.abs(fixed(x) - applied(x)).max())
            changed = float(np.abs(new(x) - applied(x)).max())
            print(json.dumps([equal, outputs, whole, changed]))
        """)
        kernels, outputs, whole, changed = found
        for name in kernels:
            self.assertEqual(kernels[name], 0.0, name)
            # The Keras 3 layer scales its output, the wrapper its operands.
            self.assertLess(outputs[name], 1e-5, name)
        self.assertGreater(changed, 1e-3)
        self.assertLess(whole, changed / 4)

    @pytest.mark.slow
    def test_trains_evaluates_and_saves(self):
        path = self.create_tempdir().full_path
        found = run(f"""
            applied = tfmot.annotate(old, assignment)
            applied.compile(
                tf_keras.optimizers.Adam(0.01),
                tf_keras.losses.SparseCategoricalCrossentropy(True),
                metrics=["accuracy"])
            history = applied.fit(x, y, batch_size=8, epochs=20, verbose=0)
            loss, accuracy = applied.evaluate(x, y, verbose=0)
            ranges = [w.numpy().tolist() for w in applied.weights
                      if "input_range" in w.name]
            applied.save_weights({path!r} + "/weights.h5")
            print(json.dumps(
                [history.history["loss"], loss, accuracy, ranges]))
        """)
        losses, loss, accuracy, ranges = found
        self.assertLess(losses[-1], losses[0] / 2)
        self.assertGreater(accuracy, 0.7)
        self.assertLess(loss, losses[0])
        self.assertLen(ranges, 2)
        self.assertTrue(all(r > 0 for r in ranges))

    def test_quantizers_are_tfmots_and_keras_3_stays(self):
        found = run("""
            base = tensorflow_model_optimization.quantization.keras
            base = base.quantizers.Quantizer
            from fliqs_tf.quantizers import InputQuantizer, WeightQuantizer
            kinds = [
                isinstance(WeightQuantizer("int4"), base),
                isinstance(InputQuantizer("int4"), base),
            ]
            searched = fliqs.to_searchable(new, "int_s")
            print(json.dumps([
                loaded, version, tf.keras.__version__, kinds,
                list(searched(x).shape)]))
        """)
        loaded, version, after, kinds, shape = found
        self.assertEmpty(loaded)
        self.assertStartsWith(version, "3.")
        self.assertEqual(after, version)
        self.assertEqual(kinds, [True, True])
        self.assertEqual(shape, [16, 4])

    def test_impossible_requests_are_refused(self):
        errors = run("""
            errors = []
            for model, given in (
                (new, assignment), (old, {"lost": "int4"}),
                (old, {"relu": "int4"})):
                try:
                    tfmot.annotate(model, given)
                except ValueError as error:
                    errors.append(str(error))
            try:
                tfmot.annotate(old, assignment, input_range="lsq")
            except ValueError as error:
                errors.append(str(error))
            print(json.dumps(errors))
        """)
        self.assertLen(errors, 4)
        self.assertIn("Received: keras", errors[0])
        self.assertIn("Received: 'lost'; nearest: last", errors[1])
        self.assertIn("Received: 'relu'", errors[2])
        self.assertIn("Received: input_range='lsq'", errors[3])


if __name__ == "__main__":
    absltest.main()
