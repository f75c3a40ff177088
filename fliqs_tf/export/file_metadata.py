"""What a file says about itself.

JSON in a metadata entry of the LiteRT schema, which interpreters ignore. It
travels with the file; what can be read from the file itself (types, bytes,
scales) is not repeated there.
"""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol

from fliqs_tf.export.agreement import Agreement
from fliqs_tf.export.graph import Graph
from fliqs_tf.files import finite

NAME = "fliqs_tf"
_LAYOUT = 1
_PACKAGES = ("fliqs_tf", "tensorflow", "keras")


class _File(Protocol):
    def set_metadata(self, name: str, content: bytes) -> None: ...


def attach(
    graph: _File,
    assignment: Mapping[str, tuple[str, str | None]],
    activations: str,
    containers: str,
    agreements: Mapping[str, Agreement],
    mismatch_allowed: bool,
    runtime: Sequence[str] = ("ai-edge-litert",),
) -> None:
    """Writes the metadata of an export into a file.

    Args:
        graph: The file.
        assignment: Path -> format of weights and of inputs.
        activations: Mode of the export.
        containers: Kind of containers.
        agreements: Name -> comparison that was made.
        mismatch_allowed: Whether a file outside the tolerance was asked for.
        runtime: Packages that converted it and ran it, besides TensorFlow.
    """
    packages = [*_PACKAGES, *runtime]
    content: dict[str, Any] = {
        "layout": _LAYOUT,
        "versions": {name: _version(name) for name in packages},
        "activations": activations,
        "containers": containers,
        "passed": all(found.passed for found in agreements.values()),
        "mismatch_allowed": mismatch_allowed,
        "agreements": {
            name: finite(dataclasses.asdict(found))
            for name, found in agreements.items()
        },
        "assignment": {path: list(pair) for path, pair in assignment.items()},
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    graph.set_metadata(NAME, text.encode())


def read(graph: Graph) -> dict[str, Any] | None:
    """Returns the metadata of a file, `None` if it is not of this package."""
    content = graph.metadata(NAME)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _version(package) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
