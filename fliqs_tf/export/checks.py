"""What must be true of the arguments before an export begins."""

import pathlib
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from fliqs_tf.export import layer_inputs
from fliqs_tf.export import litert
from fliqs_tf.export import modes
from fliqs_tf.export import output_errors
from fliqs_tf.export import twin
from fliqs_tf.layers.base import has_own_call


def check_path(path) -> pathlib.Path:
    """Returns the path of the file to write.

    Raises:
        ValueError: If it is a folder, or in none.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(
            f"`path` must name a file. Received: path={str(path)!r}, a folder. "
            "Add a file name, 'model.tflite' for example."
        )
    if not path.parent.is_dir():
        raise ValueError(
            "`path` must be in an existing folder. Received: "
            f"path={str(path)!r}. Create {str(path.parent)!r} first."
        )
    return path


def check_model(model) -> None:
    """Raises a `ValueError` for what cannot be exported."""
    if not isinstance(model, keras.Sequential | keras.src.models.Functional):
        raise ValueError(
            "`fixed` must be a Functional or Sequential model. Received: "
            f"{type(model).__name__}. Take the result of `to_fixed` or of "
            "`SearchModel.best_model()`, and wrap a subclassed one: "
            "`keras.Model(inputs, fixed(inputs))`."
        )
    if not model.built:
        raise ValueError(
            "`fixed` must be built. Received: a model without weights. Give it "
            "an `Input`, or call it once on a batch."
        )
    for tensor in model.inputs:
        if tensor.shape[0] is not None:
            raise ValueError(
                "Inputs of `fixed` must leave the batch dimension open. "
                f"Received: {tensor.name!r} of shape {tensor.shape}. Build the "
                "model with `keras.Input(shape)`, without a batch size."
            )
        if tensor.dtype == "string":
            raise ValueError(
                "Inputs of `fixed` must be numbers. Received: "
                f"{tensor.name!r} of dtype='string'. Look strings up before "
                "the model, and give it their indices."
            )
    unfixed = [
        path
        for path, layer in twin.fixed_layers(model).items()
        if not layer.is_fixed
    ]
    if unfixed:
        raise ValueError(
            "Every layer of `fixed` must have one format. Received: several "
            f"options in {unfixed}. Call `to_fixed(model, assignment)` first."
        )


def check_call(
    given: keras.Model, fixed: keras.Model, arrays: Sequence[np.ndarray]
) -> None:
    """Raises a `ValueError` if a model computes more than its layers do.

    Only the graph of a model is exported, so a class with a `call` of its own
    must come to the same.

    Args:
        given: Functional or Sequential model, of whichever class.
        fixed: The graph of the same layers.
        arrays: A batch, one array for each input.
    """
    if not has_own_call(given):
        return
    tensors = [tf.convert_to_tensor(array) for array in arrays]
    inputs = keras.tree.pack_sequence_as(fixed.input, tensors)
    if isinstance(given, keras.Sequential):
        (inputs,) = tensors
    received = keras.tree.flatten(given(inputs, training=False))
    received = [np.asarray(y) for y in received]
    expected = _outputs(fixed, arrays)
    shapes = [[y.shape for y in outputs] for outputs in (received, expected)]
    if shapes[0] == shapes[1]:
        count = len(
            output_errors.deviating(received, expected, modes.TOLERANCE)
        )
        if not count:
            return
        found = f"deviates on {count} of {len(arrays[0])} samples"
    else:
        found = f"has outputs of shapes {shapes[0]} instead of {shapes[1]}"
    raise ValueError(
        "`fixed` must compute what its layers do, from its inputs to its "
        f"outputs. Received: {type(given).__name__}, whose own `call` {found}. "
        "Make that a part of the graph: `keras.Model(inputs, fixed(inputs))`."
    )


def check_copy(fixed: keras.Model, arrays: Sequence[np.ndarray]) -> None:
    """Raises a `ValueError` if a copy of `fixed` computes something else.

    What is converted and what the file is compared with are both copies: they
    would agree on whatever a copy has lost.

    Args:
        fixed: Fixed model.
        arrays: A batch, one array for each input.
    """
    copy = twin.copy(fixed)
    received, expected = _outputs(copy, arrays), _outputs(fixed, arrays)
    found = output_errors.deviating(received, expected, modes.TOLERANCE)
    if not found:
        return
    copied = layer_inputs.inputs_of_layers(copy, arrays)
    places = [
        f"in front of layer {path!r}"
        for path, calls in layer_inputs.inputs_of_layers(fixed, arrays).items()
        for value, other in zip(copied[path], calls, strict=True)
        if not np.array_equal(value, other, equal_nan=True)
    ]
    raise ValueError(
        "Configuration and weights must describe every layer of `fixed`. "
        f"Received: a copy that deviates on {len(found)} of {len(arrays[0])} "
        f"samples, first {[*places, 'behind the last quantized layer'][0]}. "
        "Keep what a layer computes with in weights or in `get_config`, or "
        "give it `save_own_variables` and `load_own_variables`."
    )


def _outputs(model, arrays) -> list[np.ndarray]:
    tensors = [tf.convert_to_tensor(array) for array in arrays]
    return [np.asarray(y) for y in litert.call(model, tensors)]
