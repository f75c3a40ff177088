"""Distances of a file's outputs from those of a Keras model."""

from collections.abc import Mapping

import numpy as np


def deviating(
    received: list[np.ndarray], expected: list[np.ndarray], tolerance: float
) -> list[int]:
    """Samples with an error above the tolerance or with another argmax.

    Relative to the largest finite magnitude in these batches.
    """
    found = np.zeros(len(received[0]), bool)
    for pair in zip(received, expected, strict=True):
        scale = magnitude(pair[1]) or 1.0
        found |= sample_errors(*pair) > tolerance * scale
        found |= ~same_argmax(*pair)
    return [int(index) for index in np.flatnonzero(found)]


def rms_error(received: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference, relative to that of `expected`."""
    difference, size = squares(received, expected)
    return float(np.sqrt(difference / (size if size > 0 else 1.0)))


def sample_errors(received: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Largest absolute error of each sample."""
    difference = _difference(received, expected).reshape(len(expected), -1)
    return difference.max(axis=1, initial=0.0)


def same_argmax(received: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Whether each sample's largest value stands at the same index.

    Where the reference has several equal largest values, any of them counts.
    """
    if expected.ndim < 2:
        return np.ones(len(expected), bool)
    index = received.argmax(axis=-1)[..., None]
    chosen = np.take_along_axis(expected, index, axis=-1)[..., 0]
    same = ~(chosen < expected.max(axis=-1))
    return same.reshape(len(expected), -1).all(axis=1)


def replay_errors(
    received: list[np.ndarray], replays: Mapping[int, list[np.ndarray]]
) -> np.ndarray:
    """Largest absolute error `(outputs, batch)`; infinite without a replay.

    And with one that has another argmax.
    """
    errors = np.full((len(received), len(received[0])), np.inf)
    for index, expected in replays.items():
        pairs = [
            (y[index : index + 1], x)
            for y, x in zip(received, expected, strict=True)
        ]
        if all(np.all(same_argmax(*pair)) for pair in pairs):
            errors[:, index] = [sample_errors(*pair)[0] for pair in pairs]
    return errors


def squares(received: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Sums of squares of the difference and of what is expected."""
    difference = _difference(received, expected)
    finite = np.where(np.isfinite(expected), expected, 0.0).astype(np.float64)
    return np.sum(difference**2), np.sum(finite**2)


def magnitude(expected: np.ndarray) -> float:
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
