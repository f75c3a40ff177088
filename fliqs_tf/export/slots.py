"""Constants that the converter must not see.

The LiteRT converter folds what it can prove constant: a scale behind a
convolution goes into its weights, a division by a constant becomes a
multiplication by the reciprocal. Both change the order of rounding. A slot
enters the converted function as an argument, so that nothing can be folded,
and becomes a constant in the file afterwards.
"""

import contextlib
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

PREFIX = "fliqs_slot_"


class Slots:
    """Named float32 constants, given as arguments while a model is traced."""

    def __init__(self):
        self._values: list[np.ndarray] = []
        self._tensors: Sequence[tf.Tensor] | None = None

    def add(self, value) -> int:
        """Stores a value and returns the number of its slot."""
        self._values.append(np.asarray(value, np.float32))
        return len(self._values) - 1

    def name(self, slot: int) -> str:
        """Name of the slot's tensor in a file."""
        return f"{PREFIX}{slot}"

    def tensor(self, slot: int) -> tf.Tensor:
        """The argument while tracing, the plain value otherwise."""
        if self._tensors is None:
            return tf.constant(self._values[slot])
        return self._tensors[slot]

    @contextlib.contextmanager
    def bound(self, tensors: Sequence[tf.Tensor]):
        """Makes `tensor` return these, in the order of the slots."""
        self._tensors = tensors
        try:
            yield
        finally:
            self._tensors = None

    def specs(self) -> list[tf.TensorSpec]:
        """Argument specifications, in the order of the slots."""
        return [
            tf.TensorSpec(value.shape, tf.float32, self.name(number))
            for number, value in enumerate(self._values)
        ]

    def values(self) -> dict[str, np.ndarray]:
        """Argument name -> value."""
        return {self.name(n): value for n, value in enumerate(self._values)}
