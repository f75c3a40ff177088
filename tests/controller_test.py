"""The controller: schedules, baseline, gradients, learning."""

import json

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

from fliqs_tf.controller import Controller
from fliqs_tf.policy import Policy
from fliqs_tf.space import Decision

_OPTIONS = ("int4", "int6", "int8")


def make_policy(sizes=(3, 2)):
    return Policy(
        [
            Decision(f"layer{number}", "format", _OPTIONS[:size])
            for number, size in enumerate(sizes)
        ]
    )


def make(policy, **kwargs):
    kwargs = {"optimizer": keras.optimizers.SGD(1.0), **kwargs}
    controller = Controller(**kwargs)
    # Without a prior, it starts from no cost.
    controller.prepare(policy, None, 1.0)
    return controller


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


class ScheduleTest(parameterized.TestCase):
    @parameterized.parameters(
        (0.0, 0.0),
        (0.2, 0.0),
        # A third of the way: (1 - cos(pi / 3)) / 2 = 1/4.
        (0.4, 0.125),
        (0.5, 0.25),
        (0.6, 0.375),
        (0.8, 0.5),
        (1.0, 0.5),
    )
    def test_entropy_weight(self, progress, expected):
        controller = Controller(
            activation_delay=0.0, warmup=0.2, freeze=0.8, entropy_weight=0.5
        )
        self.assertAlmostEqual(
            float(controller.entropy_weight_at(progress)), expected, places=6
        )

    def test_warm_up_moves_nothing(self):
        for optimizer in (
            keras.optimizers.SGD(1.0),
            keras.optimizers.AdamW(1.0, weight_decay=0.5),
        ):
            policy = make_policy()
            policy.logits.assign([[1, 2, 3], [4, 5, 6]])
            controller = make(policy, optimizer=optimizer, warmup=0.5)
            for step in range(5):
                controller.update(
                    policy, np.array([0, 1]), float(step), 0.1 * step, False
                )
            np.testing.assert_array_equal(policy.logits, [[1, 2, 3], [4, 5, 6]])
            # The baseline has seen the rewards, the optimizer no step.
            self.assertEqual(float(controller.baseline), 2.0)
            self.assertEqual(int(optimizer.iterations), 0)
            controller.update(policy, np.array([0, 1]), 9.0, 0.5, False)
            self.assertTrue(np.any(policy.logits != [[1, 2, 3], [4, 5, 6]]))
            self.assertEqual(int(optimizer.iterations), 1)

    def test_frozen_moves_nothing_in_spite_of_momentum(self):
        for compiled in (False, True):
            policy = make_policy()
            controller = make(policy, optimizer=keras.optimizers.Adam(0.5))
            update = controller.update
            if compiled:

                @tf.function
                def update(policy, sample, reward, progress, frozen):
                    controller.update(policy, sample, reward, progress, frozen)

            for reward in (1.0, 3.0, 2.0):
                update(
                    policy, tf.constant([0, 1]), reward, 0.5, tf.constant(False)
                )
            before = ops.convert_to_numpy(policy.logits).copy()
            self.assertTrue(np.any(before))
            for reward in (1.0, 3.0, 2.0):
                update(
                    policy, tf.constant([0, 1]), reward, 0.9, tf.constant(True)
                )
                np.testing.assert_array_equal(policy.logits, before)

    @parameterized.parameters(np.nan, np.inf)
    def test_reward_that_is_no_number_moves_nothing(self, reward):
        policy = make_policy()
        controller = make(policy)
        controller.update(policy, np.array([0, 1]), 1.0, 0.5, False)
        before = ops.convert_to_numpy(policy.logits).copy()
        controller.update(policy, np.array([0, 1]), reward, 0.5, False)
        np.testing.assert_array_equal(policy.logits, before)


