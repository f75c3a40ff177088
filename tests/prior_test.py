"""The policy at the start, against its definition."""

import itertools
import warnings

import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import costs
from fliqs_tf.budget import Budget
from fliqs_tf.prior import initial_logits
from tests import budget_test

_COST = costs.get("bitops")


def _problem(seed, share):
    """Five decisions, two terms of them pairs, at a share of the dearest."""
    sizes, terms, rng = budget_test.problem(seed)
    samples = list(itertools.product(*map(range, sizes)))
    prices = [budget_test.price(terms, sample) for sample in samples]
    target = min(prices) + share * (max(prices) - min(prices))
    budget = Budget(_COST, terms, budget_test.decisions_of(sizes), target)
    return budget, rng.normal(size=budget.is_option.shape), samples, prices


def _probabilities(logits, budget):
    logits = np.where(budget.is_option, logits, -np.inf)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def _temperature(values, budget, samples, prices, weight):
    """By enumeration."""
    best = max(
        sum(values[range(len(sample)), sample])
        for sample, price in zip(samples, prices, strict=True)
        if price <= budget.target
    )
    most = np.where(budget.is_option, values, -np.inf).max(axis=1).sum()
    # On seed 1 nothing is given up.
    return ((most - best) / len(values) or 1.0) / weight


def _objective(p, values, budget, temperature, beta):
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1.0)))
    excess = max(0.0, budget.expected_ratio(p) - 1.0)
    return np.sum(p * values) - beta * excess + temperature * entropy


class ExpectedCostTest(parameterized.TestCase):
    @parameterized.parameters(range(3))
    def test_is_the_mean_over_all_samples(self, seed):
        budget, logits, samples, prices = _problem(seed, 0.5)
        p = _probabilities(logits, budget)
        chances = [np.prod(p[range(len(s)), s]) for s in samples]
        self.assertAlmostEqual(sum(chances), 1.0)
        expected = np.dot(chances, prices) / budget.target
        self.assertAlmostEqual(budget.expected_ratio(p), expected)

    def test_gradient_is_that_of_a_difference(self):
        budget, logits, _, _ = _problem(0, 0.5)
        p = _probabilities(logits, budget)
        gradient = budget.expected_ratios(p)
        for place in zip(*np.nonzero(budget.is_option), strict=True):
            # Linear in each decision: one step of any size is exact.
            more = p.copy()
            more[place] += 0.5
            change = budget.expected_ratio(more) - budget.expected_ratio(p)
            self.assertAlmostEqual(change, 0.5 * gradient[place])


class InitialLogitsTest(parameterized.TestCase):
    @parameterized.product(seed=(0, 1, 2, 3), weight=(0.5, 3.0, 20.0))
    def test_meets_the_target_and_no_neighbour_is_better(self, seed, weight):
        budget, values, *all_of_them = _problem(seed, 0.3)
        temperature = _temperature(values, budget, *all_of_them, weight)
        beta = 100.0
        logits = initial_logits(budget, values, weight, beta)
        p = _probabilities(logits, budget)
        self.assertAlmostEqual(budget.expected_ratio(p), 1.0, places=4)
        best = _objective(p, values, budget, temperature, beta)
        rng = np.random.default_rng(seed)
        for _ in range(300):
            other = _probabilities(
                logits + rng.normal(size=p.shape) * 0.1, budget
            )
            value = _objective(other, values, budget, temperature, beta)
            # The target is met to a millionth, at 100 a unit.
            self.assertLess(value, best + 1.1e-4)

    def test_neither_a_unit_nor_an_offset_matters(self):
        budget, values, _, _ = _problem(0, 0.3)
        offset = np.arange(len(values))[:, None]
        np.testing.assert_allclose(
            _probabilities(initial_logits(budget, values, 3.0, 99.0), budget),
            _probabilities(
                initial_logits(budget, 0.01 * values + offset, 3.0, 99.0),
                budget,
            ),
            atol=1e-6,
        )

    def test_costs_nothing_within_the_budget(self):
        budget, values, _, _ = _problem(0, 1.0)
        np.testing.assert_array_equal(
            initial_logits(budget, values, 3.0, 1.0), 3.0 * values
        )

    def test_reward_that_pays_for_the_excess(self):
        # Of two options of cost 1 and 4 the dear one is worth 6 more, at a
        # target of 2: 3 / 2 of the target cost 6 at a price of 4.
        terms = [budget_test.tied(0, [1.0, 4.0])]
        decisions = budget_test.decisions_of((2,))
        budget = Budget(_COST, terms, decisions, 2.0)
        values = np.array([[0.0, 6.0]])
        # E[C] = 2 at a probability of 1/3: 6 - 3 / 2 * price = log(1/2).
        price = (6.0 + np.log(2.0)) * 2.0 / 3.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # The best assignment gives up 6.
            logits = initial_logits(budget, values, 6.0, price + 0.01)
        self.assertAlmostEqual(np.diff(logits).item(), -np.log(2), places=4)
        with self.assertWarnsRegex(
            UserWarning,
            r"it, 4.46 at the target. Received: beta=1, .*about 8.9",
        ):
            logits = initial_logits(budget, values, 6.0, 1.0)
        self.assertAlmostEqual(np.diff(logits).item(), 6.0 - 1.5)

    def test_options_that_do_not_exist_cost_nothing(self):
        budget, values, _, _ = _problem(1, 0.3)
        other = np.where(budget.is_option, values, 50.0)
        np.testing.assert_allclose(
            _probabilities(initial_logits(budget, values, 3.0, 99.0), budget),
            _probabilities(initial_logits(budget, other, 3.0, 99.0), budget),
        )

    def test_nothing_is_known_of_a_largest_sum(self):
        terms = [
            budget_test.Term("one", 0, 0, np.diag([1.0, 4.0]), group)
            for group in range(2)
        ]
        decisions = budget_test.decisions_of((2,))
        budget = Budget(_COST, terms, decisions, 2.0)
        values = np.array([[0.0, 6.0]])
        np.testing.assert_array_equal(
            initial_logits(budget, values, 12.0, 1.0), 2.0 * values
        )

    def test_no_weight_is_uniform(self):
        budget, values, _, _ = _problem(0, 0.3)
        np.testing.assert_array_equal(
            initial_logits(budget, values, 0.0, 1.0), 0.0 * values
        )


if __name__ == "__main__":
    absltest.main()
