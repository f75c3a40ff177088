"""How well the outputs of a file agree with those of a Keras model."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

MAX = "max"
RMS = "rms"
ACCURACY = "accuracy"
# Of a difference of two fractions: 0.9 - 0.89 is more than 0.01.
_SLACK = 1e-9


@dataclasses.dataclass(frozen=True)
class Bounds:
    """How far a file may be from its reference.

    Args:
        tolerance: Largest error that is allowed.
        measure: What the tolerance is for. `"max"`: `|file - reference|` of
            every sample, relative to the largest finite magnitude of that
            output in the reference; the argmax must be the same too. `"rms"`:
            the norm of `file - reference` over all samples, relative to that
            of the reference. `"accuracy"`: as `"rms"`, but only where labels
            tell nothing, see `Agreement.labels_tell`.
        accuracy_drop: Largest loss of accuracy against the reference, a
            fraction; counts only where labels are known.
    """

    tolerance: float
    measure: str = MAX
    accuracy_drop: float = 1.0

    def __post_init__(self):
        # Not `<`, which NaN passes.
        for name in ("tolerance", "accuracy_drop"):
            value = getattr(self, name)
            if not value >= 0:
                raise ValueError(
                    f"`{name}` must be a number of at least 0. Received: "
                    f"{name}={value!r}. Give a fraction, 0.01 for example."
                )


@dataclasses.dataclass(frozen=True)
class Agreement:
    """A comparison.

    Args:
        data: `"given"`, or `"random"`: standard normal inputs of a fixed seed.
        samples: Number of samples compared.
        max_relative_error: Largest `|file - reference|`, relative to the
            largest finite magnitude of that output over all samples.
        rms_error: Norm of `file - reference` over that of the reference, of
            the worst output.
        argmax_agreement: Samples whose largest output has the same index.
        deviating_samples: Samples with a relative error above the tolerance
            or with another argmax.
        tolerance: Largest error that was allowed.
        measure: What the tolerance is for, see `Bounds`.
        accuracy_drop_allowed: See `Bounds.accuracy_drop`.
        accuracy: Accuracy of the file, a fraction; `None` without labels.
        reference_accuracy: Accuracy of the reference.
        constant_accuracy: Accuracy of always naming the most frequent class.
        replayed_samples: Deviating samples that do not deviate from a replay
            of the file's roundings (see `replay.py`): in them, values stood
            on the boundary between two codes.
        replayed_error: Largest relative error of those.
    """

    data: str
    samples: int
    max_relative_error: float
    rms_error: float
    argmax_agreement: int
    deviating_samples: int
    tolerance: float
    measure: str
    accuracy_drop_allowed: float
    accuracy: float | None = None
    reference_accuracy: float | None = None
    constant_accuracy: float | None = None
    replayed_samples: int = 0
    replayed_error: float = 0.0

    @property
    def accuracy_drop(self) -> float | None:
        """Accuracy lost against the reference; negative if it gained."""
        if self.accuracy is None or self.reference_accuracy is None:
            return None
        return self.reference_accuracy - self.accuracy

    @property
    def loses_accuracy(self) -> bool:
        """Whether more accuracy is lost than is allowed."""
        drop = self.accuracy_drop
        return drop is not None and drop > self.accuracy_drop_allowed + _SLACK

    @property
    def labels_tell(self) -> bool:
        """Whether labels tell the file from one that names one class always.

        They do if the reference's accuracy is above that of such a file, and
        the file loses at most half of this gain. Where a class is too rare,
        or labels are wrong or all the same, they do not, and prove nothing.
        """
        drop, constant = self.accuracy_drop, self.constant_accuracy
        if drop is None or constant is None or self.reference_accuracy is None:
            return False
        gain = self.reference_accuracy - constant
        return gain > _SLACK and drop <= gain / 2 + _SLACK

    @property
    def passed(self) -> bool:
        if self.loses_accuracy:
            return False
        if self.measure == ACCURACY and self.labels_tell:
            return True
        if self.measure != MAX:
            return self.rms_error <= self.tolerance
        return self.deviating_samples == self.replayed_samples

    def __str__(self) -> str:
        text = (
            f"on {self.samples} {self.data} samples the largest relative "
            f"error is {self.max_relative_error:.3g}, the RMS error "
            f"{self.rms_error:.3g}, the argmax agrees on "
            f"{self.argmax_agreement}"
        )
        if self.measure == MAX:
            text += f", {self.deviating_samples} deviate"
        if self.replayed_samples:
            text += (
                f", {self.replayed_samples} of them by values between two "
                "codes (with these rounded alike the largest relative error "
                f"is {self.replayed_error:.3g})"
            )
        if self.accuracy is not None:
            text += (
                f", the accuracy is {self.accuracy:.4f} against "
                f"{self.reference_accuracy:.4f}"
            )
        return text

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `json.dump` takes."""
        return dataclasses.asdict(self) | {"passed": self.passed}


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
        self._errors.append([_sample_errors(*pair) for pair in pairs])
        self._agreements.append(
            np.all([_same_argmax(*pair) for pair in pairs], 0)
        )
        self._magnitudes.append([_magnitude(y) for y in expected])
        self._is_finite.append([np.isfinite(y).any() for y in expected])
        self._squares.append([_squares(*pair) for pair in pairs])
        self._replays.append(_replay_errors(received, replays or {}))
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


