"""What an export did, layer by layer, read back from the written file."""

import dataclasses
import math
import os
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from fliqs_tf.export import weights
from fliqs_tf.export.agreement import Agreement
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.graph import type_name
from fliqs_tf.formats import Format
from fliqs_tf.formats import get_format
from fliqs_tf.layers.base import SearchableLayer

MISSING = "none"
# The type that codes into a table have; no weight is stored as plain UINT8.
_INDEX_TYPE = "UINT8"
_PACKED = ("INT2", "INT4")
# Width of the widest type but float32.
_HALF = 16


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """How one layer stands in the file.

    Args:
        path: Path of the layer.
        kind: Class of the layer.
        weight_format: Format asked for the weights.
        input_format: Format asked for the inputs, `None` for unquantized.
        stored_type: LiteRT type of the weights, `"INT4 packed"` for example.
        stored_input: What the file does with the inputs.
        weight_bytes: Bytes of the weights in the file, scales apart.
        theoretical_bytes: Bytes of the weights at exactly the asked width.
        why: Why the stored type is not the asked format; empty if it is.
    """

    path: str
    kind: str
    weight_format: str
    input_format: str | None
    stored_type: str
    stored_input: str
    weight_bytes: int
    theoretical_bytes: int
    why: str

    @classmethod
    def of(
        cls,
        path: str,
        layer: SearchableLayer,
        stored_type: str,
        stored_input: str,
        weight_bytes: int,
        why: str,
    ) -> "LayerReport":
        """Joins what a file holds of a layer to what the layer itself says.

        `layer` is that of the fixed model, the others are fields.
        """
        weight_format, input_format = asked_formats(layer)
        count = count_weights(layer)
        bits = get_format(weight_format).bits
        least = math.ceil(count * bits / 8)
        if not count:
            why = "a product of activations has no weights"
        elif stored_type == MISSING:
            why = "The converter left no constant that equals this kernel."
        # Values of wider formats may all fit into 16 bits.
        elif weight_bytes < count * min(bits, _HALF) / 8:
            why = (
                "The converter left no constant that equals one of the "
                "kernels, which stays in float32."
            )
        return cls(
            path=path,
            kind=type(layer).__name__,
            weight_format=weight_format,
            input_format=input_format,
            stored_type=stored_type,
            stored_input=stored_input,
            weight_bytes=weight_bytes,
            theoretical_bytes=least,
            why=why,
        )


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """The result of `export_tflite`.

    Args:
        path: The file.
        activations: Mode of the export.
        containers: `"small"`, `"fast"` or `"float32"`.
        file_bytes: Size of the file.
        float32_bytes: Size of the model's weights in float32.
        verification: The comparison with what the file is meant to compute:
            the fixed model with its inputs in the containers of the mode.
        trained: The comparison with the fixed model as it was trained.
        reference_kernels: The comparison, as `verification`, of a run in the
            reference kernels; what they lack if the file does not run there;
            `None` if it was not asked for.
        mismatch_allowed: Whether a file outside the tolerance was asked for.
        layers: The quantized layers, in the order of the model.
    """

    path: str
    activations: str
    containers: str
    file_bytes: int
    float32_bytes: int
    verification: Agreement
    trained: Agreement
    reference_kernels: Agreement | str | None
    mismatch_allowed: bool
    layers: tuple[LayerReport, ...]

    @classmethod
    def of(
        cls,
        path: str | os.PathLike,
        fixed: keras.Model,
        activations: str,
        containers: str,
        content: bytes,
        found: Mapping[str, Agreement],
        layers: Iterable[LayerReport],
        mismatch_allowed: bool,
        reference_kernels: Agreement | str | None = None,
    ) -> "ExportReport":
        """Takes sizes from the bytes of the file and from the fixed model.

        `found` has comparisons by name: `"verification"`, and `"trained"` if
        that was another one. The others are fields.
        """
        return cls(
            path=str(path),
            activations=activations,
            containers=containers,
            file_bytes=len(content),
            float32_bytes=float32_bytes(fixed),
            verification=found["verification"],
            trained=found.get("trained", found["verification"]),
            reference_kernels=reference_kernels,
            mismatch_allowed=mismatch_allowed,
            layers=tuple(layers),
        )

    @property
    def max_relative_error(self) -> float:
        return self.verification.max_relative_error

    @property
    def samples(self) -> int:
        return self.verification.samples

    @property
    def argmax_agreement(self) -> int:
        return self.verification.argmax_agreement

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `json.dump` takes."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        text = (
            f"{self.path}: {self.file_bytes:,} bytes (weights in float32: "
            f"{self.float32_bytes:,}), activations={self.activations}. "
            f"Against what it is to compute, {self.verification}."
        )
        if self.trained is not self.verification:
            text += f" Against the trained model, {self.trained}."
        if self.reference_kernels is not None:
            text += f" In the reference kernels: {self.reference_kernels}."
        return text


