"""How far a model's outputs are from another's, without labels.

The Kullback-Leibler divergence of what the outputs stand for:

    KL(p || q) = sum_c p_c (log p_c - log q_c)

A single output, and each of several sigmoids, is the probability of yes or no
(the two `c`). Several of them are taken for independent: their divergences are
summed.
"""

import keras
import tensorflow as tf
from keras import ops

from fliqs_tf.output_activation import output_activation


def log_probabilities(
    model: keras.Model, x: tf.Tensor, is_logits: bool = True
) -> list[tf.Tensor]:
    """Logarithms of the probabilities that a model gives its inputs.

    Args:
        model: Model of any kind, called with `training=False`.
        x: Batch of its inputs.
        is_logits: Whether its outputs are logits, or else probabilities, as
            those of a sigmoid or softmax are in any case.

    Returns:
        For each output float32 `(..., variables, outcomes)`. Differentiable.
    """
    return [
        _log_probabilities(
            ops.cast(output, "float32"),
            output_activation(model, number),
            is_logits,
        )
        for number, output in enumerate(
            keras.tree.flatten(model(x, training=False))
        )
    ]


def divergence(log_p: tf.Tensor, log_q: tf.Tensor) -> tf.Tensor:
    """KL(p || q) in nat, summed over variables; float32 `()`, mean over rest.

    Args:
        log_p: One output's `log_probabilities`.
        log_q: Those of the other model.

    Returns:
        No less than about 0, if both are of probabilities. Differentiable.
    """
    terms = ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)
    return ops.mean(ops.sum(terms, axis=-1))


def _log_probabilities(outputs, activation, is_logits):
    is_sigmoid = activation is keras.activations.sigmoid
    if is_sigmoid or activation is keras.activations.softmax:
        is_logits = False
    if not is_sigmoid and outputs.shape[-1] > 1:
        outputs = ops.expand_dims(outputs, -2)
        if is_logits:
            return ops.log_softmax(outputs)
        return ops.log(outputs + keras.config.epsilon())
    if is_logits:
        return ops.log_sigmoid(ops.stack([outputs, -outputs], -1))
    both = ops.stack([outputs, 1.0 - outputs], -1)
    return ops.log(both + keras.config.epsilon())
