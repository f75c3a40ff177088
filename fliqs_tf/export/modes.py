"""Activation modes: what a file computes, and what it is compared with."""

from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np

from fliqs_tf.export import integer
from fliqs_tf.export import ranges
from fliqs_tf.export import twin
from fliqs_tf.export import unfolded
from fliqs_tf.export import weights
from fliqs_tf.export.agreement import ACCURACY
from fliqs_tf.export.agreement import MAX
from fliqs_tf.export.agreement import RMS
from fliqs_tf.export.agreement import Bounds
from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.graph import TensorType
from fliqs_tf.export.layer_inputs import inputs_of_layers
from fliqs_tf.formats import get_format

ACTIVATIONS = ("float", "fake_quant", "int8", "int16", "dynamic")
# Different order of summation in float32, with room for deep networks.
TOLERANCE = 1e-4
# Integer arithmetic rounds what training did not: sums of branches, pooled
# maps, outputs. Where labels tell a file from one that names one class always
# (`Agreement.labels_tell`), the accuracy against the fixed model decides, by
# this fraction of the samples: how much rounding a network bears is its own
# affair. Elsewhere the RMS of the error does; ResNets of 8 to 20 layers and
# random weights have 0.02 to 0.06 with INT8.
ACCURACY_DROP = 0.01
INTEGER_TOLERANCE = 0.1

STATIC_BITS = {"int8": 8, "int16": 16}


def references(
    fixed: keras.Model,
    activations: str,
    tolerance: float | None,
    accuracy_drop: float,
    unrounded: Collection[str] = (),
) -> dict[str, tuple[keras.Model, Bounds]]:
    """What a file is compared with.

    Args:
        fixed: Fixed model.
        activations: Mode of the export.
        tolerance: Largest error; `None` for the default of the mode.
        accuracy_drop: Largest loss of accuracy against `fixed`.
        unrounded: What `unrounded_layers` finds in the file.

    Returns:
        `"verification"`: what the file is meant to compute, and how far it may
        be from that. `"trained"`: `fixed` with its own rounding of inputs, if
        that is another model; of this only the accuracy is judged, and only
        where the arithmetic is integer.
    """
    trained = twin.float32_reference(fixed)
    if activations == "fake_quant":
        bounds = Bounds(TOLERANCE if tolerance is None else tolerance, MAX)
        return {"verification": (trained, bounds)}
    if activations == "float":
        bounds = Bounds(TOLERANCE if tolerance is None else tolerance, MAX)
        # The rounding of inputs is left out on purpose.
        accuracy_drop = 1.0
    else:
        bounds = Bounds(INTEGER_TOLERANCE, ACCURACY)
        if tolerance is not None:
            bounds = Bounds(tolerance, RMS)
    if activations in STATIC_BITS:
        meant = twin.container_reference(fixed, activations, unrounded)
    else:
        meant = twin.weight_only_reference(fixed)
    return {
        "verification": (meant, bounds),
        "trained": (trained, Bounds(np.inf, RMS, accuracy_drop)),
    }


def unrounded_layers(
    graph: Graph, tensors: Mapping[str, Sequence[int]]
) -> list[str]:
    """Layers whose inputs a file leaves in float32.

    A layer may compute in float32 and read what was rounded to integers for
    others.

    Args:
        graph: The file.
        tensors: Path -> numbers of the tensors that hold a layer's weights.
    """
    producers = graph.producers

    def is_rounded(tensor):
        operator = producers.get(tensor)
        while operator and graph.builtin(operator) in ranges.MOVING:
            tensor = int(operator.inputs[0])
            operator = producers.get(tensor)
        if graph.tensors[tensor].type != TensorType.FLOAT32:
            return True
        return operator and graph.builtin(operator) == Builtin.DEQUANTIZE

    return [
        path
        for path, numbers in tensors.items()
        if not any(
            is_rounded(weights.data_input(graph, reader))
            for reader in (weights.reader(graph, n) for n in numbers)
            if reader is not None
        )
    ]


