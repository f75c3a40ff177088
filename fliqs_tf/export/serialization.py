"""The bytes of a model's flatbuffer, equal arrays written once.

A file repeats itself: a zero point and a scale for each channel of each tensor,
most of them alike (8 bytes a channel for the zero points of symmetric weights,
and as many for their biases). In a flatbuffer tables refer to arrays by their
place, so one copy can serve all; readers see no difference.
"""

from typing import Any

import flatbuffers
import numpy as np

# What marks a file as LiteRT's.
_IDENTIFIER = b"TFL3"


class _SharingBuilder(flatbuffers.Builder):
    def __init__(self):
        super().__init__(1024)
        self._places: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        # The element type decides how an array is aligned.
        key = x.dtype.str, x.tobytes()
        if key not in self._places:
            self._places[key] = super().CreateNumpyVector(x)
        return self._places[key]


def to_bytes(model: Any) -> bytes:
    """Serialises a model.

    Args:
        model: `ModelT` of the schema's object interface.
    """
    builder = _SharingBuilder()
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())
