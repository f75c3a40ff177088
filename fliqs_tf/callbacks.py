"""Callbacks of a search."""

import os

import keras
import numpy as np
import tensorflow as tf

from fliqs_tf.files import read_json
from fliqs_tf.files import write_json


class SearchHistory(keras.callbacks.Callback):
    """Records metrics and probabilities of every epoch; survives a restart.

    Args:
        path: JSON file that is rewritten at every epoch. A run that resumes
            keeps the epochs before the one it resumes at.
        log_dir: Folder for TensorBoard events of each decision's
            probabilities; `None` for none. (`keras.callbacks.TensorBoard`
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

    def on_epoch_end(self, epoch, logs=None):
        record = {
            "epoch": epoch,
            "logs": {name: float(v) for name, v in (logs or {}).items()},
        }
        if hasattr(self.model, "policy"):
            record["probabilities"] = self._probabilities()
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

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()

    def _probabilities(self):
        """Decision -> option -> probability; 1 for what is frozen."""
        model = self.model
        table = keras.ops.convert_to_numpy(model.policy.probabilities())
        if int(model.frozen):
            table = np.eye(table.shape[1])[np.asarray(model.frozen_sample)]
        return {
            decision.name: {
                option: round(float(p), 6)
                for option, p in zip(decision.options, row, strict=False)
            }
            for decision, row in zip(model.decisions, table, strict=True)
        }
