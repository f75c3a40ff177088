"""Batch-norm statistics of a model as it is now."""

import keras
import numpy as np
import tensorflow as tf

MAX_BATCHES = 50


def recalibrate(
    model: keras.Model, data: tf.data.Dataset, steps: int = MAX_BATCHES
) -> None:
    """Replaces running batch-norm statistics by means over batches.

    What a search sees: in training each step is normalised by its own batch,
    under the formats sampled for it, so that neither the weights nor the reward
    depend on running statistics. Evaluation uses them, and during a search they
    mix the formats of the last steps. So `SearchModel` calls this when it
    freezes the formats, and whoever changes formats later does so as well:
    afterwards the statistics are those of the formats the model has now. The
    variance is the mean of the batches' variances, as in training.

    Running input ranges see the same batches; a model without batch norm has
    only those updated. Frozen norms (`trainable=False`) are left alone, nested
    models and synchronized norms are not.

    Args:
        model: Built model; changed in place.
        data: Batches `x` or `(x, ...)`, of the size used in training. Data
            augmentation should be that of training.
        steps: Largest number of batches.

    Raises:
        ValueError: If `data` is empty.
    """
    layers = batch_norms(model)

    @tf.function(reduce_retracing=True)
    def forward(x):
        model(x, training=True)

    momenta = [layer.momentum for layer in layers]
    sums: list[tuple] = [(0.0, 0.0)] * len(layers)
    count = 0
    try:
        for layer in layers:
            # The running value is then the last batch's.
            layer.momentum = 0.0
        for batch in data.take(steps):
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            forward(x)
            count += 1
            sums = [
                (
                    mean + np.asarray(layer.moving_mean),
                    variance + np.asarray(layer.moving_variance),
                )
                for layer, (mean, variance) in zip(layers, sums, strict=True)
            ]
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if not count:
        raise ValueError(
            "Recalibration needs at least one batch. Received: an empty data "
            "set."
        )
    for layer, (mean, variance) in zip(layers, sums, strict=True):
        layer.moving_mean.assign(mean / count)
        layer.moving_variance.assign(variance / count)


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Norms of a model whose statistics training changes."""
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
    ]
