from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import baselines
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


if __name__ == "__main__":
    absltest.main()
