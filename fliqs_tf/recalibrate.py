"""Batch-norm statistics of a model as it is now."""

import functools

import keras
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
    variance is the mean of the batches' variances, as in training. A norm that
    is called more than once has the means over all its calls.

    Under few bits it is worth a call after training too, which `SearchModel`
    makes after its last step: weights near a boundary between two codes change
    sides to the end, and running statistics are of codes that are gone (Nagel
    et al., "Overcoming Oscillations in Quantization-Aware Training", ICML
    2022).

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
    statistics = [_Statistics(layer) for layer in batch_norms(model)]

    @tf.function(reduce_retracing=True)
    def forward(x):
        model(x, training=True)

    count = 0
    try:
        for one in statistics:
            one.start()
        for batch in data.take(steps):
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            forward(x)
            count += 1
    finally:
        for one in statistics:
            one.stop()
    if not count:
        raise ValueError(
            "Recalibration needs at least one batch. Received: an empty data "
            "set."
        )
    for one in statistics:
        one.assign_means()


class Recalibration(keras.callbacks.Callback):
    """Calls `recalibrate` after the last step that `fit` is to do.

    The last epoch is then validated and saved with these statistics. A `fit`
    that stops earlier, or does not know its number of steps, keeps the running
    ones, with which it was validated.

    Args:
        data: See `recalibrate`.
    """

    def __init__(self, data: tf.data.Dataset):
        super().__init__()
        self._data = data
        self._is_last_epoch = False

    def on_epoch_begin(self, epoch, logs=None):
        self._is_last_epoch = epoch + 1 == self.params["epochs"]

    def on_train_batch_end(self, batch, logs=None):
        steps = self.params["steps"]
        is_last = self._is_last_epoch and steps and batch + 1 >= steps
        if is_last and batch_norms(self.model):
            self.recalibrate()

    def recalibrate(self) -> None:
        """Re-estimates the statistics of the model that is trained."""
        recalibrate(self.model, self._data)


class _Statistics:
    """Of all calls of a batch norm, which may be shared, in all batches."""

    def __init__(self, layer: keras.layers.BatchNormalization):
        self._layer = layer
        self._running = (layer.moving_mean, layer.moving_variance)
        self._sums = [tf.Variable(tf.zeros(v.shape)) for v in self._running]
        self._calls = tf.Variable(0.0)

    def start(self) -> None:
        call = self._layer.call

        @functools.wraps(call)
        def summing(*args, **kwargs):
            outputs = call(*args, **kwargs)
            # A call that is not for training has no statistics of its own.
            if kwargs.get("training", True):
                for total, value in zip(self._sums, self._running, strict=True):
                    total.assign_add(tf.convert_to_tensor(value))
                self._calls.assign_add(1.0)
            return outputs

        self._momentum = self._layer.momentum
        # The running value is then the last call's.
        self._layer.momentum = 0.0
        # An attribute of this one layer stands before its class's method.
        vars(self._layer)["call"] = summing

    def stop(self) -> None:
        del vars(self._layer)["call"]
        self._layer.momentum = self._momentum

    def assign_means(self) -> None:
        calls = self._calls.numpy()
        if calls:
            for total, value in zip(self._sums, self._running, strict=True):
                value.assign(total.numpy() / calls)


def batch_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """Norms of a model whose statistics training changes."""
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
    ]
