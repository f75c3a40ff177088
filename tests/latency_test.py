"""Tests of measured latencies: the table, and the command that writes it."""

import json
import os
import pathlib
import subprocess
import sys

import keras
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf.export import timing

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def _model():
    inputs = keras.Input((16, 16, 8))
    shared = keras.layers.Conv2D(8, 3, padding="same", name="shared")
    x = shared(shared(inputs))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="dense")(x))


class LatencyTest(parameterized.TestCase):
    @parameterized.parameters("float", "int8")
    def test_table_is_a_cost(self, activations):
        table = timing.latency_table(
            _model(), ("int4", "int8"), activations, rounds=3
        )
        path = self.create_tempfile("t.json", json.dumps(table)).full_path
        cost = fliqs.costs.get(f"table:{path}")
        self.assertEqual(cost.unit, "us")
        sizes = table["layers"]["shared"]["costs"]
        self.assertAlmostEqual(
            cost(_model(), {"shared": "int8", "dense": "int4"}),
            sizes["int8"]["int8"]
            + table["layers"]["dense"]["costs"]["int4"]["int4"],
        )
        self.assertGreater(sizes["int8"]["int8"], 0.0)
        search = fliqs.SearchModel(_model(), "int_s", cost=f"table:{path}")
        self.assertLen(search.budget.terms, 2)

    def test_files_run_in_turn(self):
        slow = timing._content(
            fliqs.to_fixed(_model(), {"shared": "int8", "dense": "int8"}),
            "float",
        )
        inputs = keras.Input((4,))
        tiny = keras.Model(inputs, keras.layers.Dense(1, name="d")(inputs))
        fast = timing._content(fliqs.to_fixed(tiny, {"d": "int8"}), "float")
        times = timing.median_times({"slow": slow, "fast": fast}, rounds=5)
        self.assertGreater(times["slow"], times["fast"])

    def test_layers_of_open_size_are_named(self):
        inputs = keras.Input((None, None, 3))
        model = keras.Model(inputs, keras.layers.Conv2D(1, 1, name="c")(inputs))
        with self.assertRaisesRegex(ValueError, "fixed"):
            timing.latency_table(model, ("int8",))

    def test_command(self):
        output = os.path.join(self.create_tempdir().full_path, "table.json")
        result = subprocess.run(
            [
                *(sys.executable, "-m", "fliqs_tf.bin.latency"),
                *("--rounds=1", "--space=int8", f"--output={output}"),
            ],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertIn("whole network", result.stdout)
        model = fliqs.models.get("residual_small")
        self.assertGreater(fliqs.costs.get(f"table:{output}")(model, "int8"), 0)
