"""What the quantized layers of a Keras model get as inputs."""

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from fliqs_tf.export import litert
from fliqs_tf.export import twin


def inputs_of_layers(
    model: keras.Model, arrays: Sequence[np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """Path -> inputs of the calls of each quantized layer.

    Args:
        model: Fixed model.
        arrays: One for each of its inputs.
    """
    found: dict[str, list[np.ndarray]] = {}
    with contextlib.ExitStack() as stack:
        for path, layer in twin.fixed_layers(model).items():
            stack.enter_context(_recorded(layer, found.setdefault(path, [])))
        litert.call(model, [tf.convert_to_tensor(array) for array in arrays])
    return found


@contextlib.contextmanager
def _recorded(layer, calls: list) -> Iterator[None]:
    call = layer.call

    def recording(inputs, *args, **kwargs):
        calls.append(np.asarray(inputs))
        return call(inputs, *args, **kwargs)

    # Keras looks `call` up on the object, tracking apart.
    object.__setattr__(layer, "call", recording)
    try:
        yield
    finally:
        object.__delattr__(layer, "call")