def convert(
    fixed: keras.Model,
    activations: str,
    containers: str,
    samples: Sequence[list[np.ndarray]],
) -> Graph:
    """Converts a fixed model.

    Args:
        fixed: Fixed model.
        activations: Mode of the export.
        containers: Kind of containers of the weights that stay in float.
        samples: Inputs to measure ranges on that training did not learn.
    """
    kernels = kernels_of(fixed)
    is_faithful = activations == "fake_quant"

    def make_twin(slots):
        if is_faithful:
            return twin.fake_quant_twin(fixed, slots)
        return twin.float_twin(fixed)

    graph = unfolded.convert(make_twin, fixed, kernels, is_faithful)
    if activations not in ("float", "fake_quant"):
        bits = STATIC_BITS.get(activations)
        graph = _integer(graph, fixed, kernels, bits, samples)
    weights.store(graph, kernels, containers)
    graph.shorten_names(fixed.name)
    return graph


def kernels_of(fixed: keras.Model) -> list[weights.Kernel]:
    """What is known about the weights of a fixed model."""
    return [
        _kernel(path, layer, operand)
        for path, layer in twin.fixed_layers(fixed).items()
        for operand in layer.operands_of(layer)
        if operand.kernel in layer.kernels
    ]


def _kernel(path, layer, operand) -> weights.Kernel:
    fmt = get_format(layer.formats[0])
    # Scales of groups within a channel are in the codes already.
    quantizer = layer.kernel_quantizers[operand.kernel]
    has_groups = isinstance(quantizer.granularity, int)
    if has_groups and not fmt.block_size:
        fmt = get_format("fp32")
    codes, _ = twin.normalized_codes(layer, operand.kernel)
    return weights.Kernel(path, fmt, codes, operand.inputs)


def _integer(graph, fixed, kernels, bits, samples):
    graph = Graph(graph.to_bytes())
    # The quantizer runs the file as it stands, and open sizes stand at 1.
    for tensor, array in zip(graph.inputs, samples[0], strict=True):
        graph.tensors[tensor].shape = [1, *array.shape[1:]]
    matches = weights.find(graph, kernels)
    found: dict[int, ranges.Range] = {}
    if bits is not None:
        learned = {
            key: limits
            for key, limits in twin.learned_ranges(fixed).items()
            if limits is not None
        }
        content = graph.to_bytes()
        # The runtime's kernels for 16 bits have no zero points.
        found = ranges.measured_ranges(
            graph, content, samples, is_symmetric=bits == 16
        )
        sample = [array[:1] for array in samples[0]]
        scalings = ranges.scalings_of(
            graph,
            content,
            matches,
            inputs_of_layers(twin.weight_only_reference(fixed), sample),
            sample,
        )
        found |= ranges.learned_ranges(graph, matches, learned, scalings)
    float_paths = [
        path
        for path, layer in twin.fixed_layers(fixed).items()
        if not twin.rounds_inputs(layer)
    ]
    return integer.quantize(graph, matches, float_paths, found, bits)


def check_products(fixed: keras.Model, activations: str) -> None:
    """Raises a `ValueError` if a mode lacks quantized products of attention."""
    products = [
        path
        for path, layer in twin.fixed_layers(fixed).items()
        if not layer.kernels
    ]
    if products and activations not in ("float", "fake_quant"):
        raise ValueError(
            "Quantized products of attention are exported in the modes float "
            f"and fake_quant. Received: activations={activations!r}, products "
            f"{products}. Choose one of these, or fix the same formats to the "
            "model without `fliqs.with_attention_products`."
        )


def check_ranges(fixed: keras.Model, activations: str) -> None:
    """Raises a `ValueError` if a static mode lacks ranges."""
    if activations in STATIC_BITS:
        check_learned_ranges(fixed, activations)


def check_learned_ranges(fixed: keras.Model, activations: str) -> None:
    """Raises a `ValueError` if an input range saw no data."""
    layers = twin.fixed_layers(fixed)
    # A range that saw nothing but zeros is as empty as one without data. Once
    # each, in the order of the model.
    missing = [
        *dict.fromkeys(
            path
            for (path, _), limits in twin.learned_ranges(fixed).items()
            if limits == (0, 0) and not layers[path].is_calibrated()
        )
    ]
    if missing:
        raise ValueError(
            f"`activations={activations!r}` needs input ranges that were "
            f"learned in training. Received: ranges without data in {missing}. "
            "Train the model, or call it on some batches with `training=True`."
        )
