"""Comparison of a file's outputs with a Keras model's, batch by batch."""

from collections.abc import Mapping

import numpy as np

from fliqs_tf.export import output_errors
from fliqs_tf.export.agreement import Agreement
from fliqs_tf.export.agreement import Bounds


class Tally:
    """Collects outputs batch by batch."""

    def __init__(self):
        self._errors: list = []
        self._agreements: list = []
        self._magnitudes: list = []
        self._is_finite: list = []
        self._squares: list = []
        self._right: list = []
        self._labels: list = []
        self._replays: list = []

    def add(
        self,
        received: list[np.ndarray],
        expected: list[np.ndarray],
        labels: np.ndarray | None,
        replays: Mapping[int, list[np.ndarray]] | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            received: Outputs of the file.
            expected: Outputs of the reference.
            labels: Class numbers `(batch,)`, or `None`. Accuracies are only
                known if every batch has them.
            replays: Sample -> outputs that it may have as well.

        Raises:
            RuntimeError: If shapes or element types differ.
        """
        pairs = list(zip(received, expected, strict=True))
        _check_outputs(pairs)
        self._errors.append(
            [output_errors.sample_errors(*pair) for pair in pairs]
        )
        self._agreements.append(
            np.all([output_errors.same_argmax(*pair) for pair in pairs], 0)
        )
        self._magnitudes.append([output_errors.magnitude(y) for y in expected])
        self._is_finite.append([np.isfinite(y).any() for y in expected])
        self._squares.append([output_errors.squares(*pair) for pair in pairs])
        self._replays.append(
            output_errors.replay_errors(received, replays or {})
        )
        self._right.append(None)
        if labels is not None:
            # Labels belong to models with one output.
            self._right[-1] = [y.argmax(-1) == labels for y in pairs[0]]
            self._labels.append(labels)

    def result(self, data: str, bounds: Bounds) -> Agreement:
        """Returns the comparison of all that was added.

        Raises:
            ValueError: If an output of the reference has no finite number.
        """
        _check_finite(self._is_finite)
        scale = np.max(self._magnitudes, axis=0)
        # An output that is zero throughout has no scale: errors count as they
        # are.
        scale = np.where(scale > 0, scale, 1.0)[:, None]
        errors = np.concatenate(self._errors, axis=1)
        relative = np.max(errors / scale, axis=0)
        agrees = np.concatenate(self._agreements)
        difference, magnitude = np.sum(self._squares, axis=0).T
        magnitude = np.where(magnitude > 0, magnitude, 1.0)
        accuracies: list = [None, None, None]
        if all(right is not None for right in self._right):
            right = np.concatenate(self._right, axis=1).mean(axis=1)
            labels = np.concatenate(self._labels)
            _, counts = np.unique(labels, return_counts=True)
            constant = counts.max() / len(labels)
            accuracies = [float(share) for share in (*right, constant)]
        deviates = (relative > bounds.tolerance) | ~agrees
        replayed = np.max(np.concatenate(self._replays, axis=1) / scale, axis=0)
        # What was not replayed is infinitely far, and a tolerance may be that.
        is_replayed = (
            deviates & np.isfinite(replayed) & (replayed <= bounds.tolerance)
        )
        return Agreement(
            data=data,
            samples=len(relative),
            max_relative_error=float(relative.max()),
            rms_error=float(np.sqrt(difference / magnitude).max()),
            argmax_agreement=int(agrees.sum()),
            deviating_samples=int(deviates.sum()),
            tolerance=bounds.tolerance,
            measure=bounds.measure,
            accuracy_drop_allowed=bounds.accuracy_drop,
            accuracy=accuracies[0],
            reference_accuracy=accuracies[1],
            constant_accuracy=accuracies[2],
            replayed_samples=int(is_replayed.sum()),
            replayed_error=float(replayed[is_replayed].max(initial=0.0)),
        )


def _check_outputs(pairs):
    kinds = [
        tuple((y.shape, y.dtype.name) for y in (received, expected))
        for received, expected in pairs
    ]
    if any(received != expected for received, expected in kinds):
        raise RuntimeError(
            "The file must have outputs of the Keras model's shapes and "
            f"element types. Received: (file, Keras) = {kinds}. The runtime "
            "computes some layer differently; replace those that are not "
            "common ones, one by one."
        )


def _check_finite(is_finite):
    """NaN agrees with NaN, so that a comparison of nothing else is none."""
    missing = np.flatnonzero(~np.any(is_finite, axis=0))
    if missing.size:
        raise ValueError(
            "The Keras model must compute finite numbers for a file to be "
            f"compared with. Received: none in outputs {missing.tolist()}. "
            "Look for NaN in its weights, and preprocess `verify_data` as for "
            "training."
        )
