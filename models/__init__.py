"""Networks to search over, as plain Keras models.

    model = fliqs.models.get("resnet18", width=0.5)

Every builder takes `input_shape`, `classes` and, where the family has one, a
multiplier `width`; all return logits, so losses are used with
`from_logits=True`. Nothing here knows of formats or searches.
"""

import difflib

import keras

from fliqs_tf.models.efficientnet import efficientnet_b0
from fliqs_tf.models.efficientnet import efficientnet_b1
from fliqs_tf.models.efficientnet import efficientnet_b2
from fliqs_tf.models.efficientnet import efficientnet_b3
from fliqs_tf.models.efficientnet import efficientnet_b4
from fliqs_tf.models.inception import inception_v3
from fliqs_tf.models.mlperf_tiny import mlperf_tiny_mobilenet_v1
from fliqs_tf.models.mlperf_tiny import mlperf_tiny_resnet8
from fliqs_tf.models.mobilenet import mobilenet_v2
from fliqs_tf.models.residual import residual_small
from fliqs_tf.models.resnet import resnet18
from fliqs_tf.models.resnet import resnet20
from fliqs_tf.models.resnet import resnet34
from fliqs_tf.models.resnet import resnet50
from fliqs_tf.models.resnet import resnet56
from fliqs_tf.models.vision_transformer import deit

_BUILDERS = {
    builder.__name__: builder
    for builder in (
        deit,
        efficientnet_b0,
        efficientnet_b1,
        efficientnet_b2,
        efficientnet_b3,
        efficientnet_b4,
        inception_v3,
        mlperf_tiny_mobilenet_v1,
        mlperf_tiny_resnet8,
        mobilenet_v2,
        residual_small,
        resnet18,
        resnet20,
        resnet34,
        resnet50,
        resnet56,
    )
}


def names() -> tuple[str, ...]:
    """Names that `get` takes, in alphabetical order."""
    return tuple(sorted(_BUILDERS))


def get(name: str, /, **arguments) -> keras.Model:
    """Builds a network of the zoo by its name.

    Args:
        name: One of `names()`.
        **arguments: Passed to the builder of that name, for example
            `input_shape`, `classes` and `width`; `name=` is the name of the
            model, where the zoo's will not do.

    Returns:
        An untrained functional model that returns logits.

    Raises:
        ValueError: There is no such network, or an argument is out of range.
        TypeError: The builder has no such argument.
    """
    if name not in names():
        nearest = difflib.get_close_matches(
            str(name), _BUILDERS, n=1, cutoff=0.0
        )
        raise ValueError(
            f"`name` must be one of {', '.join(names())}. Nearest: "
            f"{nearest[0]}. Received: name={name!r}"
        )
    return _BUILDERS[name](**arguments)


__all__ = ["get", "names", *_BUILDERS]
