"""How well the outputs of a file agree with those of a Keras model."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

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
