"""Costs of small networks, worked out by hand."""

import os

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf import costs
from fliqs_tf.budget import Budget
from fliqs_tf.budget import cost_terms
from fliqs_tf.decisions import model_decisions


def model_of(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


def profile_of(shape, layer):
    (found,) = costs.profile(model_of(shape, layer)).values()
    return found


def small_model():
    """The network of most of the sums below."""
    return model_of(
        (9, 9, 3),
        # 9 - 3 + 1 = 7 positions a side.
        keras.layers.Conv2D(4, 3, name="stem"),
        # ceil(7 / 2) = 4.
        keras.layers.DepthwiseConv2D(
            3, strides=2, padding="same", use_bias=False, name="depthwise"
        ),
        keras.layers.Flatten(),
        keras.layers.Dense(10, name="head"),
    )


def _cycles(layer, weight, inputs):
    del inputs
    return layer.macs * fliqs.get_format(weight).bits / 8


# Positions times kernel.
_STEM, _DEPTHWISE, _HEAD = 7 * 7 * 27 * 4, 4 * 4 * 9 * 4, 4 * 4 * 4 * 10


class ProfileTest(parameterized.TestCase):
    @parameterized.parameters(
        # (9 - 3) / 2 + 1 = 4 and (8 - 3) / 2 + 1 = 3.
        (dict(strides=2), (9, 8, 2), 4 * 3 * 9 * 2 * 5),
        # ceil(9 / 2), ceil(8 / 2).
        (dict(strides=2, padding="same"), (9, 8, 2), 5 * 4 * 9 * 2 * 5),
        (dict(padding="same"), (9, 8, 2), 9 * 8 * 9 * 2 * 5),
        # A kernel of 3 reaches over 5: 5 and 4 positions.
        (dict(dilation_rate=2), (9, 8, 2), 5 * 4 * 9 * 2 * 5),
        # Each filter sees one of five groups of two channels.
        (dict(groups=5), (9, 8, 10), 7 * 6 * 9 * 2 * 5),
        (dict(data_format="channels_first"), (2, 9, 8), 7 * 6 * 9 * 2 * 5),
    )
    def test_convolutions(self, keywords, shape, macs):
        found = profile_of(shape, keras.layers.Conv2D(5, 3, **keywords))
        self.assertEqual(found.macs, macs)
        self.assertEqual(found.weights, 9 * 2 * 5)
        self.assertEqual(found.scales, 5)
        self.assertEqual(found.biases, 5)
        self.assertEqual(found.kind, "Conv2D")

    @parameterized.parameters(
        (dict(), 7 * 6 * 9 * 2, 18, 2),
        (dict(depth_multiplier=3), 7 * 6 * 9 * 6, 54, 6),
        (dict(strides=2, padding="same"), 5 * 4 * 9 * 2, 18, 2),
    )
    def test_depthwise_convolutions(self, keywords, macs, weights, scales):
        found = profile_of(
            (9, 8, 2), keras.layers.DepthwiseConv2D(3, **keywords)
        )
        self.assertEqual(found.macs, macs)
        self.assertEqual(found.weights, weights)
        self.assertEqual(found.scales, scales)
        self.assertEqual(found.kind, "DepthwiseConv2D")

    @parameterized.parameters(
        ((6,), 6 * 5), ((7, 6), 7 * 6 * 5), ((3, 7, 6), 3 * 7 * 6 * 5)
    )
    def test_dense(self, shape, macs):
        found = profile_of(shape, keras.layers.Dense(5, use_bias=False))
        self.assertEqual(found.macs, macs)
        self.assertEqual(found.weights, 30)
        self.assertEqual(found.scales, 5)
        self.assertEqual(found.biases, 0)

    @parameterized.parameters(
        # Weights of a channel, channels and scales.
        (lambda **k: fliqs.layers.Dense(5, **k), (10,), 5, 5 * 3),
        # 3 * 3 * 2 weights: four groups of 4, and one of 2.
        (lambda **k: fliqs.layers.Conv2D(5, 3, **k), (9, 8, 2), 5, 5 * 5),
        (
            lambda **k: fliqs.layers.Conv2DTranspose(5, 3, **k),
            (9, 8, 2),
            5,
            5 * 5,
        ),
        (
            lambda **k: fliqs.layers.DepthwiseConv2D(
                3, depth_multiplier=3, **k
            ),
            (9, 8, 2),
            6,
            6 * 3,
        ),
        (
            lambda **k: fliqs.layers.EinsumDense(
                "btd,dhk->bthk", (None, 2, 3), **k
            ),
            (7, 6),
            6,
            6 * 2,
        ),
        (lambda **k: fliqs.layers.Embedding(10, 5, **k), (3,), 5, 5 * 3),
    )
    def test_scales_of_granularities(self, make, shape, channels, grouped):
        for granularity, scales in (
            ("channel", channels),
            ("tensor", 1),
            (4, grouped),
            (1000, channels),
        ):
            found = profile_of(shape, make(weight_granularity=granularity))
            self.assertEqual(found.channels, channels)
            self.assertEqual(found.scales, scales)
            self.assertEqual(found.has_groups, isinstance(granularity, int))

    def test_each_kernel_has_scales(self):
        # Kernels (4, 12) and (3, 12): groups of 3.
        for granularity, scales in (("tensor", 2), ("channel", 24), (3, 36)):
            found = profile_of(
                (6, 4), fliqs.layers.LSTM(3, weight_granularity=granularity)
            )
            self.assertEqual(found.scales, scales)

    def test_every_call_of_a_shared_layer_counts(self):
        x = keras.Input((7, 4))
        dense = keras.layers.Dense(4, name="twice")
        y = dense(keras.layers.AveragePooling1D(7)(dense(x)))
        found = costs.profile(keras.Model(x, y))["twice"]
        # Seven rows, and one.
        self.assertEqual(found.macs, (7 + 1) * 16)
        self.assertEqual(found.weights, 16)

    def test_every_call_of_a_shared_model_counts(self):
        inside = model_of((4,), keras.layers.Dense(4, name="dense"))
        x = keras.Input((4,))
        outer = keras.Model(x, inside(inside(x)))
        (found,) = costs.profile(outer).values()
        self.assertEqual(found.path, f"{inside.name}/dense")
        self.assertEqual(found.macs, 32)

    def test_calls_in_other_models_do_not_count(self):
        x = keras.Input((4,))
        dense = keras.layers.Dense(4, name="dense")
        model = keras.Model(x, dense(x))
        dense(dense(x))
        self.assertEqual(costs.profile(model)["dense"].macs, 16)

    def test_plain_searchable_and_fixed_models_are_alike(self):
        model = small_model()
        expected = costs.profile(model)
        self.assertEqual(list(expected), ["stem", "depthwise", "head"])
        self.assertEqual(
            costs.profile(fliqs.to_searchable(model, "int_l")), expected
        )
        fixed = fliqs.to_fixed(model, fliqs.Assignment.uniform(model, "int4"))
        self.assertEqual(costs.profile(fixed), expected)

    def test_unknown_size(self):
        model = model_of((None, None, 3), keras.layers.Conv2D(2, 3, name="a"))
        with self.assertRaisesRegex(
            ValueError, "Received: `macs` of layer 'a'"
        ):
            costs.get("bitops")(model, "int4")
        for cost in ("memory", "table:energy_45nm.json"):
            with self.assertRaisesRegex(ValueError, "fixed input shape"):
                costs.get(cost)(model, "int4")

    @parameterized.parameters("size", "file_size")
    def test_sizes_of_weights_need_no_sizes_of_inputs(self, name):
        cost = costs.get(name)
        layer = keras.layers.Conv2D(2, 3)
        shapes = ((None, None, 3), (8, 8, 3))
        found = [cost(model_of(shape, layer), "int4") for shape in shapes]
        # 4 bits a weight, a scale and a bias a channel.
        self.assertEqual(found, [(27 + 4 * 4) / 2**20] * 2)
        table = keras.layers.Embedding(10, 4)
        dense = keras.layers.Dense(3)
        found = [
            cost(model_of((steps,), table, dense), "int4")
            for steps in (None, 8)
        ]
        self.assertEqual(*found)
        model = model_of((None,), table, dense)
        search = fliqs.SearchModel(model, "int_s", cost=name)
        self.assertLen(search.decisions, 2)


class CostTest(parameterized.TestCase):
    @parameterized.parameters(
        ("int4", 16), ("e2m1", 16), ("int8", 64), ("bf16", 256),
        ("fp32", 1024), ("e3m2", 36),
    )  # fmt: skip
    def test_bitops_of_one_format(self, name, product):
        cost = fliqs.costs.get("bitops")
        self.assertEqual(cost.unit, "GBOPs")
        macs = _STEM + _DEPTHWISE + _HEAD
        self.assertAlmostEqual(
            cost(small_model(), name) / (macs * product / 1e9), 1, places=12
        )

    def test_bitops_of_an_assignment(self):
        found = fliqs.costs.get("bitops")(
            small_model(),
            {
                "stem": "int8",
                "depthwise": {"weight": "int4", "input": "e4m3"},
                # Inputs that are not quantized are float32.
                "head": {"weight": "int5", "input": None},
            },
        )
        expected = (_STEM * 64 + _DEPTHWISE * 4 * 8 + _HEAD * 5 * 32) / 1e9
        self.assertAlmostEqual(found / expected, 1, places=12)

    def test_size_by_hand(self):
        cost = fliqs.costs.get("size")
        self.assertEqual(cost.unit, "MiB")
        found = cost(
            small_model(),
            {
                "stem": "int8",
                "depthwise": "int4",
                "head": {"weight": "int6", "input": None},
            },
        )
        # Kernel, a float32 scale a channel, and a float32 bias: of the
        # depthwise convolution too, as norms are folded into it.
        stem = 9 * 3 * 4 * 1 + 4 * 4 + 4 * 4
        depthwise = 9 * 4 / 2 + 4 * 4 + 4 * 4
        head = 64 * 10 * 6 / 8 + 10 * 4 + 10 * 4
        self.assertAlmostEqual(
            found / ((stem + depthwise + head) / 2**20), 1, places=12
        )

    @parameterized.parameters(
        ("int2", 2), ("int3", 4), ("e2m1", 4), ("int5", 8), ("e2m4", 8),
        ("int8", 8), ("e4m4", 16), ("bf16", 16), ("fp32", 32),
        # A byte for the 32 elements of a block.
        ("mxfp6_e3m2", 8 + 8 / 32),
    )  # fmt: skip
    def test_file_size_has_the_widths_of_the_file(self, name, bits):
        model = model_of((32,), keras.layers.Dense(64, name="d"))
        has_scales = name not in ("bf16", "fp32", "mxfp6_e3m2")
        expected = 32 * 64 * bits / 8 + 64 * 4 * (1 + has_scales)
        found = fliqs.costs.get("file_size")(model, name)
        self.assertAlmostEqual(found * 2**20, expected)

    @parameterized.parameters(
        ("channel", "int4", 64, 4, 64),
        ("tensor", "int4", 1, 4, 1),
        # Groups of 32, of 48 and 16; float32 in the file, which has no scales.
        (32, "int4", 2 * 64, 32, 0),
        (48, "e4m3", 2 * 64, 32, 0),
        # Formats without scales, or with their own, have no others.
        (32, "bf16", 0, 16, 0),
        (32, "mxfp4", 0, 4 + 8 / 32, 0),
    )
    def test_sizes_of_granularities(
        self, granularity, name, scales, file_bits, file_scales
    ):
        dense = fliqs.layers.Dense(
            64, formats=name, weight_granularity=granularity
        )
        model = model_of((64,), dense)
        weights, biases = 64 * 64, 4 * 64
        bits = fliqs.get_format(name).storage_bits
        self.assertAlmostEqual(
            fliqs.costs.get("size")(model, name) * 2**20,
            weights * bits / 8 + 4 * scales + biases,
        )
        self.assertAlmostEqual(
            fliqs.costs.get("file_size")(model, name) * 2**20,
            weights * file_bits / 8 + 4 * file_scales + biases,
        )

    def test_size_of_unscaled_formats(self):
        found = fliqs.costs.get("size")(
            model_of((3,), keras.layers.Dense(2, use_bias=False)), "fp32"
        )
        self.assertAlmostEqual(found * 2**20, 3 * 2 * 4)

    @parameterized.parameters("bitops", "size")
    def test_same_for_every_form_of_a_model(self, name):
        cost = fliqs.costs.get(name)
        model = small_model()
        assignment = {"stem": "int8", "depthwise": "int5", "head": "int4"}
        expected = cost(model, assignment)
        searchable = fliqs.to_searchable(model, "int_l")
        for form in (
            searchable,
            fliqs.to_fixed(model, assignment),
            fliqs.SearchModel(searchable),
        ):
            self.assertEqual(cost(form, assignment), expected)
        self.assertEqual(cost(model, fliqs.Assignment(assignment)), expected)

    @parameterized.parameters("bitops", "size")
    def test_graph_and_python_agree(self, name):
        cost = fliqs.costs.get(name)
        model = keras.Sequential(
            [
                keras.Input((9, 9, 3)),
                fliqs.layers.Conv2D(4, 3, formats="int_l", name="tied"),
                fliqs.layers.DepthwiseConv2D(
                    3, formats="int_s", input_formats="fp_s", name="two"
                ),
                keras.layers.Flatten(),
                fliqs.layers.Dense(
                    9, formats=("int4", "e3m2"), input_formats=None, name="one"
                ),
            ]
        )
        layers = {n: model.get_layer(n) for n in ("tied", "two", "one")}
        decisions = [d for d, _ in model_decisions(layers)]
        budget = Budget(
            cost, cost_terms(cost, model, decisions), decisions, None
        )
        sizes = [len(d.options) for d in decisions]
        self.assertEqual(sizes, [5, 2, 2, 2])
        samples = np.array([*np.ndindex(*sizes)], np.int32)
        in_graph = np.array(budget.of_tensor(samples))
        self.assertEqual(in_graph.dtype, np.float32)
        for sample, found in zip(samples, in_graph, strict=True):
            names = [
                d.options[o] for d, o in zip(decisions, sample, strict=True)
            ]
            expected = cost(
                model,
                {
                    "tied": names[0],
                    "two": {"weight": names[1], "input": names[2]},
                    "one": {"weight": names[3], "input": None},
                },
            )
            self.assertAlmostEqual(budget.of(sample) / expected, 1, places=12)
            self.assertAlmostEqual(found / expected, 1, delta=1e-6)
        self.assertAlmostEqual(
            float(budget.of_tensor(samples[3])) / in_graph[3], 1, delta=1e-6
        )

    def test_cost_of_ones_own(self):
        # 8 bits a cycle.
        cost = costs.Cost("cycles", "cycles", _cycles, 1.0)
        self.assertIs(costs.register(cost), cost)
        self.addCleanup(costs._COSTS.pop, "cycles")
        model = small_model()
        search = fliqs.SearchModel(
            model, "int_s", cost="cycles", cost_target="1.5xint4"
        )
        total = _STEM + _DEPTHWISE + _HEAD
        self.assertEqual(search.budget.target, 1.5 * total / 2)
        path = os.path.join(self.create_tempdir(), "search.keras")
        search.save(path)
        loaded = keras.models.load_model(path)
        self.assertIs(loaded.cost, cost)
        self.assertEqual(loaded.budget.target, search.budget.target)
        for name in ("cycles", "bitops", "table:mine"):
            with self.assertRaisesRegex(ValueError, f"Received: '{name}'"):
                costs.register(costs.Cost(name, "cycles", _cycles, 1.0))

    @parameterized.parameters("energy", "", "BITOPS", ({"bitops": 1},), (None,))
    def test_unknown_cost(self, name):
        with self.assertRaisesRegex(ValueError, f"Received: cost={name!r}"):
            fliqs.costs.get(name)

    def test_cost_is_returned_as_it_is(self):
        cost = fliqs.costs.get("size")
        self.assertIs(fliqs.costs.get(cost), cost)

    def test_assignment_that_does_not_fit(self):
        cost, model = fliqs.costs.get("bitops"), small_model()
        with self.assertRaisesRegex(ValueError, "nearest to 'sten'"):
            cost(model, {"sten": "int4", "depthwise": "int4", "head": "int4"})
        with self.assertRaisesRegex(ValueError, "none for"):
            cost(model, {"stem": "int4"})
        with self.assertRaisesRegex(ValueError, "Received: 'int9'"):
            cost(model, "int9")


class TargetTest(parameterized.TestCase):
    @parameterized.parameters(
        ("1.25xint4", 1.25 * 16), ("1xe2m1", 16), (" 2 x int8 ", 2 * 64),
        (".5xint8", 32),
    )  # fmt: skip
    def test_multiple_of_a_uniform_format(self, text, product):
        macs = _STEM + _DEPTHWISE + _HEAD
        found = costs.target(costs.get("bitops"), small_model(), text)
        self.assertAlmostEqual(found / (macs * product / 1e9), 1, places=12)

    @parameterized.parameters(
        (0.5, 0.5), ("0.5", 0.5), ("1e-3", 1e-3), (3, 3.0)
    )
    def test_number(self, value, expected):
        found = costs.target(costs.get("bitops"), small_model(), value)
        self.assertEqual(found, expected)
        self.assertIsInstance(found, float)

    @parameterized.parameters(
        0, 0.0, -1, "0", "-1", "abc", "", "nan", "inf", "-inf", "xint4",
        "0xint4", "-1xint4", "1.5int4", float("nan"), float("inf"),
        None,
    )  # fmt: skip
    def test_what_is_no_target(self, value):
        with self.assertRaises(ValueError) as context:
            costs.target(costs.get("bitops"), small_model(), value)
        self.assertIn(
            f"Received: cost_target={value!r}", str(context.exception)
        )

    def test_multiple_of_an_unknown_format(self):
        with self.assertRaisesRegex(ValueError, "Received: 'int9'"):
            costs.target(costs.get("bitops"), small_model(), "1.5xint9")


if __name__ == "__main__":
    absltest.main()
