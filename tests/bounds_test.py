"""Tests of several costs at once: one rewarded, others as hard bounds."""

import itertools

import numpy as np
from absl.testing import absltest

import fliqs_tf as fliqs


def _search(**arguments):
    arguments = {"space": "int_s", "cost_target": "1.5xint4", **arguments}
    return fliqs.SearchModel(fliqs.models.get("residual_small"), **arguments)


class BoundsTest(absltest.TestCase):
    def test_most_probable_is_the_best_of_all_that_fit(self):
        bounds = {"size": "1.3xint4", "memory": 3.5}
        search = _search(bounds=bounds)
        costs = [fliqs.costs.get(n) for n in ("bitops", "size", "memory")]
        samples = list(itertools.product((0, 1), repeat=9))
        paths = [decision.path for decision in search.decisions]
        model = search.searchable_model
        names = ("int4", "int8")
        # Sums over layers, from one layer at a time.
        base = [cost(model, "int4") for cost in costs[:2]]
        steps = np.array(
            [
                [
                    cost(
                        model,
                        {p: names[int(p == path)] for p in paths},
                    )
                    - low
                    for path in paths
                ]
                for cost, low in zip(costs[:2], base, strict=True)
            ]
        )
        limits = [search.budget.target]
        limits += [bound.target for bound in search.budget.bounds]
        self.assertLen(limits, 3)
        for seed in range(4):
            logits = np.random.default_rng(seed).normal(size=(9, 2), scale=3)
            best = -np.inf
            for sample in samples:
                sums = base + steps @ np.array(sample)
                if np.any(sums > np.array(limits[:2]) * (1 + 1e-9)):
                    continue
                assignment = dict(
                    zip(paths, (names[o] for o in sample), strict=True)
                )
                score = logits[range(9), sample].sum()
                if score <= best or costs[2](model, assignment) > limits[2]:
                    continue
                best = score
            found = search.budget.most_probable(logits)
            self.assertAlmostEqual(logits[range(9), found].sum(), best)

    def test_bound_narrows_what_is_reachable(self):
        free = _search()
        tight = _search(bounds={"size": "1.2xint4"})
        self.assertEqual(free.budget.lowest, tight.budget.lowest)
        self.assertLess(tight.budget.highest, free.budget.highest)

    def test_impossible_bounds_name_the_lowest(self):
        model = fliqs.models.get("residual_small")
        lowest = fliqs.costs.get("size")(model, "int4")
        with self.assertRaisesRegex(
            ValueError, f"bound of 'size' must be at least {lowest:.10g} MiB"
        ):
            _search(bounds={"size": 0.001})

    def test_bad_bounds(self):
        with self.assertRaisesRegex(ValueError, "`cost` must be one of"):
            _search(bounds={"weight": 1.0})
        with self.assertRaisesRegex(ValueError, "Received: bounds='much'"):
            _search(bounds={"size": "much"})

    def test_result_keeps_the_bounds(self):
        search = _search(bounds={"size": "1.15xint4"})
        search.policy.logits.assign(np.tile([0.0, 5.0], (9, 1)))
        size = fliqs.costs.get("size")
        model = search.searchable_model
        self.assertLessEqual(
            size(model, search.assignment()), 1.15 * size(model, "int4")
        )
        config = search.get_config()
        self.assertEqual(config["bounds"], {"size": 1.15 * size(model, "int4")})
