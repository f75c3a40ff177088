import numpy as np
import tensorflow as tf
from absl.testing import absltest

from fliqs_tf.export.slots import Slots


class SlotsTest(absltest.TestCase):
    def test_value_outside_and_argument_inside(self):
        slots = Slots()
        first, second = slots.add(0.1), slots.add(np.ones(3))
        self.assertEqual(float(slots.tensor(first)), np.float32(0.1))
        with slots.bound([tf.constant(7.0), tf.zeros(3)]):
            self.assertEqual(float(slots.tensor(first)), 7.0)
        self.assertEqual(slots.tensor(second).numpy().tolist(), [1, 1, 1])

    def test_specs_are_named_like_values(self):
        slots = Slots()
        slots.add(2.0)
        slots.add(np.ones((1, 3)))
        specs = slots.specs()
        self.assertEqual([spec.name for spec in specs], [*slots.values()])
        self.assertEqual(specs[1].shape, (1, 3))


if __name__ == "__main__":
    absltest.main()
