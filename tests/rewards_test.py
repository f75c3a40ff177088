"""Each reward's equation on numbers worked out by hand."""

import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import rewards


class RewardsTest(parameterized.TestCase):
    @parameterized.parameters(
        # -2 - 0.5 * |1 - 1.4|, and as much below the target.
        ("absolute", -2.0, 1.4, 0.5, -2.2),
        ("absolute", -2.0, 0.6, 0.5, -2.2),
        ("absolute", 0.75, 1.0, 10.0, 0.75),
        ("one_sided", -2.0, 1.4, 0.5, -2.2),
        ("one_sided", -2.0, 0.6, 0.5, -2.0),
        ("one_sided", 0.75, 1.0, 10.0, 0.75),
        # 0.8 * 4^-0.5, 0.8 * 0.25^-0.5.
        ("soft_exponential", 0.8, 4.0, 0.5, 0.4),
        ("soft_exponential", 0.8, 0.25, 0.5, 1.6),
        ("hard_exponential", 0.8, 4.0, 0.5, 0.4),
        ("hard_exponential", 0.8, 0.25, 0.5, 0.8),
        ("hard_exponential", 0.8, 4.0, 0.0, 0.8),
    )
    def test_by_hand(self, name, quality, ratio, beta, expected):
        reward = rewards.get(name)
        np.testing.assert_allclose(
            reward(quality, ratio, beta), expected, rtol=1e-6
        )
        # Tensors of one shape too.
        np.testing.assert_allclose(
            reward(tf.constant([quality] * 3), tf.constant([ratio] * 3), beta),
            [expected] * 3,
            rtol=1e-6,
        )

    def test_names(self):
        self.assertEqual(
            rewards.NAMES,
            ("absolute", "one_sided", "soft_exponential", "hard_exponential"),
        )
        self.assertContainsSubset(rewards.NEEDS_POSITIVE_QUALITY, rewards.NAMES)

    @parameterized.parameters("linear", "", None)
    def test_unknown_name(self, name):
        with self.assertRaisesRegex(ValueError, f"Received: reward={name!r}"):
            rewards.get(name)


if __name__ == "__main__":
    absltest.main()
