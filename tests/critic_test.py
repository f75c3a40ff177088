"""The critic: what a sample's quality says of each option."""

import itertools

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import costs
from fliqs_tf.budget import Budget
from fliqs_tf.budget import Term
from fliqs_tf.controller import Controller
from fliqs_tf.critic import Critic
from fliqs_tf.policy import Policy
from fliqs_tf.space import Decision

_OPTIONS = ("int4", "int6", "int8")


def make(sizes=(3, 2), logits=None, **kwargs):
    policy = Policy(
        [
            Decision(f"layer{number}", "format", _OPTIONS[:size])
            for number, size in enumerate(sizes)
        ]
    )
    if logits is not None:
        policy.logits.assign(logits)
    critic = Critic(**kwargs)
    critic.prepare(policy)
    return policy, critic


@tf.function
def learn(policy, critic, samples, advantages):
    """Learns from many samples, one after another."""
    samples = tf.cast(samples, tf.int32)
    advantages = tf.cast(advantages, tf.float32)
    for number in tf.range(len(samples)):
        critic.update(policy, samples[number], advantages[number], True)


class CriticTest(parameterized.TestCase):
    def test_first_update(self):
        policy, critic = make()
        critic.update(policy, np.array([2, 0]), 0.6, True)
        # Uniform policies, rate 1 / (0 + 2): 0.6 / 2 * (onehot - p), and
        # nothing for the option that the second decision does not have.
        np.testing.assert_allclose(
            critic.values, [[-0.1, -0.1, 0.2], [0.15, -0.15, 0.0]], atol=1e-7
        )
        np.testing.assert_array_equal(critic.visits, [[0, 0, 1], [1, 0, 0]])

    def test_learns_nothing_when_told_so(self):
        policy, critic = make()
        critic.update(policy, np.array([2, 0]), 0.6, False)
        self.assertFalse(np.any(critic.values))
        self.assertFalse(np.any(critic.visits))

    def test_what_all_samples_share_moves_nothing(self):
        logits = np.array([[0.3, -0.7, 1.1], [0.4, 0.0, 0.0]], "float32")
        mean = np.zeros((2, 3))
        for sample in itertools.product(range(3), range(2)):
            policy, critic = make(logits=logits)
            critic.update(policy, np.array(sample), 5.0, True)
            p = np.asarray(policy.probabilities())
            weight = p[0, sample[0]] * p[1, sample[1]]
            mean += weight * np.asarray(critic.values)
        np.testing.assert_allclose(mean, 0.0, atol=1e-6)

    def test_gradient(self):
        logits = np.array([[0.3, -0.7, 1.1], [0.4, 0.0, 0.0]], "float32")
        policy, critic = make(logits=logits)
        values = np.array([[0.1, 0.5, -0.2], [0.3, -0.1, 0.0]], "float32")
        critic.values.assign(values)
        # Of sum_d sum_o p_o v_o, by differences.
        expected = np.zeros((2, 3))
        for place in np.ndindex(2, 3):
            sides = []
            for step in (1e-3, -1e-3):
                moved = logits.copy()
                moved[place] += step
                policy.logits.assign(moved)
                p = np.asarray(policy.probabilities(), np.float64)
                sides.append(np.sum(p * values))
            expected[place] = (sides[0] - sides[1]) / 2e-3
        policy.logits.assign(logits)
        np.testing.assert_allclose(critic.gradient(policy), expected, atol=1e-4)

    def test_finds_additive_gains_in_noise(self):
        gains = np.array([[0.0, 0.1, 0.2], [0.3, 0.0, 0.0], [0.0, 0.02, 0.0]])
        policy, critic = make((3, 3, 3), momentum=0.998)
        random = np.random.default_rng(0)
        samples = random.integers(3, size=(3000, 3))
        qualities = gains[range(3), samples].sum(1) - gains.mean(1).sum()
        noise = 0.1 * random.standard_normal(3000)
        learn(policy, critic, samples, qualities + noise)
        values = np.asarray(critic.values)
        # Up to a constant in each decision. An option has 1,000 visits, the
        # last 500 or so of which count: 0.1 / sqrt(500) = 0.0045; four sigma.
        np.testing.assert_allclose(
            values - values.mean(1, keepdims=True),
            gains - gains.mean(1, keepdims=True),
            atol=0.018,
        )


