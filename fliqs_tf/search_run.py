"""A run of a search: its state, length and freeze, and a guard against NaN."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from keras import ops

from fliqs_tf.layers.base import graph_of
from fliqs_tf.recalibrate import MAX_BATCHES
from fliqs_tf.recalibrate import Recalibration
from fliqs_tf.recalibrate import batch_norms
from fliqs_tf.recalibrate import recalibrate


class SearchRun(Recalibration):
    """What a run needs from the host; `SearchModel.fit` adds it.

    Args:
        x: That of `fit`: data for the batch-norm statistics, at the freeze and
            after the last step.
        batch_size: Likewise, of arrays.
        initial_epoch: That of `fit`.
        held_out: Share of arrays, at their end, that `fit` validates on.
    """

    def __init__(
        self,
        x: Any,
        batch_size: int,
        initial_epoch: int,
        held_out: float = 0.0,
    ):
        super().__init__(x)
        self._batch_size = batch_size
        self._initial_epoch = initial_epoch
        self._held_out = held_out
        self._found = None
        self._has_warned = False

    def on_train_begin(self, logs=None):
        steps = self.params["steps"]
        if steps is None:
            raise ValueError(
                "A search must know its number of steps. Received: data of "
                "unknown length. Pass `steps_per_epoch` to `fit`."
            )
        if value_of(self.model.frozen):
            return
        # Set by callbacks that restore, which then decides.
        first = self.model._initial_epoch or self._initial_epoch
        done = value_of(self.model.step)
        total = steps * self.params["epochs"]
        if done // steps != first:
            # Not the epoch that it stopped in: what was done comes on top.
            total += done - steps * first
        self.model.total_steps.assign(total)

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._first_step = self._step = value_of(self.model.step)

    def on_train_batch_end(self, batch, logs=None):
        self._step = self._first_step + batch + 1
        check_finite(logs, f"step {self._step}")
        if not self._freeze_if_due(self._step):
            super().on_train_batch_end(batch, logs)

    def on_train_end(self, logs=None):
        model = self.model
        step = value_of(model.step)
        if self._found is None or value_of(model.frozen):
            self._freeze_if_due(step)
            return
        logging.warning(
            "A callback put back weights of step %d, from before the freeze, "
            "which were not trained under the formats found. Metrics of then "
            "are not theirs: let it look at later epochs only "
            "(`EarlyStopping(start_from_epoch=...)`).",
            step,
        )
        model.step.assign(self._step)
        model.frozen_sample.assign(self._found)
        model.frozen.assign(1)
        self.recalibrate()

    def _freeze_if_due(self, step):
        """Returns whether it froze the formats."""
        model = self.model
        due = model.controller.freeze * value_of(model.total_steps)
        if step < due or value_of(model.frozen):
            return False
        model.freeze()
        self._found = ops.convert_to_numpy(model.frozen_sample)
        self.recalibrate()
        return True

    def recalibrate(self):
        model = self.model
        inputs = inputs_of(self._data, self._batch_size, self._held_out)
        if inputs is not None:
            model._choose(model.frozen_sample, quantize_inputs=True)
            recalibrate(model.searchable_model, inputs)
        elif batch_norms(model.searchable_model) and not self._has_warned:
            self._has_warned = True
            logging.warning(
                "Batch-norm statistics are not re-estimated at the freeze and "
                "after the last step, for which `fit` needs arrays or a "
                "`tf.data.Dataset`. Call `fliqs.recalibrate` on some "
                "afterwards."
            )


def create_state(model: keras.Model, x: Any, y: Any) -> None:
    """Creates the variables of a search's optimizer and metrics.

    Keras would create them while it traces the step, and a `tf.function` that
    creates variables is traced twice. Those of the metrics are left to it where
    labels are not known before, or not nested as the outputs are.

    Args:
        model: The search.
        x: That of `fit`.
        y: Likewise.
    """
    if not model.compiled:
        return
    if isinstance(x, tf.data.Dataset):
        _, y, _ = keras.utils.unpack_x_y_sample_weight(x.element_spec)
    searched = model.searchable_model
    graph = graph_of(searched)
    predicted = None if graph is None else graph.output
    with model.distribute_strategy.scope():
        if not model.optimizer.built:
            model.optimizer.build(searched.trainable_variables)
        if not _is_alike(y, predicted):
            return
        for part in (model._compile_loss, model._compile_metrics):
            if part is not None and not part.built:
                part.build(y, predicted)


def _is_alike(one: Any, other: Any) -> bool:
    try:
        keras.tree.assert_same_structure(one, other)
    except ValueError:
        return False
    return one is not None and other is not None


def inputs_of(
    x: Any, batch_size: int, held_out: float = 0.0
) -> tf.data.Dataset | None:
    """Inputs of `fit` as a data set; `None` for what can be read only once.

    Arrays, also in a list, a tuple or a dictionary, are drawn from at random:
    their order may be that of their classes. Without the share `held_out` at
    their end.
    """
    if isinstance(x, tf.data.Dataset):
        return x
    arrays = keras.tree.flatten(x)
    if not all(isinstance(a, np.ndarray) or tf.is_tensor(a) for a in arrays):
        return None
    length = math.floor(len(arrays[0]) * (1.0 - held_out))
    order = np.random.default_rng(0).permutation(length)
    order = order[: MAX_BATCHES * batch_size]
    drawn = keras.tree.map_structure(lambda a: np.asarray(a)[order], x)
    # A list would be one tensor to `tf.data`, and a tuple `x, y`.
    if isinstance(drawn, list | tuple):
        drawn = (tuple(drawn),)
    return tf.data.Dataset.from_tensor_slices(drawn).batch(batch_size)


def check_finite(logs: dict[str, Any] | None, place: str) -> None:
    """Raises a `FloatingPointError` for a loss that is NaN or infinite.

    Args:
        logs: What Keras hands to a callback.
        place: Where in the run, for the error.
    """
    loss = float((logs or {}).get("loss", 0.0))
    if not np.isfinite(loss):
        raise FloatingPointError(
            f"The loss must stay finite. Received: loss={loss} at {place}. "
            "Look for NaN or infinity in the data, or lower the learning rate; "
            "a checkpoint of an earlier epoch is untouched."
        )


def value_of(variable):
    """Value of an integer variable, also of one that replicas share."""
    return int(ops.convert_to_numpy(variable))
