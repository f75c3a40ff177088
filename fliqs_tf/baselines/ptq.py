"""Post-training search: sensitivity of each layer, then an integer program.

As HAWQ-V3 (Yao et al., ICML 2021): a number says what a format does to a layer
of a trained model (or to its weights, and to its inputs), all numbers are
summed, and an integer program finds the least sum within the budget. The number
here is the divergence KL(p || q) of the model's output with one of them
quantized, `q`, from the float model's, `p` (`baselines/divergence.py`): it
needs no labels, and has no gradient or Hessian to estimate.
"""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from fliqs_tf import costs
from fliqs_tf.baselines import divergence
from fliqs_tf.baselines.choice import Choice
from fliqs_tf.baselines.task import Result
from fliqs_tf.baselines.task import Task
from fliqs_tf.layers import calibration
from fliqs_tf.recalibrate import recalibrate
from fliqs_tf.space import TIED

# Of the run's epochs; the rest is for fine-tuning.
_TRAINING_SHARE = 0.5
# Of the run's learning rate, which has trained the float model. A model that
# was trained before gets all of it, as it does under every other method.
_FINE_TUNING_RATE = 0.3
# For statistics of batch norms and inputs.
_BATCHES = 4
# For sensitivities; `benchmarks/sensitivities.py` compares numbers.
_SAMPLES = 128
# Of what rounded weights do to a trained model, if training goes on under them.
# Chosen from 1, 0.3 and 0.1 by training, see `docs/results/recovery`, and
# `benchmarks/recovery.py` for the reason.
_LEFT_OF_WEIGHTS = 0.3
_FLOAT = "fp32"
# What rounding may take from a divergence of nothing.
_ROUNDING = 1e-3


def run(task: Task) -> Result:
    """Trains a float model, finds formats for it, and fine-tunes.

    A trained model is not trained first. Without epochs for fine-tuning it
    gets its formats, and statistics of batch norms and inputs under them.
    """
    model, first = task.model, 0
    if not task.is_trained:
        first = task.first_epochs(_TRAINING_SHARE)
        model = keras.models.clone_model(task.model)
        model.set_weights(task.model.get_weights())
        task.fit(model, 0, first)
    choice = task.choice(model)
    found = best_sample(
        choice,
        sensitivities(
            model,
            task.data,
            task.space,
            task.input_range,
            task.input_signedness,
            is_logits=getattr(task.loss, "from_logits", True),
            input_formats=task.input_formats,
            is_fine_tuned=first < task.epochs,
        ),
    )
    assignment = choice.assignment(found)
    if first == task.epochs:
        model = task.fixed(model, assignment)
        _calibrate(model, task.data)
        return Result(model, assignment)
    rate = _FINE_TUNING_RATE if first else 1.0
    return task.train(model, assignment, first, rate)


def best_sample(choice: Choice, sensitivity: np.ndarray) -> np.ndarray:
    """The sample within the budget with the least sum of sensitivities."""
    return choice.best(-sensitivity)


def sensitivities(
    model: keras.Model,
    data: tf.data.Dataset,
    space: Sequence[str],
    input_range: str = "ema",
    input_signedness: str = "symmetric",
    is_logits: bool = True,
    input_formats: str = TIED,
    is_fine_tuned: bool = False,
) -> np.ndarray:
    """What each option of each decision, alone, does to a model's output.

    Args:
        model: Trained plain model.
        data: Batches `x` or `(x, ...)`, of which the first 128 samples are
            looked at, without their labels.
        space: Formats of every layer.
        input_range: See `to_searchable`.
        input_signedness: See there.
        is_logits: Whether the outputs are logits, or else probabilities, as
            those of a sigmoid or softmax are in any case. A single value is
            taken for one of yes or no: a regression, which cannot be told from
            it, is judged by the sigmoid of its value.
        input_formats: See `Choice`, whose decisions these are.
        is_fine_tuned: Whether the model will be trained under its formats.
            Weights can then move to where their rounding does less, as in Nagel
            et al., "Up or Down? Adaptive Rounding for Post-Training
            Quantization", ICML 2020; inputs much less. A decision on weights
            alone counts 0.3 of its divergence, a share chosen by experiment.

    Returns:
        Mean divergence, float64 `(decisions, options)`.

    Raises:
        ValueError: If the outputs are no probabilities and `is_logits` is
            `False`, or if there are no samples.
    """
    inputs_only = data.map(lambda inputs, *_: inputs)
    batches = inputs_only.unbatch().batch(_SAMPLES).take(1)
    inputs = next(iter(batches), None)
    if inputs is None:
        raise ValueError(
            "Sensitivities are measured on samples. Received: an empty data "
            "set. Give at least one batch, `x` or `(x, ...)`."
        )
    probe = Choice(
        model,
        (*space, *({_FLOAT} - set(space))),
        costs.get("bitops"),
        None,
        input_range,
        input_signedness,
        input_formats=input_formats,
    )
    untouched = probe.options.index(_FLOAT)
    # What it is to look at would calibrate it.
    calibration.allow_uncalibrated(probe.model)

    @tf.function(reduce_retracing=True)
    def log_probabilities(x):
        return divergence.log_probabilities(probe.model, x, is_logits)

    sample = np.full(len(probe.decisions), untouched)
    probe.set(sample)
    reference = log_probabilities(inputs)
    result = np.zeros((len(probe.decisions), len(space)))
    for decision, option in np.ndindex(*result.shape):
        changed = sample.copy()
        changed[decision] = option
        probe.set(changed)
        result[decision, option] = sum(
            map(_divergence, reference, log_probabilities(inputs))
        )
    if is_fine_tuned:
        is_weight = [d.kind == "weight_format" for d in probe.decisions]
        result[is_weight] *= _LEFT_OF_WEIGHTS
    return result


def _divergence(log_p, log_q):
    value = float(divergence.divergence(log_p, log_q))
    # Not `<`, which NaN passes.
    if not value >= -_ROUNDING:
        raise ValueError(
            "Outputs must be logits, or probabilities that sum to 1 (of a "
            "sigmoid: each in [0, 1]). Received: a mean divergence of "
            f"{value:.4g}, which is none. Give `is_logits` as the model's "
            "last layer has it, and look for NaN in its outputs."
        )
    return max(value, 0.0)


def _calibrate(model, data):
    recalibrate(model, data)
    # For models without batch norm: running ranges of inputs.
    for batch in data.take(_BATCHES):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        model(x, training=True)
