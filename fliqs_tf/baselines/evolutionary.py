"""Evolutionary search on shared weights.

As SPOS (Guo et al., "Single Path One-Shot Neural Architecture Search with
Uniform Sampling", ECCV 2020): weights are trained under uniformly sampled
formats, then assignments are bred by their loss under the shared weights, each
with batch-norm statistics of its own, within the budget. Then the best one is
fine-tuned.
"""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from fliqs_tf.baselines import random_choice
from fliqs_tf.baselines.choice import Choice
from fliqs_tf.baselines.task import Result
from fliqs_tf.baselines.task import Task
from fliqs_tf.controller import Controller
from fliqs_tf.convert import to_fixed
from fliqs_tf.recalibrate import recalibrate
from fliqs_tf.search_model import SearchModel

# Of the run's epochs, for the shared weights; the rest is for fine-tuning.
_SHARED_SHARE = 0.5
# Of the run's learning rate.
_FINE_TUNING_RATE = 0.3
_POPULATION = 24
_GENERATIONS = 10
_PARENTS = 8
# Probability that a child's layer gets a random format.
_MUTATION = 0.2
# Batches for statistics, and as many others for the loss.
_BATCHES = 4


def run(task: Task) -> Result:
    """Trains shared weights, evolves an assignment, and fine-tunes it."""
    choice = task.choice()
    first = task.first_epochs(_SHARED_SHARE)
    # A search whose controller does not learn samples uniformly.
    supernet = SearchModel(choice.model, cost=task.cost, seed=task.seed)
    task.fit(
        supernet,
        0,
        first,
        controller=Controller(warmup=0.9999, freeze=1.0),
        jit_compile=None,
    )
    loss = shared_loss(choice, task.data, task.loss)
    found = evolve(choice, loss, np.random.default_rng(task.seed))
    assignment = choice.assignment(choice.budget.widened(found))
    fixed = to_fixed(choice.model, assignment)
    recalibrate(fixed, task.data)
    return task.train(fixed, assignment, first, _FINE_TUNING_RATE)


def shared_loss(choice: Choice, data: tf.data.Dataset, loss):
    """Returns `sample -> loss` under the weights that the model has now.

    Args:
        choice: The model; its formats and batch-norm statistics are changed.
        data: Batches `(x, y)`.
        loss: Loss of the model.
    """
    batches = list(data.take(2 * _BATCHES))
    if not batches:
        raise ValueError(
            "Shared weights are judged on batches. Received: an empty data set."
        )
    half = max(1, len(batches) // 2)
    x_statistics = tf.concat([x for x, _ in batches[:half]], 0)
    x = tf.concat([x for x, _ in batches[-half:]], 0)
    y = tf.concat([y for _, y in batches[-half:]], 0)

    @tf.function
    def evaluate():
        choice.model(x_statistics, training=True)
        return loss(y, choice.model(x, training=False))

    # As it is traced: statistics are those of the last batch seen.
    with _without_momentum(choice.model):
        evaluate()

    def of(sample):
        choice.set(sample)
        return float(evaluate())

    return of


def evolve(choice: Choice, loss, rng: np.random.Generator) -> np.ndarray:
    """Breeds the sample of least loss within the budget.

    Half the children of a generation mix two of the best samples so far, half
    are changed at random; one beyond the budget becomes the nearest within.

    Args:
        choice: Decisions and budget.
        loss: `sample -> loss`.
        rng: Source of randomness.

    Returns:
        int32 `(decisions,)`, the best of all samples that were judged.
    """
    seen: dict[tuple, float] = {}

    def judge(sample):
        key = tuple(int(option) for option in sample)
        if key not in seen:
            seen[key] = loss(sample)

    for _ in range(_POPULATION):
        judge(random_choice.sample(choice, rng))
    for _ in range(_GENERATIONS):
        parents = np.array(sorted(seen, key=lambda key: seen[key])[:_PARENTS])
        for number in range(_POPULATION):
            one, other = parents[rng.integers(len(parents), size=2)]
            if number % 2:
                change = rng.random(len(one)) < _MUTATION
                other = rng.integers(len(choice.options), size=len(one))
            else:
                change = rng.random(len(one)) < 0.5
            judge(_nearest(choice, np.where(change, other, one), rng))
    return np.array(min(seen, key=lambda key: seen[key]), np.int32)


def _nearest(choice, sample, rng):
    """The sample itself, or one within the budget that shares most with it."""
    if choice.fits(sample):
        return sample
    scores = np.eye(len(choice.options))[sample]
    # Between equals, chance decides.
    return choice.best(scores + 0.1 * rng.random(scores.shape))


@contextlib.contextmanager
def _without_momentum(model):
    layers = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
