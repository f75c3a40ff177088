"""Differentiable search: a branch per format, mixed by a Gumbel softmax.

As DNAS (Wu et al., "Mixed Precision Quantization of ConvNets via
Differentiable Neural Architecture Search", 2018) and EdMIPS (Cai and
Vasconcelos, CVPR 2020): every layer computes all its formats, from one kernel
as in EdMIPS, and gives

    y = sum_k m_k layer_k(x),   m = softmax((logits + Gumbel noise) / T)

with a temperature `T` that falls by an exponential, as in DNAS. Weights and
logits learn together, from the loss plus `|E[C] / C_target - 1|` with the
expected cost under `softmax(logits)` (both papers have a weight of the cost to
tune by hand and no target), and `max(E[B] / B_target - 1, 0)` for every further
bound. Then the formats are chosen within the budget, and the model is trained
anew with the remaining steps.

Time and memory grow with the number of formats: that is the method's price.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from fliqs_tf.baselines.choice import Choice
from fliqs_tf.baselines.task import Result
from fliqs_tf.baselines.task import Task
from fliqs_tf.budget import USED
from fliqs_tf.model_copy import copy_with

# Of the run's epochs; the rest is for training anew.
_SEARCH_SHARE = 1 / 3
_TEMPERATURES = 5.0, 0.5
_LEARNING_RATE = 0.02
_PENALTY = 1.0


def run(task: Task) -> Result:
    """Searches by gradient descent, then trains the initial model anew.

    Raises:
        ValueError: If the task has no epochs.
    """
    if not task.epochs:
        raise ValueError(
            "Differentiable search learns its formats by training. Received: "
            "epochs=0. Give it at least 1, or use the method 'ptq', which "
            "needs none."
        )
    choice = task.choice()
    last = task.first_epochs(_SEARCH_SHARE)
    search = MixtureModel(
        choice, last * int(task.data.cardinality()), task.seed
    )
    task.fit(search, 0, last)
    found = choice.best(search.log_probabilities(), USED)
    assignment = choice.assignment(choice.budget.widened(found))
    return task.train(task.model, assignment, last)


class Mixture(keras.layers.Layer):
    """A layer at all its formats at once.

    Args:
        layer: Searchable layer with one decision, not built.
        seed: Seed of the noise.
    """

    def __init__(self, layer: keras.layers.Layer, seed: int = 0, **kwargs):
        super().__init__(name=layer.name, **kwargs)
        self.layer = layer
        self.count = len(layer.formats)
        # Not trainable: they have an optimizer of their own.
        self.logits, self.temperature = (
            self.add_weight(
                name=name,
                shape=shape,
                dtype="float32",
                initializer=value,
                trainable=False,
            )
            for name, shape, value in (
                ("logits", (self.count,), "zeros"),
                ("temperature", (), "ones"),
            )
        )
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        self.layer.build(input_shape)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def call(self, inputs, training=False, **kwargs):
        logits = ops.convert_to_tensor(self.logits)
        if training:
            uniform = keras.random.uniform(
                (self.count,), 1e-6, 1.0, seed=self.seed_generator
            )
            logits = (logits - ops.log(-ops.log(uniform))) / self.temperature
        shares = ops.softmax(logits)
        ((_, variables),) = self.layer.choices().values()
        total = 0.0
        for option in range(self.count):
            for variable in variables:
                variable.assign(option)
            outputs = self.layer(inputs, training=training, **kwargs)
            total += ops.cast(shares[option], outputs.dtype) * outputs
        return total


class MixtureModel(keras.Model):
    """A model of mixtures, trained with the logits of its mixtures.

    Args:
        choice: The searchable model and its budget; the model is not changed.
        steps: Steps in which the temperature falls.
        seed: Seed of the noise.
    """

    def __init__(self, choice: Choice, steps: int, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        budget = choice.budget
        self._cost_prices = _prices(choice, budget.terms) / budget.target
        self._bound_prices = [
            _prices(choice, bound.terms) / bound.target
            for bound in budget.bounds
        ]
        self._cooling_steps = steps
        self.model, self.mixtures = _mixed(choice, seed)
        self.step = self.add_weight(
            name="step", shape=(), initializer="zeros", trainable=False
        )
        self.built = True

    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        self.logit_optimizer = keras.optimizers.Adam(_LEARNING_RATE)
        self.logit_optimizer.build(self._logits())

    def call(self, inputs, training=False):
        return self.model(inputs, training=training)

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        share = ops.minimum(self.step / self._cooling_steps, 1.0)
        begin, end = _TEMPERATURES
        for mixture in self.mixtures:
            mixture.temperature.assign(begin * (end / begin) ** share)
        logits = self._logits()
        with tf.GradientTape() as tape:
            for variable in logits:
                tape.watch(variable.value)
            y_pred = self(x, training=True)
            loss = self.compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight
            )
            total = loss + _PENALTY * self.penalty()
        weights = self.trainable_variables
        gradients = tape.gradient(total, [v.value for v in [*weights, *logits]])
        self.optimizer.apply(gradients[: len(weights)], weights)
        self.logit_optimizer.apply(gradients[len(weights) :], logits)
        self.step.assign(self.step + 1)
        self._loss_tracker.update_state(loss, sample_weight=ops.shape(x)[0])
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def penalty(self):
        """How far the expected cost is from its target, and beyond bounds."""
        shares = ops.softmax(self._stacked())
        result = ops.abs(_expected(shares, self._cost_prices) - 1.0)
        for prices in self._bound_prices:
            excess = _expected(shares, prices) - 1.0
            result += ops.maximum(excess, 0.0)
        return result

    def log_probabilities(self) -> np.ndarray:
        """Log-probabilities of the options, `(decisions, options)`."""
        return ops.convert_to_numpy(ops.log_softmax(self._stacked()))

    def _stacked(self):
        return ops.stack([v.value for v in self._logits()])

    def _logits(self) -> Sequence:
        return [mixture.logits for mixture in self.mixtures]


def _prices(choice, terms):
    """Prices of options: float32 `(sums, decisions, options)`."""
    sums = 1 + max(term.group for term in terms)
    prices = np.zeros(
        (sums, len(choice.decisions), len(choice.options)), "float32"
    )
    for term in terms:
        # One decision a layer: weights and inputs have the same format.
        prices[term.group, term.weight] += np.diag(term.table)
    return prices


def _expected(shares, prices):
    """Expected cost: the largest of the sums' expectations."""
    return ops.max(ops.sum(shares * prices, axis=(1, 2)))


def _mixed(choice, seed):
    """Copies the model with mixtures; returns them by decision too."""
    numbers = {id(layer): n for n, layer in enumerate(choice.layers)}
    mixtures: dict[int, Mixture] = {}

    def mix(layer):
        number = numbers[id(layer)]
        copy = type(layer).from_config(layer.get_config())
        mixtures[number] = Mixture(copy, seed=seed + number)
        return mixtures[number]

    model = copy_with(choice.model, lambda layer: id(layer) in numbers, mix)
    return model, [mixtures[number] for number in range(len(mixtures))]
