"""Common sets of rules for `to_searchable` and `SearchModel`.

Rules of one's own stand before them, as the first that matches decides:
`rules=(Rule(path="stem"), *rules.weights_only())`.
"""

import re
from collections.abc import Sequence

import keras

from fliqs_tf.layers.base import searchable_layers
from fliqs_tf.space import Rule

# The paper searches every layer, the first and the last too.
PAPER: tuple[Rule, ...] = ()


def first_and_last(
    model: keras.Model, formats: str | Sequence[str] = "int8"
) -> tuple[Rule, ...]:
    """The hardware convention: the first and the last layer at 8 bits.

    Args:
        model: The model to be converted. First and last are meant in the order
            of its layers; embeddings, which look up, do not count.
        formats: Format of the two; for a space of floats `"e4m3"`, say.
    """
    paths = [
        path
        for path, layer in searchable_layers(model).items()
        if not isinstance(layer, keras.layers.Embedding)
    ]
    ends = dict.fromkeys([*paths[:1], *paths[-1:]])
    return tuple(Rule(path=re.escape(path), formats=formats) for path in ends)


def weights_only() -> tuple[Rule, ...]:
    """All layers are searched; their inputs stay unquantized."""
    return (Rule(input_formats=None),)


def apart() -> tuple[Rule, ...]:
    """All layers are searched, with a decision for weights and one for inputs.

    The decision for inputs has the options of the weights.
    """
    return (Rule(input_formats="apart"),)