class LearningTest(parameterized.TestCase):
    def test_baseline_by_hand(self):
        policy = make_policy()
        controller = make(policy, baseline_momentum=0.75)
        found = []
        for reward in (8.0, 4.0, 0.0, 4.0, 12.0):
            controller.update(policy, np.array([0, 0]), reward, 0.0, False)
            found.append(float(controller.baseline))
        # A plain mean of four, then 0.75 * 4 + 0.25 * 12.
        np.testing.assert_allclose(found, [8, 6, 4, 4, 6], rtol=1e-6)

    def test_step_by_hand(self):
        """SGD of rate 1 on two decisions, of three and two options."""
        policy = make_policy()
        controller = make(policy, baseline_momentum=0.5, entropy_weight=0.0)
        sample = np.array([2, 0])
        # The baseline is updated first, by the first reward to itself: no
        # advantage. Then it is (1 + 4) / 2 = 2.5, the advantage 1.5.
        controller.update(policy, sample, 1.0, 0.5, False)
        np.testing.assert_array_equal(policy.logits, np.zeros((2, 3)))
        controller.update(policy, sample, 4.0, 0.5, False)
        expected = np.array([[-1 / 3, -1 / 3, 2 / 3], [0.5, -0.5, 0]])
        np.testing.assert_allclose(
            policy.logits, 1.5 * expected / 2, rtol=1e-5, atol=1e-7
        )

    def test_share_of_a_replica(self):
        found = []
        for share in (1.0, 0.25):
            policy = make_policy()
            controller = make(policy)
            controller.update(policy, np.array([2, 0]), 1.0, 0.5, False)
            controller.update(
                policy, np.array([2, 0]), 4.0, 0.5, False, share=share
            )
            found.append(np.array(policy.logits))
        np.testing.assert_allclose(found[1], found[0] / 4, rtol=1e-5)

    def test_entropy_penalty_by_hand(self):
        policy = make_policy((2,))
        # Odds 3 : 1. dH/dlogit = -p (log p + H).
        policy.logits.assign([[np.log(3.0), 0.0]])
        controller = make(
            policy, warmup=0.0, activation_delay=0.0, freeze=1.0,
            entropy_weight=0.5,
        )  # fmt: skip
        p = np.array([0.75, 0.25])
        entropy = -(p * np.log(p)).sum()
        gradient = controller.gradient(policy, np.array([0]), 0.0, 0.5)
        # Half way the weight is 0.25. Minimised: entropy goes down.
        np.testing.assert_allclose(
            gradient, [0.25 * -p * (np.log(p) + entropy)], rtol=1e-5
        )
        before = float(policy.entropy()[0])
        controller.update(policy, np.array([0]), 1.0, 0.9, False)
        self.assertLess(float(policy.entropy()[0]), before)

    def test_gradient_is_that_of_the_loss(self):
        """Autodiff of the loss that the docstring writes down."""
        policy = make_policy()
        rng = np.random.default_rng(0)
        policy.logits.assign(rng.normal(size=(2, 3)))
        controller = make(policy)
        sample, advantage, progress = np.array([1, 1]), 0.7, 0.6
        logits = policy.logits.value
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = -advantage * tf.reduce_mean(policy.log_prob(sample))
            loss += controller.entropy_weight_at(progress) * tf.reduce_mean(
                policy.entropy()
            )
        np.testing.assert_allclose(
            controller.gradient(policy, sample, advantage, progress),
            tape.gradient(loss, logits),
            rtol=1e-4,
            atol=1e-6,
        )

    def test_planted_reward_is_found(self):
        policy = make_policy((3, 2, 3))
        controller = make(
            policy,
            optimizer=keras.optimizers.Adam(0.1),
            warmup=0.0,
            activation_delay=0.0,
        )
        best = np.array([1, 0, 2])

        @tf.function
        def step(progress):
            sample = policy.sample()[0]
            hits = tf.reduce_sum(tf.cast(sample == best, "float32"))
            controller.update(policy, sample, hits, progress, False)

        for number in range(300):
            step(tf.constant(number / 300))
        np.testing.assert_array_equal(policy.best(), best)
        p = ops.convert_to_numpy(policy.probabilities())
        self.assertGreater(p[np.arange(3), best].min(), 0.9)

    def test_simulated_samples_have_the_gradient_of_the_expectation(self):
        """Mean of many estimates against the closed form."""
        policy = make_policy((3, 2))
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(2, 3)).astype("float32")
        logits[1, 2] = 0.0
        policy.logits.assign(logits)
        # A reward that is not a sum over decisions.
        table = rng.normal(size=(3, 2)).astype("float32")
        count = 8
        controller = make(policy, cost_samples=count, entropy_weight=0.0)

        @tf.function
        def estimate():
            samples = policy.sample(count)
            values = tf.gather_nd(table, samples)
            return controller.gradient(
                policy,
                samples[0],
                0.0,
                0.5,
                simulated=(samples, values),
            )

        estimates = np.stack([estimate() for _ in range(3000)])
        p, q = softmax(logits[0]), softmax(logits[1, :2])
        # E[r] = p' R q; its gradient in the logits of p is p * (R q - E[r]).
        # The sum over decisions, of which the loss takes the mean, negated.
        mean = p @ table @ q
        expected = np.zeros((2, 3))
        expected[0] = p * (table @ q - mean)
        expected[1, :2] = q * (p @ table - mean)
        expected = -expected / 2
        deviation = estimates.std(0) / np.sqrt(len(estimates))
        self.assertTrue(
            np.all(np.abs(estimates.mean(0) - expected) < 5 * deviation + 1e-6)
        )
        # And the estimates are worth something: the error is small.
        self.assertLess(
            np.abs(estimates.mean(0) - expected).max(),
            0.1 * np.abs(expected).max(),
        )


