"""What a searchable model has to decide, and what was decided."""

from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np

from fliqs_tf.assignment import KINDS
from fliqs_tf.assignment import Assignment
from fliqs_tf.space import Decision


def model_decisions(
    layers: Mapping[str, keras.layers.Layer],
) -> list[tuple[Decision, list]]:
    """Decisions of searchable layers, each with the variables it sets.

    Layers of one `tie` share their decisions, which stand where the first of
    these layers does.

    Raises:
        ValueError: If tied layers have not the same options, or a tie has the
            name of a layer.
    """
    found: dict[tuple[str, str], tuple[tuple[str, ...], list, list[str]]] = {}
    for path, layer in layers.items():
        if layer.tie in layers:
            raise ValueError(
                "A tie needs a name that no layer has. Received: "
                f"tie={layer.tie!r}, of layer {path!r}."
            )
        for kind, (options, variables) in layer.choices().items():
            first = found.setdefault(
                (layer.tie or path, kind), (tuple(options), [], [])
            )
            if first[0] != tuple(options):
                raise ValueError(
                    "Tied layers need the same options. Received: "
                    f"tie={layer.tie!r} with {', '.join(first[0])} for "
                    f"{first[2][0]!r} and {', '.join(options)} for {path!r}."
                )
            first[1].extend(variables)
            first[2].append(path)
    return [
        (Decision(name, kind, options, tuple(paths)), variables)
        for (name, kind), (options, variables, paths) in found.items()
    ]


def assignment_of(
    decisions: Sequence[Decision], sample: Sequence[int] | np.ndarray
) -> Assignment:
    """The formats of a sample, `(decisions,)` option numbers, by layer."""
    layers: dict[str, dict[str, str | None]] = {}
    for decision, option in zip(decisions, sample, strict=True):
        name = decision.options[option]
        kinds = [decision.kind.removesuffix("_format")]
        if decision.kind == "format":
            kinds = list(KINDS)
        for path in decision.layers:
            entry = layers.setdefault(path, dict.fromkeys(KINDS))
            entry |= dict.fromkeys(kinds, name)
    return Assignment(layers)
