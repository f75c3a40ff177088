"""The quantizers: their contract, scales, ranges and gradients."""

import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

from fliqs_tf.numerics import fake_quant
from fliqs_tf.quantizers import InputQuantizer
from fliqs_tf.quantizers import WeightQuantizer
from tests.quantizer_contract import SPACE
from tests.quantizer_contract import Host
from tests.quantizer_contract import QuantizerContract

_FORMATS = ("int2", "int4", "int8", "e2m1", "e4m3", "e8m7", "bf16", "fp32")


class WeightQuantizerTest(QuantizerContract, parameterized.TestCase):
    quantizer_class = WeightQuantizer
    variants = ({}, {"axis": None}, {"axis": 0}, {"axis": (-2, -1)})

    @parameterized.parameters(None, 0, 1, -1)
    def test_equals_fake_quant(self, axis):
        for name in _FORMATS:
            host = Host(WeightQuantizer(name, axis=axis))
            np.testing.assert_array_equal(
                host(self.x), fake_quant(self.x, name, axis=axis)
            )

    def test_scale_for_each_channel(self):
        x = np.array([[1.0, 70.0], [-7.0, 14.0]], np.float32)
        quantizer = WeightQuantizer("int4")
        host = Host(quantizer)
        host(x)
        codes, scale = quantizer.codes(x, False, host.state)
        # In units of 4: 7 is 1.75.
        np.testing.assert_allclose(scale, [[4.0, 40.0]], rtol=1e-6)
        np.testing.assert_array_equal(codes * 4, [[1.0, 7.0], [-7.0, 1.0]])

    def test_several_axes(self):
        host = Host(WeightQuantizer("int4", axis=(-2, -1)))
        found = ops.convert_to_numpy(host(self.x))
        for row in range(5):
            for column in range(4):
                np.testing.assert_array_equal(
                    found[:, row, column],
                    fake_quant(self.x[:, row, column], "int4"),
                )

    def test_straight_through(self):
        host = Host(WeightQuantizer("int2"))
        x = tf.constant(self.x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(host(x) * 3.0)
        np.testing.assert_allclose(
            tape.gradient(total, x), np.full_like(self.x, 3.0), rtol=1e-6
        )


class InputQuantizerTest(QuantizerContract, parameterized.TestCase):
    quantizer_class = InputQuantizer
    variants = ({}, {"range": "dynamic"}, {"momentum": 0.5})

    def _trained(self, values, **keywords):
        host = Host(InputQuantizer("int4", **keywords))
        for value in values:
            host(np.array([0.5 * value, -value], np.float32), training=True)
        return host

    def test_dynamic_equals_fake_quant(self):
        for name in _FORMATS:
            host = Host(InputQuantizer(name, range="dynamic"))
            for training in (False, True):
                np.testing.assert_array_equal(
                    host(self.x, training=training), fake_quant(self.x, name)
                )
            self.assertEmpty(host.weights)

    def test_untrained_range_is_the_tensors_own(self):
        host = Host(InputQuantizer("int4"))
        for factor in (1.0, 3.0):
            np.testing.assert_array_equal(
                host(factor * self.x), fake_quant(factor * self.x, "int4")
            )
        self.assertEqual(float(host.state["updates"]), 0.0)

    def test_first_batch_is_adopted_at_once(self):
        host = self._trained([6.0])
        self.assertEqual(float(host.state["range"]), 6.0)
        self.assertEqual(float(host.state["updates"]), 1.0)

    def test_range_is_the_mean_of_the_first_batches(self):
        host = self._trained([6.0, 2.0, 1.0, 3.0])
        self.assertAlmostEqual(float(host.state["range"]), 3.0, places=5)

    def test_range_is_exponential_later(self):
        # t / (t + 1) passes 0.5 at once: 4, then (4 + 8) / 2, (6 + 2) / 2.
        host = self._trained([4.0, 8.0, 2.0], momentum=0.5)
        self.assertAlmostEqual(float(host.state["range"]), 4.0, places=5)

    def test_range_converges(self):
        host = self._trained([100.0, *[2.0] * 40], momentum=0.5)
        self.assertAlmostEqual(float(host.state["range"]), 2.0, places=5)

    def test_inference_uses_the_range_and_clips(self):
        host = self._trained([7.0])
        x = np.array([1.4, 6.6, 9.0, -100.0, np.inf], np.float32)
        expected = [1.0, 7.0, 7.0, -7.0, 7.0]
        np.testing.assert_allclose(host(x), expected, rtol=1e-6)
        # One sample's result does not depend on its batch.
        np.testing.assert_array_equal(host(x)[:1], host(x[:1]))
        self.assertEqual(float(host.state["updates"]), 1.0)

    def test_no_gradient_where_it_clips(self):
        host = self._trained([7.0])
        x = tf.constant([1.4, 6.6, 7.0, 7.1, -8.0])
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(host(x) * tf.constant([1.0, 2, 3, 4, 5]))
        np.testing.assert_allclose(
            tape.gradient(total, x), [1.0, 2.0, 3.0, 0.0, 0.0], rtol=1e-6
        )

    def test_identity_is_the_option_after_the_last(self):
        for keywords in self.variants:
            host = Host(InputQuantizer(SPACE, **keywords))
            host(self.x, training=True)
            host.state["choice"].assign(len(SPACE))
            for training in (False, True):
                # Beyond the range, too.
                np.testing.assert_array_equal(
                    host(9 * self.x, training=training), 9 * self.x
                )

    def test_range_is_learned_while_the_input_is_left_alone(self):
        host = Host(InputQuantizer(SPACE))
        host(self.x)
        host.state["choice"].assign(len(SPACE))
        host(self.x, training=True)
        self.assertEqual(float(host.state["range"]), np.abs(self.x).max())

    def test_zero_batches_do_not_hurt(self):
        host = self._trained([0.0])
        np.testing.assert_array_equal(host(np.zeros(3, "float32")), np.zeros(3))
        self.assertTrue(np.isfinite(host(np.ones(3, "float32"))).all())

    @parameterized.parameters(
        {"range": "static"}, {"range": ""}, {"momentum": 1.0},
        {"momentum": -0.1}, {"momentum": float("nan")},
    )  # fmt: skip
    def test_bad_arguments(self, **keywords):
        with self.assertRaisesRegex(ValueError, "Received"):
            InputQuantizer("int4", **keywords)


if __name__ == "__main__":
    absltest.main()