class ConfigTest(parameterized.TestCase):
    def test_round_trip(self):
        controller = Controller(
            keras.optimizers.SGD(0.3, momentum=0.5),
            warmup=0.3,
            activation_delay=0.2,
            freeze=0.7,
            entropy_weight=0.4,
            baseline_momentum=0.8,
            cost_samples=5,
            name="mine",
        )
        data = keras.saving.serialize_keras_object(controller)
        data = json.loads(json.dumps(data))
        self.assertEqual(data["registered_name"], "fliqs_tf>Controller")
        found = keras.saving.deserialize_keras_object(data)
        self.assertEqual(found.get_config(), controller.get_config())
        self.assertIsInstance(found.optimizer, keras.optimizers.SGD)
        self.assertAlmostEqual(
            float(found.optimizer.learning_rate), 0.3, places=6
        )
        self.assertEqual(found.optimizer.momentum, 0.5)
        self.assertEqual(found.cost_samples, 5)

    def test_default_optimizer(self):
        optimizer = Controller().optimizer
        self.assertIsInstance(optimizer, keras.optimizers.Adam)
        self.assertIsNot(Controller().optimizer, optimizer)
        self.assertIsInstance(Controller("sgd").optimizer, keras.optimizers.SGD)

    @parameterized.parameters(
        {"warmup": -0.1, "activation_delay": -0.2},
        {"warmup": 0.1, "activation_delay": 0.2},
        {"warmup": 0.9, "freeze": 0.9},
        {"freeze": 1.1},
        {"warmup": float("nan")},
        {"entropy_weight": -1.0},
        {"baseline_momentum": 1.0},
        {"baseline_momentum": -0.5},
        {"cost_samples": 0},
        {"cost_samples": 2.5},
        {"entropy_weight": float("nan")},
        {"prior_weight": float("inf")},
        {"optimizer": keras.optimizers.Adam(gradient_accumulation_steps=2)},
    )
    def test_bad_arguments(self, **kwargs):
        with self.assertRaisesRegex(ValueError, "Received"):
            Controller(**kwargs)


if __name__ == "__main__":
    absltest.main()
