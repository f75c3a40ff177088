"""Rules: which layers are searched, how, and together with which."""

import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf import rules
from tests.any_models import attention
from tests.any_models import embedded
from tests.any_models import recurrent


class RulesTest(parameterized.TestCase):
    def _decisions(self, model, given):
        search = fliqs.SearchModel(model, "int_s", rules=given)
        return {d.name: (d.options, d.layers) for d in search.decisions}

    def test_kinds_of_rules(self):
        small = ("int4", "int8")
        found = self._decisions(
            recurrent(),
            [
                fliqs.Rule(path="each/.*"),
                fliqs.Rule(kind="GRU", formats="int8", input_formats=None),
                fliqs.Rule(
                    predicate=lambda path, layer: layer.go_backwards,
                    input_formats="apart",
                ),
                fliqs.Rule(kind="LSTM", formats="int5,int6"),
            ],
        )
        self.assertEqual(
            found,
            {
                "both/forward_lstm": (("int5", "int6"), ("both/forward_lstm",)),
                "both/backward_lstm:weight_format": (
                    small,
                    ("both/backward_lstm",),
                ),
                "both/backward_lstm:input_format": (
                    small,
                    ("both/backward_lstm",),
                ),
                "gru:weight_format": (("int8",), ("gru",)),
            },
        )

    def test_layers_left_alone_keep_their_weights(self):
        model = recurrent()
        rule = fliqs.Rule(kind="LSTM|GRU")
        searchable = fliqs.to_searchable(model, "fp32", [rule])
        self.assertLen(searchable.conversion_report.left_alone, 3)
        x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:]))
        np.testing.assert_array_equal(searchable(x), model(x))

    def test_tied_layers_are_one_decision(self):
        model = attention()
        group = tuple(f"attention/{n}" for n in ("query", "key", "value"))
        tie = fliqs.Rule(path="attention/(query|key|value)", tie="projections")
        found = self._decisions(model, [tie])
        self.assertEqual(found["projections"], (("int4", "int8"), group))
        self.assertLen(found, 3)
        search = fliqs.SearchModel(
            model, "int_s", cost_target="1.8xint4", rules=[tie]
        )
        assignment = search.assignment()
        self.assertLen({assignment[path] for path in group}, 1)
        self.assertLessEqual(
            search.cost(model, assignment), search.budget.target * 1.0001
        )
        self.assertAlmostEqual(
            search.budget.of(np.zeros(3, int)), search.cost(model, "int4")
        )

    def test_ties_that_cannot_be(self):
        model = attention()
        for given in (
            [
                fliqs.Rule(path="head", tie="x", formats="int4,int5"),
                fliqs.Rule(tie="x"),
            ],
            [fliqs.Rule(path="attention/.*", tie="head")],
        ):
            with self.assertRaisesRegex(ValueError, "Received: tie="):
                fliqs.SearchModel(model, "int_s", rules=given)

    def test_presets(self):
        model = embedded()
        first_and_last = self._decisions(model, rules.first_and_last(model))
        self.assertEqual(first_and_last["separable"][0], ("int8",))
        self.assertEqual(first_and_last["up"][0], ("int8",))
        self.assertLen(self._decisions(model, rules.PAPER), 3)
        self.assertSameElements(
            self._decisions(model, rules.weights_only()),
            [f"{n}:weight_format" for n in ("table", "separable", "up")],
        )
        # A table has no inputs to quantize.
        self.assertLen(self._decisions(model, rules.apart()), 5)

    def test_a_rule_for_nothing(self):
        for rule in (
            fliqs.Rule(path="atention/query", tie="x"),
            fliqs.Rule(kind="Conv2D", formats="int8"),
        ):
            with self.assertRaisesRegex(ValueError, "attention/query"):
                fliqs.to_searchable(attention(), "int_s", rules=[rule])
        for bad in ({"path": "("}, {"kind": "["}, {"formats": "int9"}):
            with self.assertRaisesRegex(ValueError, "Received"):
                fliqs.Rule(**bad)


if __name__ == "__main__":
    absltest.main()
