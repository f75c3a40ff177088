"""What each method chooses, against what its paper says it should."""

import dataclasses
import itertools
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf import baselines
from fliqs_tf import costs
from fliqs_tf.baselines import differentiable
from fliqs_tf.baselines import evolutionary
from fliqs_tf.baselines import manual
from fliqs_tf.baselines import ptq
from fliqs_tf.baselines import random_choice
from fliqs_tf.baselines.choice import Choice
from fliqs_tf.budget import USED
from tests import any_models
from tests.baselines import planted

_SPACE = ("int4", "int6", "int8")


def _choice(target, layers=5, bounds=None, input_formats="tied"):
    """Layers of 64 weights each, but the last with 32."""
    model = keras.Sequential(
        [
            keras.Input((8,)),
            *[keras.layers.Dense(8, name=f"d{n}") for n in range(layers - 1)],
            keras.layers.Dense(4, name="last"),
        ]
    )
    cost = costs.get("bitops")
    target = costs.target(cost, model, target)
    return Choice(
        model,
        _SPACE,
        cost,
        target,
        bounds=bounds or {},
        input_formats=input_formats,
    )


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

    def test_ends_are_layers_where_inputs_have_their_own_decisions(self):
        choice = _choice("2.0xint4", input_formats="apart")
        # Weights and inputs of the first and of the last layer.
        expected = [2, 2, 0, 0, 0, 0, 0, 0, 2, 2]
        self.assertEqual(manual.sample(choice).tolist(), expected)

    def test_target_that_does_not_even_pay_the_ends(self):
        with self.assertRaisesRegex(
            ValueError,
            "Received: with the narrowest format, bitops .* of .* allowed",
        ):
            manual.sample(_choice("1.9xint4"))

    def test_bound_narrows_the_rest(self):
        # In bytes: 4 bits a weight are 32 a layer and 16 for the last, 8 bits
        # twice, 6 bits half as much again; scales and biases are 4 bytes each
        # for 8 and 4 channels, 64 and 32 a layer. So the ends at INT8 and the
        # rest at INT4 take 64 + 3 x 32 + 32 + 4 x 64 + 32 = 480 bytes, with
        # the rest at INT6 528.
        for size, expected in ((480, [2, 0, 0, 0, 2]), (528, [2, 1, 1, 1, 2])):
            choice = _choice("4xint4", bounds={"size": size / 2**20})
            self.assertEqual(manual.sample(choice).tolist(), expected)
        choice = _choice("4xint4", bounds={"size": 479 / 2**20})
        with self.assertRaisesRegex(
            ValueError, "format, size 0.000457764 MiB, of 0.000456.* allowed"
        ):
            manual.sample(choice)


class RandomTest(absltest.TestCase):
    def test_costs_lie_at_the_target_and_samples_differ(self):
        choice = _choice("1.8xint4", layers=8)
        rng = np.random.default_rng(0)
        samples = [random_choice.sample(choice, rng) for _ in range(20)]
        ratios = [choice.budget.of(s) / choice.budget.target for s in samples]
        self.assertBetween(min(ratios), USED, 1 + 1e-9)
        self.assertLessEqual(max(ratios), 1 + 1e-9)
        self.assertGreater(len({tuple(s) for s in samples}), 10)

    def test_bounds_are_kept_and_what_they_leave_is_used(self):
        bounds = {"size": "1.1xint4", "memory": "1.7xint4"}
        choice = _choice("3xint4", layers=8, bounds=bounds)
        self.assertLess(choice.budget.highest, 0.98 * choice.budget.target)
        rng = np.random.default_rng(0)
        samples = [random_choice.sample(choice, rng) for _ in range(20)]
        for sample in samples:
            assignment = choice.assignment(sample)
            for bound in choice.budget.bounds:
                cost = bound.cost(choice.model, assignment)
                self.assertLessEqual(cost, bound.target * (1 + 1e-9))
            ratio = choice.budget.of(sample) / choice.budget.highest
            self.assertBetween(ratio, USED, 1 + 1e-9)
        self.assertGreater(len({tuple(s) for s in samples}), 10)


