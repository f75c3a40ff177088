"""Knowledge distillation: a model learns from a teacher besides the labels."""

import types
from typing import Any

import keras
from keras import ops

from fliqs_tf.layers.base import graph_of

TEMPERATURE = 4.0
WEIGHT = 0.9


def distill(
    model: keras.Model,
    teacher: keras.Model,
    temperature: float = TEMPERATURE,
    weight: float = WEIGHT,
) -> None:
    """Makes a model learn from a teacher in its next `fit`.

    With logits `s` of the model, `t` of the teacher and temperature `T`
    (Hinton, Vinyals and Dean, 2015, section 2), the loss of training becomes

        (1 - weight) * loss + weight * T^2 * KL(softmax(t / T), softmax(s / T))

    Nothing else changes: evaluation and metrics are the model's own, and what
    is saved knows no teacher. It works for every model that trains by
    `compute_loss`, as Keras's and `fliqs.SearchModel` do.

    Example:

        fliqs.distill(search, float_model)
        search.compile(...)
        search.fit(...)

    Args:
        model: Model whose one output are logits; changed in place.
        teacher: Trained model with the same inputs and as many logits.
        temperature: Softens both distributions; 1 leaves them as they are.
        weight: Of the teacher against the labels, in [0, 1].

    Raises:
        ValueError: If an argument is out of range, or the teacher has other
            outputs than the model.
    """
    if not temperature > 0.0 or not 0.0 <= weight <= 1.0:
        raise ValueError(
            "`temperature` must be positive and `weight` in [0, 1]. Received: "
            f"temperature={temperature}, weight={weight}."
        )
    graphs = (
        graph_of(getattr(model, "searchable_model", model)),
        graph_of(teacher),
    )
    if None not in graphs:
        _check_outputs(*(graph.outputs for graph in graphs))
    own_loss = type(model).compute_loss
    divergence = keras.losses.KLDivergence()

    def compute_loss(
        self,
        x=None,
        y=None,
        y_pred=None,
        sample_weight=None,
        training=True,
    ):
        loss = own_loss(self, x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        taught = teacher(x, training=False)
        # What has no graph is known now.
        _check_outputs(keras.tree.flatten(y_pred), keras.tree.flatten(taught))
        # KLDivergence averages, weighs and, over replicas, scales like a loss.
        other = divergence(
            _soften(taught, temperature),
            _soften(y_pred, temperature),
            sample_weight,
        )
        return (1.0 - weight) * loss + weight * temperature**2 * other

    model.compute_loss = types.MethodType(compute_loss, model)


def _check_outputs(own, taught):
    shapes = [
        [tuple(x.shape)[1:] for x in outputs] for outputs in (own, taught)
    ]
    if shapes[0] != shapes[1] or len(shapes[0]) != 1:
        raise ValueError(
            "The teacher must have one output, of the model's shape. Received: "
            f"{shapes[1]} of the teacher, {shapes[0]} of the model, without "
            "the batch. Train one with as many classes."
        )


def _soften(logits, temperature) -> Any:
    return ops.softmax(ops.cast(logits, "float32") / temperature)
