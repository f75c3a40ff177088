"""The policy: probabilities, samples, closed-form gradients, saving."""

import json
import os
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

from fliqs_tf.policy import Policy
from fliqs_tf.space import Decision

# Three decisions of 4, 1 and 2 options.
_SIZES = (4, 1, 2)


def make_policy(sizes=_SIZES, **kwargs):
    options = ("int4", "int5", "int6", "int7")
    return Policy(
        [
            Decision(f"layer{number}", "format", options[:size])
            for number, size in enumerate(sizes)
        ],
        **kwargs,
    )


def set_random(policy, seed=0):
    rng = np.random.default_rng(seed)
    policy.logits.assign(rng.normal(size=policy.logits.shape) * 1.5)


class PolicyTest(parameterized.TestCase):
    def test_starts_uniform(self):
        policy = make_policy()
        np.testing.assert_allclose(
            policy.probabilities(),
            [[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0]],
            rtol=1e-6,
        )
        np.testing.assert_allclose(
            policy.entropy(), [np.log(4), 0.0, np.log(2)], rtol=1e-6, atol=1e-7
        )
        self.assertAlmostEqual(
            float(np.sum(policy.entropy())), np.log(4 * 1 * 2), places=5
        )
        self.assertFalse(policy.trainable_weights)

    def test_padding_has_no_probability(self):
        policy = make_policy()
        for seed in range(3):
            # Whatever stands in the padded logits.
            set_random(policy, seed)
            policy.logits.assign(policy.logits * 20)
            p = ops.convert_to_numpy(policy.probabilities())
            np.testing.assert_array_equal(p[1], [1, 0, 0, 0])
            np.testing.assert_array_equal(p[2, 2:], [0, 0])
            np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
            samples = ops.convert_to_numpy(policy.sample(2000))
            self.assertTrue(np.all(samples < _SIZES))
            self.assertTrue(np.all(samples >= 0))
            best = ops.convert_to_numpy(policy.best())
            self.assertTrue(np.all(best < _SIZES))
            for name in ("entropy", "entropy_gradient", "log_probabilities"):
                self.assertTrue(np.isfinite(getattr(policy, name)()).all())

    def test_probabilities_by_hand(self):
        policy = make_policy((2, 2))
        # odds 3 : 1, and 1 : 9.
        policy.logits.assign([[np.log(3.0), 0.0], [0.0, np.log(9.0)]])
        np.testing.assert_allclose(
            policy.probabilities(), [[0.75, 0.25], [0.1, 0.9]], rtol=1e-5
        )
        np.testing.assert_allclose(
            policy.log_prob(np.array([0, 1])), np.log([0.75, 0.9]), rtol=1e-5
        )
        np.testing.assert_array_equal(policy.best(), [0, 1])
        expected = [
            -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)),
            -(0.1 * np.log(0.1) + 0.9 * np.log(0.9)),
        ]
        np.testing.assert_allclose(policy.entropy(), expected, rtol=1e-5)

    def test_gradients_are_those_of_autodiff(self):
        policy = make_policy()
        for seed in range(4):
            set_random(policy, seed)
            sample = policy.sample()[0]
            logits = policy.logits.value
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(logits)
                log_prob = tf.reduce_sum(policy.log_prob(sample))
                entropy = tf.reduce_sum(policy.entropy())
            np.testing.assert_allclose(
                policy.log_prob_gradient(sample),
                tape.gradient(log_prob, logits),
                rtol=1e-4,
                atol=1e-6,
            )
            np.testing.assert_allclose(
                policy.entropy_gradient(),
                tape.gradient(entropy, logits),
                rtol=1e-4,
                atol=1e-6,
            )

    def test_gradient_of_many_samples(self):
        policy = make_policy()
        set_random(policy)
        samples = policy.sample(5)
        np.testing.assert_allclose(
            policy.log_prob_gradient(samples),
            np.stack([policy.log_prob_gradient(s) for s in samples]),
            rtol=1e-6,
        )

    def test_sampling_frequencies(self):
        policy = make_policy((4, 2, 3), seed=3)
        set_random(policy)
        count = 20_000
        samples = ops.convert_to_numpy(policy.sample(count))
        self.assertEqual(samples.shape, (count, 3))
        self.assertEqual(samples.dtype, np.int32)
        p = ops.convert_to_numpy(policy.probabilities())
        for decision in range(3):
            found = np.bincount(samples[:, decision], minlength=4) / count
            # Five standard deviations of a mean of Bernoulli numbers.
            bound = 5 * np.sqrt(p[decision] * (1 - p[decision]) / count)
            self.assertTrue(np.all(np.abs(found - p[decision]) <= bound))
        # Decisions are independent.
        joint = np.mean((samples[:, 0] == 0) & (samples[:, 1] == 0))
        self.assertAlmostEqual(joint, p[0, 0] * p[1, 0], delta=0.02)

    def test_samples_differ_from_call_to_call_also_in_a_graph(self):
        policy = make_policy((4,) * 10)
        for draw in (policy.sample, tf.function(lambda: policy.sample())):
            found = {tuple(np.array(draw()[0])) for _ in range(4)}
            self.assertLen(found, 4)

    def test_same_seed_gives_the_same_samples(self):
        one, other = make_policy(seed=4), make_policy(seed=4)
        np.testing.assert_array_equal(one.sample(9), other.sample(9))
        third = make_policy((4,) * 10, seed=5)
        self.assertTrue(
            np.any(
                np.array(third.sample(9))
                != np.array(make_policy((4,) * 10, seed=6).sample(9))
            )
        )

    def test_config_round_trip(self):
        policy = make_policy(seed=4, name="mine")
        config = json.loads(json.dumps(policy.get_config()))
        found = Policy.from_config(config)
        self.assertEqual(found.decisions, policy.decisions)
        self.assertEqual(found.seed, 4)
        self.assertEqual(found.name, "mine")

    def test_file_restores_logits_and_random_state(self):
        class Holder(keras.Model):
            def __init__(self):
                super().__init__()
                self.policy = make_policy((4,) * 5, seed=4)
                self.built = True

        one, other = Holder(), Holder()
        set_random(one.policy)
        one.policy.sample(3)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "all.weights.h5")
            one.save_weights(path)
            other.load_weights(path)
        np.testing.assert_array_equal(other.policy.logits, one.policy.logits)
        for _ in range(3):
            np.testing.assert_array_equal(
                other.policy.sample(5), one.policy.sample(5)
            )

    def test_no_decision(self):
        with self.assertRaisesRegex(ValueError, "Received: none"):
            Policy([])


if __name__ == "__main__":
    absltest.main()
