"""Tests of costs from tables, those that are shipped included."""

import json

import keras
import numpy as np
from absl.testing import parameterized
from keras import ops

import fliqs_tf as fliqs
from fliqs_tf import cost_tables


def _model():
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="dense")(x))


# conv: 4 * 4 positions of 3 * 3 * 2 * 4 weights; dense: 4 * 3.
_MACS = {"conv": 1152, "dense": 12}
_WEIGHTS = {"conv": 72, "dense": 12}
_INPUTS = {"conv": 72, "dense": 4}
_TABLE = {
    "version": 1,
    "unit": "nJ",
    "per_unit": 1e3,
    "mac": {"int4": {"int4": 0.5, "int8": 0.75}, "int8": {"int8": 2.0}},
    "weight_byte": 3.0,
    "input_byte": 5.0,
}


class CostTablesTest(parameterized.TestCase):
    def _table(self, **changes):
        data = {**_TABLE, **changes}
        data = {key: value for key, value in data.items() if value is not None}
        return self.create_tempfile("table.json", json.dumps(data)).full_path

    def test_adds_multiplications_and_traffic(self):
        cost = fliqs.costs.get(f"table:{self._table()}")
        self.assertEqual(cost.unit, "nJ")
        expected = sum(
            _MACS[path] * 2.0 + _WEIGHTS[path] * 3.0 + _INPUTS[path] * 5.0
            for path in _MACS
        )
        self.assertAlmostEqual(cost(_model(), "int8"), expected / 1e3)
        mixed = {"conv": "int8", "dense": {"weight": "int4", "input": "int8"}}
        expected = 1152 * 2 + 72 * 3 + 72 * 5 + 12 * 0.75 + 6 * 3 + 4 * 5
        self.assertAlmostEqual(cost(_model(), mixed), expected / 1e3)

    def test_traffic_alone_knows_every_format(self):
        cost = fliqs.costs.get(f"table:{self._table(mac=None)}")
        expected = 84 * 4 / 8 * 3.0 + 76 * 4 / 8 * 5.0
        self.assertAlmostEqual(cost(_model(), "e2m1"), expected / 1e3)
        # Inputs that are not quantized have 32 bits.
        unquantized = dict.fromkeys(_MACS, {"weight": "int4", "input": None})
        expected = 84 * 4 / 8 * 3.0 + 76 * 32 / 8 * 5.0
        self.assertAlmostEqual(cost(_model(), unquantized), expected / 1e3)

    def test_lookups_read_rows(self):
        def cost(rows, width, length):
            inputs = keras.Input((length,), dtype="int32")
            table = keras.layers.Embedding(rows, width, name="table")
            model = keras.Model(inputs, table(inputs))
            return fliqs.costs.get("table:energy_45nm.json")(model, "int8")

        # 16 rows from DRAM, and 16 indices of 4 bytes from SRAM.
        expected = 16 * 64 * 162.5 + 16 * 4 * 1.25
        self.assertAlmostEqual(cost(30000, 64, 16), expected / 1e6, places=12)
        # No more rows than there are.
        expected = 10 * 4 * 162.5 + 512 * 4 * 1.25
        self.assertAlmostEqual(cost(10, 4, 512), expected / 1e6, places=12)

    def test_right_operand_of_a_product_has_the_weight_format(self):
        table = self._table(
            mac=None, weight_byte=None, input_byte=1.0, per_unit=None
        )
        cost = fliqs.costs.get(f"table:{table}")
        inputs = keras.Input((16, 8))
        attention = keras.layers.MultiHeadAttention(2, 16, name="attention")
        model = fliqs.with_attention_products(
            keras.Model(inputs, attention(inputs, inputs))
        )
        found = fliqs.costs.profile(model)
        for path, left, right in (
            # Queries and keys of 2 heads, 16 steps and 16 channels.
            ("attention/scores", 512, 512),
            ("attention/weighted_sum", 2 * 16 * 16, 512),
        ):
            for weight, inputs, expected in (
                ("int4", "int4", left / 2 + right / 2),
                ("int8", "int4", left / 2 + right),
                ("int4", "int8", left + right / 2),
                ("int8", "int8", left + right),
                ("int4", None, left * 4 + right / 2),
            ):
                self.assertEqual(
                    cost.layer_cost(found[path], weight, inputs), expected
                )

    def test_missing_pair_is_named(self):
        cost = fliqs.costs.get(f"table:{self._table()}")
        with self.assertRaisesRegex(
            ValueError,
            r"Received: int8-int4, missing in .*int4-int4, int4-int8",
        ):
            cost(
                _model(),
                dict.fromkeys(_MACS, {"weight": "int8", "input": "int4"}),
            )
        with self.assertRaisesRegex(ValueError, "int5-int5, missing"):
            fliqs.SearchModel(
                _model(), ("int4", "int5"), cost=f"table:{self._table()}"
            )

    def test_measured_layers(self):
        costs = {"int4": {"int4": 7.0}, "int8": {"int8": 11.0}}
        layers = {path: {"macs": _MACS[path], "costs": costs} for path in _MACS}
        path = self._table(
            layers=layers, mac=None, weight_byte=None, input_byte=None
        )
        cost = fliqs.costs.get(f"table:{path}")
        self.assertAlmostEqual(
            cost(_model(), {"conv": "int8", "dense": "int4"}), 18.0 / 1e3
        )
        layers["dense"]["macs"] = 13
        path = self._table(
            layers=layers, mac=None, weight_byte=None, input_byte=None
        )
        with self.assertRaisesRegex(ValueError, "13 MACs for 'dense'.*12 MACs"):
            fliqs.costs.get(f"table:{path}")(_model(), "int8")
        del layers["dense"]
        path = self._table(
            layers=layers, mac=None, weight_byte=None, input_byte=None
        )
        with self.assertRaisesRegex(ValueError, "no layer 'dense'"):
            fliqs.costs.get(f"table:{path}")(_model(), "int8")

    @parameterized.parameters(
        ({"version": 2}, "version must be 1"),
        ({"unit": None}, "KeyError: 'unit'"),
        ({"macs": {}}, "unknown keys .'macs'."),
        ({"mac": {"int4": {"int4": -1.0}}}, "at least 0"),
        ({"mac": {"int4": {"int4": "x"}}}, "expected a number"),
        ({"mac": {"int9": {"int4": 1.0}}}, "int9"),
        ({"mac": [1.0]}, "AttributeError"),
        ({"per_unit": 0}, "per_unit"),
        ({"mac": None, "weight_byte": 0, "input_byte": 0}, "either `layers`"),
        ({"layers": {"a": {"macs": 1, "costs": {}}}}, "either `layers`"),
    )
    def test_refuses_what_is_no_table(self, changes, message):
        with self.assertRaisesRegex(ValueError, message):
            cost_tables.read(self._table(**changes))

    def test_missing_file_names_the_shipped_ones(self):
        with self.assertRaisesRegex(
            ValueError, "table:no.json.*mac_area_28nm.json, mac_power_28nm.json"
        ):
            fliqs.costs.get("table:no.json")

    @parameterized.parameters(
        ("mac_power_28nm.json", 48.5, 49.6),
        ("mac_area_28nm.json", 160.7, 170.4),
    )
    def test_shipped(self, name, int4, e2m1):
        table = cost_tables.read(name)
        self.assertIn("ICML 2024, table 10", table.source)
        cost = fliqs.costs.get(f"table:{name}")
        gmacs = sum(_MACS.values()) / 1e9
        self.assertAlmostEqual(cost(_model(), "int4"), int4 * gmacs)
        self.assertAlmostEqual(cost(_model(), "e2m1"), e2m1 * gmacs)
        with self.assertRaisesRegex(ValueError, "int8-int8, missing"):
            cost(_model(), "int8")

    def test_shipped_energy_with_traffic(self):
        table = cost_tables.read("energy_45nm.json")
        self.assertIn("ISSCC 2014", table.source)
        cost = fliqs.costs.get("table:energy_45nm.json")
        self.assertEqual(cost.unit, "uJ")
        macs, weights, inputs = (
            sum(part.values()) for part in (_MACS, _WEIGHTS, _INPUTS)
        )
        for fmt, size, mac in (("int8", 1, 0.3), ("fp32", 4, 4.6)):
            expected = macs * mac + size * (weights * 162.5 + inputs * 1.25)
            self.assertAlmostEqual(cost(_model(), fmt), expected / 1e6)
        search = fliqs.SearchModel(
            _model(),
            ("int8", "fp16"),
            cost="table:energy_45nm.json",
            cost_target="1.5xint8",
        )
        self.assertLess(search.budget.lowest, search.budget.highest)

    @parameterized.parameters(
        "bitops",
        "size",
        "file_size",
        "memory",
        "table:mac_power_28nm.json",
        "table:mac_area_28nm.json",
        "traffic",
        "measured",
    )
    def test_graph_and_python_agree(self, name):
        """For every cost there is, and for both forms of a user's table."""
        model = fliqs.models.get("residual_small")
        rng = np.random.default_rng(1)
        formats = ("e2m1", "e3m0")
        if name == "traffic":
            mac = {w: {i: rng.random() for i in formats} for w in formats}
            name = f"table:{self._table(mac=mac)}"
        elif name == "measured":
            layers = {
                path: {
                    "macs": layer.macs,
                    "costs": {f: {f: rng.random()} for f in formats},
                }
                for path, layer in fliqs.costs.profile(model).items()
            }
            table = self._table(
                layers=layers, mac=None, weight_byte=None, input_byte=None
            )
            name = f"table:{table}"
        search = fliqs.SearchModel(model, formats, cost=name)
        count = len(search.decisions)
        samples = np.random.default_rng(0).integers(0, 2, (20, count))
        samples = samples.astype(np.int32)
        in_graph = ops.convert_to_numpy(search.budget.of_tensor(samples))
        for sample, value in zip(samples, in_graph, strict=True):
            assignment = {
                decision.path: decision.options[option]
                for decision, option in zip(
                    search.decisions, sample, strict=True
                )
            }
            plain = fliqs.costs.get(name)(model, assignment)
            np.testing.assert_allclose(value, plain, rtol=1e-6)
            np.testing.assert_allclose(
                search.budget.of(sample), plain, rtol=1e-12
            )


class TargetsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("1.25xint4", 1.25 * 16),
        ("2 x int8", 2 * 64),
        ("10%", 102.4),
        ("1.5 %", 15.36),
        ("7e-6", 7e-6 * 1e9 / 1164),
        (7e-6, 7e-6 * 1e9 / 1164),
    )
    def test_forms(self, value, bits):
        cost = fliqs.costs.get("bitops")
        self.assertAlmostEqual(
            fliqs.costs.target(cost, _model(), value), bits * 1164 / 1e9
        )

    @parameterized.parameters("0%", "-3", "x", "nan", "10%int4", "inf", "0")
    def test_others_are_refused(self, value):
        with self.assertRaisesRegex(ValueError, "GBOPs.*'10%'. Received: "):
            fliqs.costs.target(fliqs.costs.get("bitops"), _model(), value)

    def test_bounds_of_a_flag(self):
        self.assertEqual(
            fliqs.costs.parse_bounds("size:0.05, table:a.json:50%,"),
            {"size": "0.05", "table:a.json": "50%"},
        )
        self.assertEqual(fliqs.costs.parse_bounds(""), {})

    @parameterized.parameters("size", "size:", ":3", "size:1,size:2")
    def test_bounds_of_another_form(self, text):
        with self.assertRaisesRegex(ValueError, "Received: bounds="):
            fliqs.costs.parse_bounds(text)