def deviating(
    received: list[np.ndarray], expected: list[np.ndarray], tolerance: float
) -> list[int]:
    """Samples with an error above the tolerance or with another argmax.

    Relative to the largest finite magnitude in these batches.
    """
    found = np.zeros(len(received[0]), bool)
    for pair in zip(received, expected, strict=True):
        scale = _magnitude(pair[1]) or 1.0
        found |= _sample_errors(*pair) > tolerance * scale
        found |= ~_same_argmax(*pair)
    return [int(index) for index in np.flatnonzero(found)]


def rms_error(received: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference, relative to that of `expected`."""
    difference, magnitude = _squares(received, expected)
    return float(np.sqrt(difference / (magnitude if magnitude > 0 else 1.0)))


def mismatch(
    path: str | os.PathLike,
    activations: str,
    agreements: Mapping[str, Agreement],
    where: str,
) -> str:
    """Says how a file disagrees, and what can be done.

    Args:
        path: The file that was to be written.
        activations: Mode of the export.
        agreements: Comparisons by name, `"verification"` among them.
        where: A sentence about the place.
    """
    check = agreements["verification"]
    allowed = f"within {check.tolerance:g} (RMS of the error)"
    if check.measure == MAX:
        allowed = (
            f"within {check.tolerance:g} of the largest output and have the "
            "same argmax"
        )
    text = (
        f"The file must agree with the Keras model {allowed}. Received: "
        f"max_relative_error={check.max_relative_error:.3g}, "
        f"rms_error={check.rms_error:.3g}, argmax equal on "
        f"{check.argmax_agreement} and {check.deviating_samples} deviating of "
        f"{check.samples} {check.data} samples (activations={activations!r})."
    )
    has_labels = check.measure == ACCURACY and check.accuracy is not None
    if has_labels and not check.labels_tell:
        text += (
            f" Labels do not prove it: the accuracy is {check.accuracy:.4f} "
            f"against {check.reference_accuracy:.4f}, and naming one class "
            f"always has {check.constant_accuracy:.4f}."
        )
    trained = agreements.get("trained", check)
    if trained.loses_accuracy:
        text += (
            f" The accuracy must not drop by more than "
            f"{trained.accuracy_drop_allowed:g}: it is {trained.accuracy:.4f} "
            f"against {trained.reference_accuracy:.4f}."
        )
    return (
        f"{text} {where} {str(path)!r} was not written; pass "
        "`allow_mismatch=True` to keep such a file, or a larger `tolerance` "
        "or `accuracy_drop`."
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


def _magnitude(expected) -> float:
    """Largest finite magnitude, 0 without one."""
    # Not in the outputs' type, which may be boolean or unsigned.
    magnitudes = np.abs(expected.astype(np.float64))
    finite = np.isfinite(magnitudes)
    return float(magnitudes.max(initial=0.0, where=finite))


def _difference(received, expected):
    """Absolute difference in float64; NaN counts as infinite."""
    received, expected = (y.astype(np.float64) for y in (received, expected))
    with np.errstate(invalid="ignore"):
        difference = np.abs(received - expected)
    # Both infinite, or both NaN, is agreement; one of them is not.
    same = (received == expected) | (np.isnan(received) & np.isnan(expected))
    difference = np.where(same, 0.0, difference)
    return np.where(np.isnan(difference), np.inf, difference)


def _sample_errors(received, expected):
    """Largest absolute error of each sample."""
    difference = _difference(received, expected).reshape(len(expected), -1)
    return difference.max(axis=1, initial=0.0)


def _replay_errors(received, replays):
    """Largest absolute error `(outputs, batch)`; infinite without a replay.

    And with one that has another argmax.
    """
    errors = np.full((len(received), len(received[0])), np.inf)
    for index, expected in replays.items():
        pairs = [
            (y[index : index + 1], x)
            for y, x in zip(received, expected, strict=True)
        ]
        if all(np.all(_same_argmax(*pair)) for pair in pairs):
            errors[:, index] = [_sample_errors(*pair)[0] for pair in pairs]
    return errors


def _squares(received, expected):
    """Sums of squares of the difference and of what is expected."""
    difference = _difference(received, expected)
    finite = np.where(np.isfinite(expected), expected, 0.0).astype(np.float64)
    return np.sum(difference**2), np.sum(finite**2)


def _same_argmax(received, expected):
    """Whether each sample's largest value stands at the same index.

    Where the reference has several equal largest values, any of them counts.
    """
    if expected.ndim < 2:
        return np.ones(len(expected), bool)
    index = received.argmax(axis=-1)[..., None]
    chosen = np.take_along_axis(expected, index, axis=-1)[..., 0]
    same = ~(chosen < expected.max(axis=-1))
    return same.reshape(len(expected), -1).all(axis=1)
