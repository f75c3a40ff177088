from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import baselines
from fliqs_tf.baselines import evolutionary
from fliqs_tf.baselines import ptq
from tests.baselines import planted


class BaselinesTest(parameterized.TestCase):
    @parameterized.parameters("magic", "", "uniform", "fliqs")
    def test_unknown_method(self, name):
        with self.assertRaisesRegex(ValueError, f"method={name!r}"):
            baselines.get(name)

    def test_unknown_uniform_format(self):
        with self.assertRaisesRegex(ValueError, "int1"):
            baselines.get("uniform:int1")

    def test_only_uniform_precision_has_no_target(self):
        self.assertFalse(baselines.is_bounded("uniform:int4"))
        self.assertTrue(baselines.is_bounded("manual"))

    @parameterized.parameters(
        ("uniform:int4", False),
        ("random", False),
        ("ptq", False),
        ("ptq", True),
        ("differentiable", False),
        ("evolutionary", False),
    )
    def test_trains_every_epoch_once_and_keeps_the_budget(
        self, name, is_trained
    ):
        task, trained = planted.planted_task(3, is_trained)
        weights = task.model.get_weights()
        result = baselines.get(name)(task)
        self.assertEqual(trained, [0, 1, 2])
        cost = task.cost(result.model, result.assignment)
        self.assertLessEqual(cost, task.target * (1 + 1e-9))
        for before, after in zip(
            weights, task.model.get_weights(), strict=True
        ):
            self.assertEqual(before.tolist(), after.tolist())

    @parameterized.parameters(
        (ptq, "sensitivities"), (evolutionary, "shared_loss")
    )
    def test_weights_are_trained_before_they_are_judged(self, module, name):
        """With one epoch, of which half is none when rounded."""
        task, trained = planted.planted_task(1, is_trained=False)
        judge = getattr(module, name)
        seen = []

        def judged(*args, **kwargs):
            seen.extend(trained)
            return judge(*args, **kwargs)

        with mock.patch.object(module, name, judged):
            module.run(task)
        self.assertEqual(seen, [0])
        self.assertEqual(trained, [0])


class SensitivitiesTest(parameterized.TestCase):
    @parameterized.parameters(
        # Keras sorts outputs by their names, and with them the layers.
        (lambda p, q: {"second": p, "first": q}, 2, 1),
        (lambda p, q: [p, q], 1, 2),
    )
    def test_several_outputs(self, structure, row_p, row_q):
        inputs = keras.Input((3,))
        x = keras.layers.Dense(4)(inputs)
        p = keras.layers.Dense(5, activation="softmax")(x)
        q = keras.layers.Dense(2)(x)
        found, of_p, of_q = (
            ptq.sensitivities(
                keras.Model(inputs, outputs),
                tf.data.Dataset.from_tensors(tf.linspace([-1.0] * 3, 2.0, 8)),
                ("int2", "int4"),
            )
            for outputs in (structure(p, q), p, q)
        )
        self.assertGreater(of_p.min(), 1e-6)
        self.assertGreater(of_q.min(), 1e-6)
        np.testing.assert_allclose(found[0], of_p[0] + of_q[0], 1e-4)
        np.testing.assert_allclose(found[row_p], of_p[1], 1e-4)
        np.testing.assert_allclose(found[row_q], of_q[1], 1e-4)

    def test_a_softmax_is_known(self):
        inputs = keras.Input((3,))
        logits = keras.layers.Dense(5)(inputs)
        by_logits, by_softmax = (
            ptq.sensitivities(
                keras.Model(inputs, outputs),
                tf.data.Dataset.from_tensors(tf.linspace([-1.0] * 3, 2.0, 8)),
                ("int2", "int4"),
            )
            for outputs in (logits, keras.layers.Softmax()(logits))
        )
        self.assertGreater(by_logits.min(), 1e-5)
        np.testing.assert_allclose(by_softmax, by_logits, 1e-3)

    def test_no_samples(self):
        task, _ = planted.planted_task()
        with self.assertRaisesRegex(ValueError, "Received: an empty data set"):
            ptq.sensitivities(task.model, task.data.take(0), task.space)


if __name__ == "__main__":
    absltest.main()
