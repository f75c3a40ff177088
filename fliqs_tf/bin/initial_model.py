"""The model that a run starts from, where it is one from a file."""

import inspect

import keras

from fliqs_tf.layers.base import SearchableLayer


def load(path: str) -> keras.Model:
    """Loads a model as plain Keras layers.

    Args:
        path: `.keras` or `.h5` file of a plain model, or `.keras` file of one
            that a run wrote, whose layers become the Keras layers they stand
            for, at their float weights.

    Raises:
        ValueError: If there is no such file, or it holds no model.
    """
    model = keras.models.load_model(path, compile=False)
    own = {
        name
        for name, parameter in inspect.signature(
            SearchableLayer
        ).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    pairs = []

    def plain(layer):
        config = layer.get_config()
        kind = type(layer)
        if isinstance(layer, SearchableLayer):
            kind = next(c for c in kind.__mro__ if _is_keras(c))
            config = {k: v for k, v in config.items() if k not in own}
        copy = kind.from_config(config)
        pairs.append((layer, copy))
        return copy

    nested = any(isinstance(layer, keras.Model) for layer in model.layers)
    clone = keras.models.clone_model(
        model, clone_function=plain, recursive=nested
    )
    for source, copy in pairs:
        values = {weight.name: weight for weight in source.weights}
        for weight in copy.weights:
            weight.assign(values[weight.name])
    return clone


def gives_probabilities(model: keras.Model) -> bool:
    """Whether a model ends in a softmax, and not in logits."""
    (output,) = model.outputs
    layer = output._keras_history.operation
    if isinstance(layer, keras.Model):
        return gives_probabilities(layer)
    return (
        isinstance(layer, keras.layers.Softmax)
        or getattr(layer, "activation", None) is keras.activations.softmax
    )


def _is_keras(cls):
    return cls.__module__.startswith("keras.")