def read_layer(
    graph: Graph,
    path: str,
    layer: SearchableLayer,
    tensors: Sequence[int],
    activations: str,
    containers: str = "small",
) -> LayerReport:
    """Describes a layer by what a file holds of it.

    Args:
        graph: The file, parsed.
        path: Path of the layer.
        layer: Layer of the fixed model.
        tensors: Numbers of the tensors that hold its weights.
        activations: Mode of the export.
        containers: Kind of containers.
    """
    weight_format, input_format = asked_formats(layer)
    bits = _stored_bits(graph, layer, tensors)
    types = {type_name(graph.tensors[tensor].type) for tensor in tensors}
    stored_type = _stored_type(types, bits)
    reader = weights.reader(graph, tensors[0]) if tensors else None
    return LayerReport.of(
        path,
        layer,
        stored_type,
        _stored_input(graph, reader, input_format, activations),
        sum(graph.size(tensor) for tensor in tensors),
        _why(get_format(weight_format), stored_type, bits, containers),
    )


def count_weights(layer: SearchableLayer) -> int:
    """Number of weights in the kernels of a layer."""
    kernels, _ = layer.shapes(layer)
    return sum(math.prod(shape) for shape, _ in kernels)


def asked_formats(layer: SearchableLayer) -> tuple[str, str | None]:
    """Format of the weights and of the inputs of a fixed layer."""
    quantizer = layer.input_quantizer
    inputs = None if quantizer is None else quantizer.formats[0]
    return layer.formats[0], inputs


def float32_bytes(model: keras.Model) -> int:
    """Bytes of a model's weights in float32, scalar state apart."""
    shapes = [w.shape for w in model.weights if len(w.shape)]
    return 4 * int(sum(np.prod(shape) for shape in shapes))


def _stored_bits(graph, layer, tensors) -> int:
    """Bits that a weight takes, 0 where there is none."""
    if not tensors:
        return 0
    # A layer that is used twice, between different norms, is stored twice.
    copies = max(1, len(tensors) // len(layer.kernels))
    stored = sum(graph.size(tensor) for tensor in tensors)
    return math.ceil(stored * 8 / copies / count_weights(layer) - 0.5)


def _stored_type(types, bits):
    if not types:
        return MISSING
    if types == {_INDEX_TYPE}:
        return f"{_INDEX_TYPE} table of {bits}-bit codes"
    # The kernels of one layer may stand in several.
    return " and ".join(
        f"{name} packed" if name in _PACKED else name for name in sorted(types)
    )


def _stored_input(graph, reader, input_format, activations):
    if reader is not None:
        tensor = graph.tensors[weights.data_input(graph, reader)]
        kind = type_name(tensor.type)
        if tensor.quantization is None and kind != "FLOAT32":
            return f"{kind} indices"
        if kind != "FLOAT32":
            text = f"{kind}, scale {tensor.quantization.scale[0]:.4g}"
            if input_format == kind.lower():
                return text
            return f"{text}, trained as {input_format}"
        place = weights.kernel_input(graph, reader)
        stored = graph.tensors[int(reader.inputs[place])]
        if type_name(stored.type) != "FLOAT32":
            return "FLOAT32 quantized to INT8 at each call"
    if input_format in (None, "fp32"):
        return "FLOAT32"
    if activations == "fake_quant":
        return f"FLOAT32 rounded to {input_format}"
    return "FLOAT32 not rounded"


def _why(fmt: Format, stored_type: str, bits: int, containers: str) -> str:
    if bits == fmt.bits:
        return ""
    if bits < fmt.bits:
        return (
            f"{stored_type} holds each of these weights, if not each value of "
            "the format."
        )
    if stored_type == "FLOAT32" and containers == "float32":
        return "`containers='float32'` asked for plain values."
    if containers == "fast":
        return (
            "The fast kernels read INT8, FLOAT16 and FLOAT32 weights only: "
            f"{stored_type} is the smallest of these that holds the format. "
            "`containers='small'` takes less room and more time."
        )
    if stored_type == "FLOAT32":
        return "No smaller LiteRT type holds every value of the format."
    return (
        f"LiteRT has no type of {fmt.bits} bits that holds the format: "
        f"the codes stand in {bits}."
    )
