"""Callbacks of a run."""

import os
import pathlib
import re
import time

import h5py
import keras
import tensorflow as tf

from fliqs_tf.files import read_json
from fliqs_tf.files import write_json
from fliqs_tf.random_states import random_states
from fliqs_tf.search_model import SearchModel
from fliqs_tf.search_run import check_finite
from fliqs_tf.switching import switching_errors

# Where a file of weights has what Keras does not write.
_RANDOM = "random_states"


class SearchHistory(keras.callbacks.Callback):
    """Records metrics and the policy of every epoch; survives a restart.

    Of a search: the probabilities of each decision, and the switching error of
    each layer.

    Args:
        path: JSON file that is rewritten at every epoch. A run that resumes
            keeps the epochs before the one it resumes at.
        log_dir: Folder for TensorBoard events of what is recorded of the
            policy; `None` for none. (`keras.callbacks.TensorBoard`
            writes the metrics.)
    """

    def __init__(self, path: str | os.PathLike, log_dir: str | None = None):
        super().__init__()
        self.path = os.fspath(path)
        self._log_dir = log_dir
        self._writer = None
        self.epochs: list[dict] = []

    def on_train_begin(self, logs=None):
        self.epochs = []
        if os.path.exists(self.path):
            self.epochs = read_json(self.path)
        if self._log_dir is not None:
            self._writer = tf.summary.create_file_writer(self._log_dir)

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        record = {
            "epoch": epoch,
            "seconds": time.monotonic() - self._start,
            "logs": {name: float(v) for name, v in (logs or {}).items()},
        }
        if hasattr(self.model, "policy"):
            record["probabilities"] = self._probabilities()
            record["switching_errors"] = switching_errors(self.model)
        self.epochs = [e for e in self.epochs if e["epoch"] < epoch]
        self.epochs.append(record)
        write_json(self.path, self.epochs)
        if self._writer is not None:
            with self._writer.as_default():
                for name, row in record.get("probabilities", {}).items():
                    for option, probability in row.items():
                        tf.summary.scalar(
                            f"policy/{name}/{option}", probability, step=epoch
                        )
                for path, error in record.get("switching_errors", {}).items():
                    tf.summary.scalar(
                        f"switching_error/{path}", error, step=epoch
                    )

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()

    def _probabilities(self):
        """Decision -> option -> probability; 1 for what is frozen."""
        model = self.model
        return {
            decision.name: {
                option: round(float(p), 6)
                for option, p in zip(decision.options, row, strict=False)
            }
            for decision, row in zip(
                model.decisions, model.probabilities(), strict=True
            )
        }


class Backup(keras.callbacks.Callback):
    """Writes the state of the training after each epoch; can restore it.

    Unlike `keras.callbacks.BackupAndRestore` it never leaves a half-written
    file or a state that does not belong to its epoch: a file is written
    beside, and its epoch is its name. And it has the states of random
    generators (of dropout, say), which Keras saves nowhere: a resumed training
    is the one that was not stopped.

    Args:
        folder: Folder of the state; created if need be.
    """

    def __init__(self, folder: str | os.PathLike):
        super().__init__()
        self.folder = pathlib.Path(folder)

    def epoch(self) -> int:
        """The number of epochs that the newest state has seen; 0 for none."""
        return max(self._states(), default=0)

    def restore(self, model: keras.Model) -> int:
        """Loads the newest state, if any, into a compiled model.

        Returns:
            The epoch to go on with: `fit`'s `initial_epoch`.

        Raises:
            OSError: If the file of that state cannot be read.
        """
        epoch = self.epoch()
        if epoch:
            # An optimizer has its variables, and can be loaded, once built.
            model.optimizer.build(model.trainable_variables)
            path = self._states()[epoch]
            try:
                model.load_weights(path)
            except OSError as error:
                raise OSError(
                    "A checkpoint must be whole to go on from it. Received: "
                    f"{path} ({error}). Delete it, and the run begins anew."
                ) from error
            with h5py.File(path) as file:
                # States of older versions have none.
                for number, value in file.get(_RANDOM, {}).items():
                    _random_states(model)[int(number)].assign(value[()])
        return epoch

    def on_epoch_end(self, epoch, logs=None):
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "partial.weights.h5"
        self.model.save_weights(partial, overwrite=True)
        with h5py.File(partial, "a") as file:
            for number, state in enumerate(_random_states(self.model)):
                file[f"{_RANDOM}/{number}"] = keras.ops.convert_to_numpy(state)
        older = self._states()
        os.replace(partial, self.folder / f"epoch{epoch + 1}.weights.h5")
        for number, path in older.items():
            if number != epoch + 1:
                path.unlink()

    def _states(self):
        return {
            int(match[1]): path
            for path in self.folder.glob("*.weights.h5")
            if (match := re.fullmatch(r"epoch(\d+)\.weights\.h5", path.name))
        }


def _random_states(model):
    """States of a model's random generators, but of those it saves itself."""
    return [] if isinstance(model, SearchModel) else random_states(model)


class FiniteLoss(keras.callbacks.Callback):
    """Stops a training whose loss is NaN or infinite, before it is saved.

    Raises:
        FloatingPointError: At the step that shows it.
    """

    def on_train_batch_end(self, batch, logs=None):
        check_finite(logs, f"batch {batch} of an epoch")