class PostTrainingTest(parameterized.TestCase):
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

    def test_optimum_within_bounds(self):
        choice = _choice("3xint4", bounds={"size": "1.2xint4"})
        size = choice.budget.bounds[0]
        rng = np.random.default_rng(1)
        # What fits, by the cost itself.
        samples = [
            s
            for s in map(np.array, itertools.product(range(3), repeat=5))
            if size.cost(choice.model, choice.assignment(s)) <= size.target
            and choice.budget.of(s) <= choice.budget.target
        ]
        self.assertBetween(len(samples), 10, 3**5 - 10)
        for _ in range(5):
            table = np.sort(rng.exponential(size=(5, 3)))[:, ::-1]
            best = min(
                samples,
                key=lambda s, table=table: table[np.arange(5), s].sum(),
            )
            found = ptq.best_sample(choice, table)
            self.assertEqual(found.tolist(), best.tolist())

    def test_optimum_over_weights_and_inputs(self):
        # The cost of a layer is a product of its two decisions.
        choice = _choice("1.4xint4", layers=3, input_formats="apart")
        rng = np.random.default_rng(2)
        for _ in range(5):
            table = np.sort(rng.exponential(size=(6, 3)))[:, ::-1]
            best = min(
                _feasible(choice),
                key=lambda s, table=table: table[np.arange(6), s].sum(),
            )
            found = ptq.best_sample(choice, table)
            self.assertEqual(found.tolist(), best.tolist())
            entry = choice.assignment(found).formats("d1")
            self.assertEqual(entry, (_SPACE[found[2]], _SPACE[found[3]]))

    def test_sensitivities_of_weights_and_of_inputs(self):
        task, _ = planted.planted_task(input_formats="apart")
        arguments = task.model, task.data, task.space
        apart = ptq.sensitivities(*arguments, input_formats="apart")
        tied = ptq.sensitivities(*arguments)
        self.assertEqual(apart.shape, (4, 2))
        np.testing.assert_allclose(apart[:2], 0.0, atol=1e-6)
        weights, inputs = apart[2:, 0]
        self.assertGreater(min(weights, inputs), 0.001)
        self.assertLess(max(weights, inputs), tied[1, 0])
        self.assertEqual(
            dict(baselines.get("ptq")(task).assignment), planted.BEST
        )

    def test_rounded_weights_count_less_if_training_goes_on(self):
        task, _ = planted.planted_task()
        for input_formats, shares in (
            ("apart", [[0.3], [1.0], [0.3], [1.0]]),
            # Both at once cannot be told apart.
            ("tied", [[1.0], [1.0]]),
        ):
            as_it_is, before_training = (
                ptq.sensitivities(
                    task.model,
                    task.data,
                    task.space,
                    input_formats=input_formats,
                    is_fine_tuned=is_fine_tuned,
                )
                for is_fine_tuned in (False, True)
            )
            np.testing.assert_allclose(
                before_training, np.array(shares) * as_it_is
            )

    @parameterized.parameters(0, 4)
    def test_only_a_model_that_is_fine_tuned_is_judged_so(self, epochs):
        task, _ = planted.planted_task(epochs=epochs, input_formats="apart")
        with mock.patch.object(
            ptq, "sensitivities", wraps=ptq.sensitivities
        ) as measured:
            baselines.get("ptq")(task)
        self.assertEqual(measured.call_args.kwargs["is_fine_tuned"], epochs > 0)

    def test_sensitivity_is_that_of_the_planted_layer(self):
        task, _ = planted.planted_task()
        with self.assertNoLogs("absl", "WARNING"):
            robust, fine = ptq.sensitivities(task.model, task.data, task.space)
        # Exact in all formats, up to float32.
        np.testing.assert_allclose(robust, 0.0, atol=1e-6)
        self.assertGreater(fine[0], 0.01)
        self.assertLess(fine[1], 0.01 * fine[0])

    def test_sensitivity_is_that_of_the_grids_of_the_run(self):
        # Inputs are +-1: exact on a symmetric grid, cut off on an unsigned one.
        task, _ = planted.planted_task(input_signedness="unsigned")
        robust, _ = ptq.sensitivities(
            task.model,
            task.data,
            task.space,
            input_signedness=task.input_signedness,
        )
        self.assertGreater(robust.min(), 0.01)

    @parameterized.product(
        columns=[1, 3], activation=["sigmoid", None, "layer"]
    )
    def test_outputs_of_yes_or_no(self, columns, activation):
        head = keras.layers.Dense(
            columns, None if activation == "layer" else activation, name="head"
        )
        model = keras.Sequential([keras.Input((planted.SIZE,)), head])
        if activation == "layer":
            model.add(keras.layers.Activation("sigmoid"))
        rng = np.random.default_rng(3)
        kernel = rng.normal(size=(planted.SIZE, columns))
        head.set_weights([kernel, np.full(columns, 0.5)])
        x = rng.choice([-1.0, 1.0], (64, planted.SIZE)).astype("float32")
        data = tf.data.Dataset.from_tensor_slices(x).batch(16)
        (found,) = ptq.sensitivities(model, data, ("int2", "int8"))

        def logits(fmt):
            codes = fliqs.fake_quant(kernel.astype("float32"), fmt, axis=-1)
            return x @ np.asarray(codes, "float64") + 0.5

        def probabilities(z):
            if columns > 1 and activation is None:
                p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
                return p[:, None, :]
            p = 1 / (1 + np.exp(-z))
            return np.stack([p, 1 - p], -1)

        p = probabilities(logits("fp32"))
        for number, fmt in enumerate(("int2", "int8")):
            q = probabilities(logits(fmt))
            expected = (p * np.log(p / q)).sum((1, 2)).mean()
            self.assertGreater(expected, 1e-6)
            np.testing.assert_allclose(found[number], expected, 2e-2, 1e-6)

    def test_outputs_that_are_no_probabilities(self):
        task, _ = planted.planted_task()
        with self.assertRaisesRegex(ValueError, "Received: a mean divergence"):
            ptq.sensitivities(
                task.model, task.data, task.space, is_logits=False
            )

    def test_labels_are_not_looked_at(self):
        task, _ = planted.planted_task()
        unlabelled = task.data.map(lambda x, y: x)
        np.testing.assert_array_equal(
            ptq.sensitivities(task.model, task.data, task.space),
            ptq.sensitivities(task.model, unlabelled, task.space),
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

    def test_children_keep_the_bounds(self):
        choice = _choice("3xint4", bounds={"size": "1.2xint4"})
        size = choice.budget.bounds[0]
        rng = np.random.default_rng(0)

        def loss(sample):
            assignment = choice.assignment(sample)
            self.assertLessEqual(
                size.cost(choice.model, assignment), size.target * (1 + 1e-9)
            )
            return -float(np.sum(sample))

        evolutionary.evolve(choice, loss, rng)


class DifferentiableTest(parameterized.TestCase):
    def test_refuses_to_learn_in_no_epochs(self):
        task, trained = planted.planted_task(epochs=0)
        with self.assertRaisesRegex(ValueError, "Received: epochs=0"):
            baselines.get("differentiable")(task)
        self.assertEmpty(trained)

    @parameterized.parameters(any_models.recurrent, any_models.attention)
    def test_mixture_of_one_is_the_model(self, make):
        model = make()
        choice = Choice(model, ("fp32",), costs.get("bitops"), None)
        mixture = differentiable.MixtureModel(choice, 1)
        x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:]))
        np.testing.assert_array_equal(mixture(x), model(x))

    def test_penalty_is_the_expectation_over_all_samples(self):
        bounds = {"size": "1.1xint4", "memory": "1.3xint4"}
        choice = _choice("1.7xint4", bounds=bounds)
        model = differentiable.MixtureModel(choice, 1)
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(5, 3))
        for mixture, row in zip(model.mixtures, logits, strict=True):
            mixture.logits.assign(row)
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        samples = list(itertools.product(range(3), repeat=5))
        weights = [shares[np.arange(5), s].prod() for s in samples]
        self.assertAlmostEqual(sum(weights), 1.0)

        def expected(cost):
            values = [cost(choice.model, choice.assignment(s)) for s in samples]
            return np.dot(weights, values)

        budget = choice.budget
        penalty = abs(expected(budget.cost) / budget.target - 1)
        size, memory = budget.bounds
        excess = expected(size.cost) / size.target - 1
        self.assertGreater(excess, 0.0)
        # Of the memory the largest of the expected sums, by hand: inputs of
        # 8 elements that a layer reads, and 8 outputs for the next one; the
        # logits are float32.
        widths = shares @ [4, 6, 8]
        sums = [8 * (one + other) for one, other in itertools.pairwise(widths)]
        sums.append(8 * widths[-1] + 4 * 32)
        peak = max(sums) / 8 / 1024
        penalty += excess + max(peak / memory.target - 1, 0.0)
        self.assertAlmostEqual(float(model.penalty()), penalty, places=5)


class PlantedLayerTest(parameterized.TestCase):
    @parameterized.product(
        method=["differentiable", "evolutionary"], seed=[0, 1, 2]
    )
    @pytest.mark.one_in(2)
    def test_finds_the_layer_that_needs_8_bits(self, method, seed):
        epochs = {"differentiable": 24, "evolutionary": 2}[method]
        task, _ = planted.planted_task(epochs, seed=seed)
        result = baselines.get(method)(task)
        self.assertEqual(dict(result.assignment), planted.BEST)

    @parameterized.parameters("ptq", "differentiable", "evolutionary")
    @pytest.mark.one_in(3)
    def test_finds_it_when_only_a_bound_keeps_the_other_from_it(self, method):
        epochs = {"ptq": 0, "differentiable": 24, "evolutionary": 2}[method]
        task, _ = planted.planted_task(epochs)
        task = dataclasses.replace(
            task,
            target=task.cost(task.model, "int8"),
            bounds={"size": costs.get("size")(task.model, planted.BEST)},
        )
        result = baselines.get(method)(task)
        self.assertEqual(dict(result.assignment), planted.BEST)


if __name__ == "__main__":
    absltest.main()
