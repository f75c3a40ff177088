"""What is in a `.tflite` file, whoever wrote it."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Collection
from typing import Any

from fliqs_tf.export import file_metadata
from fliqs_tf.export import weights
from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.graph import builtin_name
from fliqs_tf.export.graph import type_name

# Operators that only decode weights.
_DECODERS = (
    Builtin.CAST,
    Builtin.DEQUANTIZE,
    Builtin.GATHER,
    Builtin.MUL,
    Builtin.RESHAPE,
    Builtin.SLICE,
    Builtin.TRANSPOSE,
)


@dataclasses.dataclass(frozen=True)
class WeightRow:
    """A tensor of weights, as the first operator reads it.

    Args:
        name: Path of the layer if this package wrote the file, else the name
            of the tensor that holds the weights.
        operator: Builtin operator that multiplies by them.
        uses: Number of operators that do: steps of a recurrent layer, say.
        weights: Number of weights.
        asked: Format asked for, `None` if the file does not say.
        asked_input: Format asked for the inputs, `None` likewise.
        stored_type: LiteRT type of the tensor.
        stored_bits: Bits that a weight takes, scales apart.
        stored_bytes: Bytes of the tensor.
        decoded: Whether they are decoded at each call, by operators.
        input_type: LiteRT type of what they are multiplied with.
        input_scale: Scale of an integer input, `None` for others.
    """

    name: str
    operator: str
    uses: int
    weights: int
    asked: str | None
    asked_input: str | None
    stored_type: str
    stored_bits: float
    stored_bytes: int
    decoded: bool
    input_type: str
    input_scale: float | None


@dataclasses.dataclass(frozen=True)
class FileReport:
    """A file.

    Args:
        path: The file.
        file_bytes: Its size.
        metadata: What this package wrote into it, `None` if it did not.
        rows: Tensors of weights, in the order in which they are read.
    """

    path: str
    file_bytes: int
    metadata: dict[str, Any] | None
    rows: tuple[WeightRow, ...]

    def __str__(self) -> str:
        stored = sum(row.stored_bytes for row in self.rows)
        text = (
            f"{self.path}: {self.file_bytes:,} bytes, of which weights "
            f"{stored:,}; "
        )
        if self.metadata is None:
            return (
                f"{text}without metadata of {file_metadata.NAME}: another tool "
                "wrote it, which formats were asked for is not known."
            )
        found = self.metadata
        versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
        text += (
            f"activations={found['activations']}, "
            f"containers={found['containers']}, written by {versions}."
        )
        for name, agreement in found["agreements"].items():
            text += f"\n{name}: " + ", ".join(
                f"{key}={value:.4g}"
                if isinstance(value, float)
                else f"{key}={value}"
                for key, value in agreement.items()
                if value is not None
            )
        if not found["passed"]:
            text += "\nThe file is OUTSIDE its tolerance (--allow_mismatch)."
        return text


def inspect(path: str | os.PathLike) -> FileReport:
    """Reads a `.tflite` file.

    Args:
        path: Any LiteRT file.

    Raises:
        ValueError: If there is no such file, or it is of another kind.
    """
    content = read_litert("path", path)
    graph = Graph(content)
    metadata = file_metadata.read(graph)
    assignment = metadata["assignment"] if metadata else {}
    return FileReport(
        path=str(path),
        file_bytes=len(content),
        metadata=metadata,
        rows=tuple(_rows(graph, assignment)),
    )


def read_litert(name: str, path: str | os.PathLike) -> bytes:
    """Reads the bytes of a LiteRT file.

    Args:
        name: Name of the argument that the path is, for the messages.
        path: The file.

    Raises:
        ValueError: If there is no such file, or it is of another kind.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(
            f"`{name}` must be a file. Received: {name}={str(path)!r}, which "
            "does not exist or is a folder."
        )
    content = path.read_bytes()
    # The identifier of the schema, behind the root's offset.
    if content[4:8] != b"TFL3":
        raise ValueError(
            f"`{name}` must be a LiteRT file. Received: {name}={str(path)!r}, "
            "which lacks the identifier 'TFL3'. Give a .tflite file."
        )
    return content


def _rows(graph, assignment) -> Collection[WeightRow]:
    producers = graph.producers
    paths = {
        tensor: path
        for path in assignment
        for tensor in weights.stored_tensors(graph, path)
    }
    found: dict[int, WeightRow] = {}
    for operator in graph.operators:
        place = weights.kernel_input(graph, operator)
        if place is None:
            continue
        read = int(operator.inputs[place])
        stored = _stored(graph, producers, read)
        if stored is None or _is_decoder(graph, producers, operator):
            continue
        if stored in found:
            row = found[stored]
            found[stored] = dataclasses.replace(row, uses=row.uses + 1)
            continue
        source = graph.tensors[weights.data_input(graph, operator)]
        path = paths.get(stored)
        asked, asked_input = assignment.get(path, (None, None))
        count = math.prod(int(size) for size in graph.tensors[read].shape)
        scale = source.quantization and source.quantization.scale
        has_scale = scale is not None and len(scale) == 1
        found[stored] = WeightRow(
            name=path or graph.name(stored),
            operator=builtin_name(graph.builtin(operator)),
            uses=1,
            weights=count,
            asked=asked,
            asked_input=asked_input,
            stored_type=type_name(graph.tensors[stored].type),
            stored_bits=8 * graph.size(stored) / count,
            stored_bytes=graph.size(stored),
            decoded=stored != read,
            input_type=type_name(source.type),
            input_scale=float(scale[0]) if has_scale else None,
        )
    return found.values()


def _is_decoder(graph, producers, operator) -> bool:
    """Whether a GATHER looks nothing up that was not known beforehand."""
    if graph.builtin(operator) != Builtin.GATHER:
        return False
    rank = len(graph.tensors[int(operator.inputs[0])].shape)
    indices = weights.data_input(graph, operator)
    # Of shapes and other lists too, single numbers are looked up.
    return rank < 2 or _stored(graph, producers, indices) is not None


def _stored(graph, producers, tensor) -> int | None:
    """The constant that a weight is decoded from; `None` if it is computed."""
    while graph.raw(tensor) is None:
        operator = producers.get(tensor)
        if operator is None or graph.builtin(operator) not in _DECODERS:
            return None
        # A table comes before the indices into it, a scale after the codes.
        is_table = graph.builtin(operator) == Builtin.GATHER
        tensor = int(operator.inputs[1 if is_table else 0])
    return tensor
