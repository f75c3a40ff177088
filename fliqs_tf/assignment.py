"""An assignment: which format each layer of a model has."""

import os
from collections.abc import Iterator
from collections.abc import Mapping

import keras

from fliqs_tf.files import read_json
from fliqs_tf.files import write_json
from fliqs_tf.formats import get_format
from fliqs_tf.layers.base import searchable_layers
from fliqs_tf.layers.searchable_layer import SearchableLayer

_VERSION = 1
KINDS = ("weight", "input")

# One format for weights and inputs, or one for each (`None`: unquantized).
Entry = str | dict[str, str | None]


class Assignment(Mapping[str, Entry]):
    """Ordered mapping from layer paths to formats, with a JSON form.

    Example:
    >>> Assignment({"stem": "int8", "head": {"weight": "int4", "input": None}})

    Args:
        layers: Path -> format name, or `{"weight": name, "input": name}` where
            the two differ; `None` for inputs leaves them unquantized.

    Raises:
        ValueError: If a format is unknown or an entry is of another form.
    """

    def __init__(self, layers: Mapping[str, Entry] = {}):  # noqa: B006
        self._layers = {
            path: _entry(path, entry) for path, entry in layers.items()
        }

    def __getitem__(self, path: str) -> Entry:
        return self._layers[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"Assignment({self._layers!r})"

    def formats(self, path: str) -> tuple[str, str | None]:
        """Returns the formats of a layer's weights and of its inputs."""
        entry = self._layers[path]
        if isinstance(entry, str):
            return entry, entry
        weight = entry["weight"]
        if weight is None:
            raise ValueError(
                "Weights have a format; 'fp32' leaves them as they are. "
                f"Received: {path!r}: {entry}."
            )
        return weight, entry["input"]

    @classmethod
    def uniform(cls, model: keras.Model, fmt: str) -> "Assignment":
        """Every layer of a model that can be searched at one format.

        In a searchable or fixed model, every searchable layer.
        """
        name = get_format(fmt).name
        found = searchable_layers(model)
        made = [p for p, la in found.items() if isinstance(la, SearchableLayer)]
        return cls(dict.fromkeys(made or found, name))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the JSON form, replacing the file at once."""
        write_json(path, {"version": _VERSION, "layers": self._layers})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Assignment":
        """Reads what `save` wrote.

        Raises:
            ValueError: If the file is not an assignment of a known version.
        """
        data = read_json(path)
        if not isinstance(data, dict) or data.get("version") != _VERSION:
            raise ValueError(
                f"Expected an assignment file of version {_VERSION}: an object "
                f'with "version" and "layers". Received: {path}.'
            )
        return cls(data.get("layers", {}))


def _entry(path: str, entry: Entry) -> Entry:
    if isinstance(entry, Mapping) and set(entry) == set(KINDS):
        weight, inputs = entry["weight"], entry["input"]
        if weight is not None:
            weight = get_format(weight).name
            inputs = None if inputs is None else get_format(inputs).name
            if weight == inputs:
                return weight
            return {"weight": weight, "input": inputs}
    elif isinstance(entry, str):
        return get_format(entry).name
    raise ValueError(
        "An entry is a format name or {'weight': name, 'input': name or None}."
        f" Received: {path!r}: {entry!r}."
    )
