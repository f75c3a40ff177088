"""What each method chooses, against what its paper says it should."""

import itertools

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import baselines
from fliqs_tf import costs
from fliqs_tf.baselines import evolutionary
from fliqs_tf.baselines import manual
from fliqs_tf.baselines import ptq
from fliqs_tf.baselines import random_choice
from fliqs_tf.baselines.choice import Choice
from tests.baselines import planted

_SPACE = ("int4", "int6", "int8")


def _choice(target, layers=5):
    """Layers of 64 weights each, but the last with 32."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            *[keras.layers.Dense(8, name=f"d{n}") for n in range(layers - 1)],
            keras.layers.Dense(4, name="last"),
        ]
    )
    cost = costs.get("bitops")
    return Choice(model, _SPACE, cost, costs.target(cost, model, target))


def _feasible(choice):
    """Every sample within the budget, by enumeration."""
    numbers = range(len(choice.options))
    return [
        np.array(sample)
        for sample in itertools.product(numbers, repeat=len(choice.decisions))
        if choice.fits(sample)
    ]


class ManualTest(absltest.TestCase):
    def test_ends_at_8_bits_and_the_rest_as_wide_as_fits(self):
        # In units of 16 bit operations: 4 x 64 + 32 = 288 at INT4. The ends
        # at INT8 take 3 x (64 + 32) = 288 more, and the three others at INT6
        # 1.25 x 192 = 240 more: 2.0 and 2.83 times INT4.
        for target, expected in (
            ("2.0xint4", [2, 0, 0, 0, 2]),
            ("2.8xint4", [2, 0, 0, 0, 2]),
            ("2.85xint4", [2, 1, 1, 1, 2]),
            ("4xint4", [2, 2, 2, 2, 2]),
        ):
            choice = _choice(target)
            self.assertEqual(manual.sample(choice).tolist(), expected)

    def test_target_that_does_not_even_pay_the_ends(self):
        with self.assertRaisesRegex(ValueError, "Received: a target of"):
            manual.sample(_choice("1.9xint4"))


class RandomTest(absltest.TestCase):
    def test_costs_lie_at_the_target_and_samples_differ(self):
        choice = _choice("1.8xint4", layers=8)
        rng = np.random.default_rng(0)
        samples = [random_choice.sample(choice, rng) for _ in range(20)]
        ratios = [choice.budget.of(s) / choice.budget.target for s in samples]
        self.assertBetween(min(ratios), random_choice.USED, 1 + 1e-9)
        self.assertLessEqual(max(ratios), 1 + 1e-9)
        self.assertGreater(len({tuple(s) for s in samples}), 10)


class PostTrainingTest(absltest.TestCase):
    def test_planted_sensitivities_give_the_known_optimum(self):
        choice = _choice("1.7xint4")
        rng = np.random.default_rng(0)
        for _ in range(5):
            # Narrower is worse.
            table = np.sort(rng.exponential(size=(5, 3)))[:, ::-1]
            best = min(
                _feasible(choice),
                key=lambda s, table=table: table[np.arange(5), s].sum(),
            )
            found = ptq.best_sample(choice, table)
            self.assertEqual(found.tolist(), best.tolist())

    def test_sensitivity_is_that_of_the_planted_layer(self):
        task, _ = planted.planted_task()
        robust, fine = ptq.sensitivities(task.model, task.data, task.choice())
        # Exact in all formats, up to float32.
        np.testing.assert_allclose(robust, 0.0, atol=1e-6)
        self.assertGreater(fine[0], 0.01)
        self.assertLess(fine[1], 0.01 * fine[0])

    def test_labels_are_not_looked_at(self):
        task, _ = planted.planted_task()
        unlabelled = task.data.map(lambda x, y: x)
        np.testing.assert_array_equal(
            ptq.sensitivities(task.model, task.data, task.choice()),
            ptq.sensitivities(task.model, unlabelled, task.choice()),
        )

    def test_trained_model_without_epochs_is_not_trained(self):
        task, trained = planted.planted_task(epochs=0)
        result = baselines.get("ptq")(task)
        self.assertEmpty(trained)
        self.assertEqual(dict(result.assignment), planted.BEST)
        kernel = result.model.get_layer("fine").kernel
        expected = task.model.get_layer("fine").kernel
        self.assertEqual(kernel.numpy().tolist(), expected.numpy().tolist())


class EvolutionTest(absltest.TestCase):
    def test_finds_the_best_sample_of_a_planted_loss(self):
        choice = _choice("1.7xint4")
        rng = np.random.default_rng(0)
        table = np.sort(rng.exponential(size=(5, 3)))[:, ::-1]

        def loss(sample):
            self.assertTrue(choice.fits(sample))
            return table[np.arange(5), sample].sum()

        found = evolutionary.evolve(choice, loss, rng)
        best = min(loss(sample) for sample in _feasible(choice))
        self.assertAlmostEqual(loss(found), best)

    def test_shared_loss_has_statistics_of_its_own(self):
        model = keras.Sequential(
            [
                keras.Input((planted.SIZE,)),
                keras.layers.Dense(8, name="d"),
                keras.layers.BatchNormalization(name="norm"),
            ]
        )
        task, _ = planted.planted_task()
        choice = Choice(model, planted.SPACE, costs.get("bitops"), None)
        norm = choice.model.get_layer("norm")
        norm.moving_mean.assign(norm.moving_mean + 100.0)
        loss = evolutionary.shared_loss(choice, task.data, task.loss)
        first = loss([0])
        self.assertLess(abs(float(norm.moving_mean[0])), 10.0)
        self.assertEqual(norm.momentum, 0.99)
        self.assertNotEqual(loss([1]), first)
        self.assertAlmostEqual(loss([0]), first, places=5)


class PlantedLayerTest(parameterized.TestCase):
    @parameterized.product(
        method=["differentiable", "evolutionary"], seed=[0, 1, 2]
    )
    def test_finds_the_layer_that_needs_8_bits(self, method, seed):
        epochs = {"differentiable": 24, "evolutionary": 2}[method]
        task, _ = planted.planted_task(epochs, seed=seed)
        result = baselines.get(method)(task)
        self.assertEqual(dict(result.assignment), planted.BEST)


if __name__ == "__main__":
    absltest.main()
