"""What must be true of the arguments before an export begins."""

import pathlib

import keras

from fliqs_tf.export import twin


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
            "`SearchModel.best_model()`."
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


def check_choice(name: str, value: str, options) -> None:
    """Raises a `ValueError` unless `value` is one of the options."""
    if value not in options:
        raise ValueError(
            f"`{name}` must be one of {', '.join(options)}. Received: "
            f"{name}={value!r}."
        )
