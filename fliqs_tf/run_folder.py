"""The one folder that a run writes."""

import os
import pathlib

import keras

from fliqs_tf.config import TrainConfig
from fliqs_tf.files import read_json
from fliqs_tf.files import write_json


class RunFolder:
    """A run's folder: its files, and whether it may be written.

    A folder that holds the same configuration is resumed.

    Args:
        config: Configuration of the run.

    Raises:
        ValueError: If the folder holds something else.
    """

    def __init__(self, config: TrainConfig):
        self.root = pathlib.Path(config.run_dir)
        self.config = self.root / "config.json"
        self.assignment = self.root / "assignment.json"
        self.model = self.root / "model.keras"
        self.tflite = self.root / "model.tflite"
        self.report = self.root / "report.json"
        self.page = self.root / "report.md"
        self.plots = self.root / "plots"
        self.events = self.root / "events"
        self.checkpoint = self.root / "checkpoint"
        self.history = self.checkpoint / "history.json"
        self._values = config.to_dict()
        self._check(config)

    def create(self) -> None:
        """Makes the folder; a run that cannot start leaves none behind."""
        self.root.mkdir(parents=True, exist_ok=True)
        # First: a folder without it is somebody else's.
        write_json(self.config, self._values)
        self.plots.mkdir(exist_ok=True)
        self.checkpoint.mkdir(exist_ok=True)

    def _check(self, config):
        if self.root.exists() and not self.root.is_dir():
            raise ValueError(
                f"`run_dir` must be a folder. Received: run_dir={self.root}, "
                "which is a file."
            )
        if not self.root.exists():
            return
        # What a run leaves that was stopped while it wrote its first file.
        started = {f"{self.config.name}.partial"}
        if started.issuperset(os.listdir(self.root)):
            return
        stored = read_json(self.config) if self.config.exists() else None
        if not isinstance(stored, dict):
            raise ValueError(
                "`run_dir` must be new, empty, or hold this very run. "
                f"Received: run_dir={self.root}, a folder with other files. "
                "Choose another folder."
            )
        differences = config.differences(stored)
        if differences:
            # Runs of two kinds have few settings in common.
            kind = differences.get("kind")
            differences = {"kind": kind} if kind else differences
            changed = [
                f"{name}={own!r} (there: {there!r})"
                for name, (own, there) in differences.items()
            ]
            raise ValueError(
                "`run_dir` must be new, empty, or hold this very run. "
                f"Received: run_dir={self.root}, which holds another run: "
                f"{', '.join(changed)}. Choose another folder, or delete it."
            )

    def save_model(self, model: keras.Model) -> None:
        """Writes `model.keras`, replacing it at once."""
        partial = self.root / "partial.keras"
        model.save(partial)
        os.replace(partial, self.model)
