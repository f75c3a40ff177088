"""Networks to search over, as plain Keras models.

    model = fliqs.models.get("resnet18", width=0.5)

Every builder takes `input_shape`, `classes` and, where the family has one, a
multiplier `width`; all return logits, so losses are used with
`from_logits=True`. Nothing here knows of formats or searches.
"""

import difflib

import keras

from fliqs_tf.models.residual import residual_small

_BUILDERS = {builder.__name__: builder for builder in (residual_small,)}


def names() -> tuple[str, ...]:
    """Names that `get` takes, in alphabetical order."""
    return tuple(sorted(_BUILDERS))


def get(name: str, **arguments) -> keras.Model:
    """Builds a network of the zoo by its name.

    Args:
        name: One of `names()`.
        **arguments: Passed to the builder of that name, for example
            `input_shape`, `classes` and `width`.

    Returns:
        An untrained functional model that returns logits.

    Raises:
        ValueError: There is no such network, or an argument is out of range.
        TypeError: The builder has no such argument.
    """
    if name not in _BUILDERS:
        nearest = difflib.get_close_matches(
            str(name), _BUILDERS, n=1, cutoff=0.0
        )
        raise ValueError(
            f"`name` must be one of {', '.join(names())}. Nearest: "
            f"{nearest[0]}. Received: name={name!r}"
        )
    return _BUILDERS[name](**arguments)


__all__ = ["get", "names", *_BUILDERS]
