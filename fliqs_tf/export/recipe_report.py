"""What `ai-edge-quantizer` makes of a file by a recipe, layer by layer."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras

from fliqs_tf.export import export_report
from fliqs_tf.export import twin
from fliqs_tf.export.agreement import Agreement
from fliqs_tf.export.export_report import LayerReport
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.weights import Match


@dataclasses.dataclass(frozen=True)
class RecipeReport:
    """The result of `export_recipe`.

    Args:
        path: The recipe.
        float_file: The file that it is for.
        activations: Mode of the recipe.
        float_bytes: Size of that file.
        quantized_bytes: Size of what the recipe makes of it.
        verification: The comparison of the quantized file with the fixed model
            with its inputs in the containers of the mode.
        trained: The comparison with the fixed model as it was trained.
        layers: The quantized layers, in the order of the model, as they stand
            in the quantized file.
    """

    path: str
    float_file: str
    activations: str
    float_bytes: int
    quantized_bytes: int
    verification: Agreement
    trained: Agreement
    layers: tuple[LayerReport, ...]

    def __str__(self) -> str:
        text = (
            f"{self.path}: ai-edge-quantizer makes {self.quantized_bytes:,} "
            f"bytes of the {self.float_bytes:,} of {self.float_file}, "
            f"activations={self.activations}. Against what that is to "
            f"compute, {self.verification}. Against the trained model, "
            f"{self.trained}."
        )
        for row in self.layers:
            if row.why:
                text += f"\n{row.path}: {row.why}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `json.dump` takes."""
        return dataclasses.asdict(self)


def stored_tensors(
    graph: Graph,
    matches: Sequence[Match],
    fixed: keras.Model,
    quantized: Graph,
) -> dict[str, list[int]]:
    """Path -> tensors of a quantized file that hold a layer's weights.

    Args:
        graph: The float file, parsed.
        matches: Its operators of quantized layers.
        fixed: Fixed model.
        quantized: The quantized file, parsed.
    """
    tensors = {}
    for path in twin.fixed_layers(fixed):
        # A constant keeps its name.
        names = dict.fromkeys(
            graph.name(match.constant)
            for match in matches
            if match.kernel.path == path
        )
        found = map(quantized.find, names)
        tensors[path] = [number for number in found if number is not None]
    return tensors


def read_layers(
    quantized: Graph,
    tensors: Mapping[str, Sequence[int]],
    fixed: keras.Model,
    activations: str,
) -> tuple[LayerReport, ...]:
    """Describes the layers of a model by what the tool made of them.

    Args:
        quantized: The quantized file, parsed.
        tensors: What `stored_tensors` returns.
        fixed: Fixed model.
        activations: Mode of the recipe.
    """
    rows = [
        export_report.read_layer(
            quantized, path, layer, tensors[path], activations
        )
        for path, layer in twin.fixed_layers(fixed).items()
    ]
    return tuple(dataclasses.replace(row, why=_why(row)) for row in rows)


def _why(row: LayerReport) -> str:
    if row.weight_bytes < row.theoretical_bytes:
        return row.why
    if row.stored_type.removesuffix(" packed").lower() == row.weight_format:
        return ""
    if row.weight_format == "fp32":
        return ""
    text = (
        f"ai-edge-quantizer has no {row.weight_format} for this kind of "
        "operator: the weights "
    )
    if "FLOAT32" in row.stored_type:
        return f"{text}are left as {row.stored_type}."
    return f"{text}are rounded once more, to {row.stored_type}."