class CreditTest(parameterized.TestCase):
    def _controller(self, policy, **kwargs):
        controller = Controller(
            optimizer=keras.optimizers.SGD(1.0),
            credit="decision",
            cost_samples=2,
            entropy_weight=0.0,
            activation_delay=0.1,
            warmup=0.2,
            **kwargs,
        )
        # Without a prior, it starts from no cost.
        controller.prepare(policy, None, 1.0)
        return controller

    def _update(self, controller, policy, reward, progress, frozen=False):
        simulated = np.zeros((2, 2), "int32"), np.zeros(2, "float32")
        controller.update(
            policy,
            np.array([2, 0], "int32"),
            np.float32(reward),
            np.float32(progress),
            frozen,
            simulated,
        )

    def test_critic_learns_once_inputs_are_rounded(self):
        policy, _ = make()
        controller = self._controller(policy)
        self._update(controller, policy, 0.0, 0.0)
        self._update(controller, policy, 1.0, 0.05)
        self.assertFalse(np.any(controller.critic.values))
        self._update(controller, policy, 2.0, 0.1)
        self.assertTrue(np.any(controller.critic.values))
        # The logits wait for the end of the warm-up.
        self.assertFalse(np.any(policy.logits))
        before = np.array(controller.critic.values)
        self._update(controller, policy, np.nan, 0.15)
        self._update(controller, policy, 9.0, 0.95, frozen=True)
        np.testing.assert_array_equal(controller.critic.values, before)

    def test_logits_follow_the_critic(self):
        policy, _ = make()
        controller = self._controller(policy)
        self._update(controller, policy, 0.0, 0.3)
        self._update(controller, policy, 1.0, 0.4)
        values = np.asarray(controller.critic.values)
        # SGD of rate 1 on minus the gradient, over two decisions: p (v - mean)
        # of the last update (the first one found no advantage).
        p = np.array([[1 / 3] * 3, [0.5, 0.5, 0.0]])
        expected = p * (values - np.sum(p * values, 1, keepdims=True)) / 2
        np.testing.assert_allclose(policy.logits, expected, atol=1e-6)

    def test_the_freeze_maximises_the_quality(self):
        policy, _ = make()
        controller = self._controller(policy)
        values = np.array([[0.1, 0.5, -0.2], [0.3, -0.1, 0.0]], "float32")
        controller.critic.values.assign(values)
        np.testing.assert_array_equal(controller.scores(policy), values)

    def test_noise_does_not_move_what_is_known(self):
        # As of a layer that any format suits, in batches that differ by 0.1.
        prior = np.array([[0.0, -1e-4, -1e-3], [0.0, -1e-4, -2.0]], "float32")
        policy, critic = make((3, 3))
        critic.start(prior, np.maximum(-prior, 5e-4))
        random = np.random.default_rng(0)
        samples = random.integers(3, size=(2000, 2))
        # In truth the last option is half as bad as it seemed.
        qualities = -1.0 * (samples[:, 1] == 2) + 1.0 / 3.0
        noise = 0.1 * random.standard_normal(2000)
        learn(policy, critic, samples, qualities + noise)
        values = np.asarray(critic.values)
        np.testing.assert_allclose(values[:, :2], prior[:, :2], atol=5e-4)
        self.assertAlmostEqual(values[0, 2], prior[0, 2], delta=5e-4)
        self.assertAlmostEqual(values[1, 2], -1.0, delta=0.1)

    def test_configuration(self):
        controller = self._controller(make()[0])
        copy = Controller.from_config(controller.get_config())
        self.assertEqual(copy.credit, "decision")

    @parameterized.parameters(
        {"credit": "layer", "cost_samples": 8},
        {"credit": "decision", "cost_samples": 1},
    )
    def test_bad_credit(self, credit, cost_samples):
        with self.assertRaisesRegex(
            ValueError, f"sample, decision.*Received: credit='{credit}'"
        ):
            Controller(credit=credit, cost_samples=cost_samples)


class PriorTest(parameterized.TestCase):
    _PRIOR = np.array([[0.0, -0.5, -2.0], [-1.0, 0.0, 0.0]], "float32")

    def _controller(self, policy, prior, credit="decision"):
        controller = Controller(
            cost_samples=2, credit=credit, prior=prior, prior_weight=3.0
        )
        prices = [np.arange(1.0, len(d.options) + 1) for d in policy.decisions]
        terms = [Term("", n, n, np.diag(p)) for n, p in enumerate(prices)]
        # Nothing that a policy could do is beyond it.
        budget = Budget(costs.get("bitops"), terms, policy.decisions, 5.0)
        controller.prepare(policy, budget, 1.0)
        return controller

    @parameterized.parameters("sample", "decision")
    def test_policy_starts_from_it(self, credit):
        policy, _ = make()
        self._controller(policy, self._PRIOR, credit)
        weights = np.exp(3.0 * self._PRIOR) * [[1, 1, 1], [1, 1, 0]]
        np.testing.assert_allclose(
            policy.probabilities(),
            weights / weights.sum(1, keepdims=True),
            rtol=1e-5,
        )

    def test_critic_starts_from_it(self):
        policy, _ = make()
        controller = self._controller(policy, self._PRIOR)
        np.testing.assert_array_equal(controller.scores(policy), self._PRIOR)
        controller.critic.update(
            policy, np.array([0, 0], "int32"), np.float32(5.0), True
        )
        p = np.asarray(policy.probabilities())
        features = np.array([[1, 0, 0], [1, 0, 0]]) - p
        error = 5.0 - np.sum(features * self._PRIOR)
        # By what it loses, an option's value may be wrong; nothing is given up
        # within this budget, hence by 1 at least.
        deviations = np.array([[1.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
        # And it counts as 100 visits.
        ratios = error**2 / deviations**2
        rates = np.maximum(1.0 / (100 + 2 + ratios), 0.01 / (1.0 + ratios))
        expected = self._PRIOR + rates * error * features
        np.testing.assert_allclose(
            controller.critic.values, expected, rtol=1e-5
        )

    def test_configuration(self):
        controller = self._controller(make()[0], self._PRIOR)
        copy = Controller.from_config(controller.get_config())
        np.testing.assert_array_equal(copy.prior, self._PRIOR)
        self.assertEqual(copy.prior_weight, 3.0)

    @parameterized.parameters(
        (np.zeros((2, 2)), r"shape \(2, 3\)\. Received: shape \(2, 2\)"),
        (np.full((2, 3), np.nan), "finite number for each option"),
    )
    def test_bad_prior(self, prior, message):
        with self.assertRaisesRegex(ValueError, message):
            self._controller(make()[0], prior)

    def test_bad_weight(self):
        with self.assertRaisesRegex(ValueError, "Received: prior_weight=-1"):
            Controller(prior_weight=-1.0)


if __name__ == "__main__":
    absltest.main()
