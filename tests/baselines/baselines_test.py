from unittest import mock

import keras
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
        (lambda p, q: {"p": p, "q": q}, "2 outputs, p, q"),
        (lambda p, q: [p, q], "2 outputs, 0, 1"),
    )
    def test_several_outputs(self, structure, message):
        inputs = keras.Input((3,))
        outputs = [keras.layers.Dense(size)(inputs) for size in (2, 3)]
        model = keras.Model(inputs, structure(*outputs))
        data = tf.data.Dataset.from_tensors(tf.ones((4, 3)))
        with self.assertRaisesRegex(ValueError, f"Received: {message}. Choose"):
            ptq.sensitivities(model, data, ("int4", "int8"))

    def test_no_samples(self):
        task, _ = planted.planted_task()
        with self.assertRaisesRegex(ValueError, "Received: an empty data set"):
            ptq.sensitivities(task.model, task.data.take(0), task.space)


if __name__ == "__main__":
    absltest.main()
