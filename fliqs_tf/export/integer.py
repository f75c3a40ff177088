"""Integer arithmetic in a file, by `ai-edge-quantizer`.

The quantizer gets a recipe with an entry for every operator, and in place of a
calibration result a dictionary made here: the ranges of activations that were
learned in training, and the ranges of weights. A symmetric range `r` gives an
INT8 tensor the scale `r / 127` and no zero point, and a range `(low, high)` of
an unsigned or affine grid the scale `(high - low) / 255`: those of a trained
`int8` input. The range `scale * 127` (`scale * 7` for INT4) gives weights of
any width up to 8 bits the very scale they were trained with, so that nothing
is rounded twice.

What has no exact integer codes of up to 8 bits, float formats above all, stays
in float32 between DEQUANTIZE and QUANTIZE. So do operators that lose too much
in 8 bits: the arithmetic of layer norms, attention scores, softmax, and of
norms that bring the features of a matrix product to one scale.

INT2 is not used: the runtime computes convolutions with such weights wrongly.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from fliqs_tf.export import rounding
from fliqs_tf.export import weights
from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.quantization_recipe import QuantizationRecipe
from fliqs_tf.export.ranges import Range
from fliqs_tf.export.weights import Match

_LARGEST = {4: 7, 8: 127}
# Between the least and the greatest INT8.
_STEPS = 255
# Elementwise and moving operators that follow or precede convolutions.
_PLAIN = (
    Builtin.ADD,
    Builtin.AVERAGE_POOL_2D,
    Builtin.CONCATENATION,
    Builtin.HARD_SWISH,
    Builtin.LOGISTIC,
    Builtin.MAX_POOL_2D,
    Builtin.MEAN,
    Builtin.MUL,
    Builtin.PAD,
    Builtin.RESHAPE,
    Builtin.TANH,
)
# Of these, what the runtime has no kernel of 16 bits for.
_WITHOUT_INT16 = (Builtin.HARD_SWISH,)
_AFFINE = (Builtin.ADD, Builtin.MUL)
_WEIGHTED = (
    Builtin.CONV_2D,
    Builtin.DEPTHWISE_CONV_2D,
    Builtin.FULLY_CONNECTED,
)
# Where features are maps `(batch, height, width, channels)`; sequences, which
# have one dimension less, are normed and attended to in float32.
_SEQUENCE_RANK = 3
_BIAS_LIMIT = 2.0**30
_COPY = Builtin.RELU


def weight_bits(graph: Graph, match: Match) -> int | None:
    """Width of the integers that hold a kernel exactly: 4, 8 or `None`."""
    builtin = graph.builtin(match.operator)
    if builtin not in _WEIGHTED:
        return None
    levels = rounding.levels_of(match.kernel.fmt)
    # No kernel takes INT4 weights there.
    is_depthwise = builtin == Builtin.DEPTHWISE_CONV_2D
    for bits, largest in _LARGEST.items():
        if levels <= largest and not (bits == 4 and is_depthwise):
            return bits
    return None


def quantize(
    graph: Graph,
    matches: Sequence[Match],
    float_paths: Sequence[str],
    ranges: Mapping[int, Range],
    activation_bits: int | None,
) -> Graph:
    """Turns a float32 file into one that computes in integers.

    Args:
        graph: The file; names of tensors are changed.
        matches: Operators with the weights of quantized layers.
        float_paths: Layers that are to compute in float32.
        ranges: Tensor number -> range `(low, high)`.
        activation_bits: 8 or 16; `None` for float32 tensors that operators
            with integer weights quantize at each call (dynamic range).

    Returns:
        The quantized file. Weights that have no exact integer codes are still
        float32 constants in it.
    """
    # The import takes seconds, and only some exports need it.
    from ai_edge_quantizer import quantizer

    copies = _separate_outputs(graph)
    graph.make_names_unique()
    recipe = QuantizationRecipe(graph)
    names: dict[int, str] = {}
    statistics: dict[str, dict[str, np.ndarray]] = {}
    for match in matches:
        bits = weight_bits(graph, match)
        if bits is None or match.kernel.path in float_paths:
            continue
        scale = _scale(match, graph, ranges)
        if scale is None:
            continue
        if match.constant not in names:
            names[match.constant] = weights.unused_name(
                graph, match.kernel.path
            )
            graph.rename(match.constant, names[match.constant])
        statistics[names[match.constant]] = _weight_statistics(
            match, scale, bits
        )
        recipe.add(match.operator, bits, activation_bits)
    if activation_bits is not None:
        norms = feature_norms(graph, matches)
        for operator in plain_operators(graph, activation_bits):
            if not any(operator is norm for norm in norms):
                recipe.add(operator, 8, activation_bits)
        for tensor, limits in ranges.items():
            shape = [1] * len(graph.tensors[tensor].shape)
            low, high = _ends(limits, activation_bits)
            statistics[graph.name(tensor)] = {
                "min": np.full(shape, low),
                "max": np.full(shape, high),
            }
    names_of_copies = [graph.name(tensor) for tensor in copies]
    if recipe.entries:
        tool = quantizer.Quantizer(bytearray(graph.to_bytes()), recipe.entries)
        result = tool.quantize(statistics, enable_progress_report=False)
        graph = Graph(bytes(result.quantized_model))
    _join_outputs(graph, names_of_copies)
    return graph


def shared_outputs(graph: Graph) -> list[int]:
    """Outputs that operators read, or that are inputs, too.

    The tool would make integers of such a tensor and float32 of the output,
    and leave one of the two to read what it cannot.
    """
    read = {int(n) for o in graph.operators for n in o.inputs}
    return sorted(read.union(graph.inputs).intersection(graph.outputs))


def _separate_outputs(graph) -> list[int]:
    """Copies the shared outputs, and returns the copies."""
    copies = {}
    for tensor in shared_outputs(graph):
        source = graph.tensors[tensor]
        copies[tensor] = graph.add_tensor(
            f"{graph.name(tensor)}/output",
            source.type,
            source.shape,
            source.shapeSignature,
        )
        # Any operator that has no entry in the recipe, as it is never run.
        graph.append(_COPY, 1, [tensor], copies[tensor])
    graph.move_outputs(copies)
    return list(copies.values())


def _join_outputs(graph, names) -> None:
    """Makes outputs of what the copies of these names were made of."""
    for copy, operator in graph.producers.items():
        if graph.name(copy) in names:
            graph.move_outputs({copy: int(operator.inputs[0])})
            graph.operators.remove(operator)


def _scale(match, graph, ranges) -> np.ndarray | None:
    """Scale of each channel's integers, `None` if no bias fits with it."""
    step = rounding.step_of(match.kernel.fmt)
    scale = match.scale.astype(np.float64) * step
    if np.any(~match.is_zero):
        # Zeros have any scale; the bias of such a channel needs a fine one.
        scale = np.where(match.is_zero, scale[~match.is_zero].min(), scale)
    bias = None
    if len(match.operator.inputs) > 2 and match.operator.inputs[2] >= 0:
        bias = graph.constant(int(match.operator.inputs[2]))
    low, high = _ends(ranges.get(int(match.operator.inputs[0]), (0.0, 0.0)), 8)
    input_scale = (high - low) / _STEPS
    if bias is None or not input_scale:
        return scale
    # INT32 in units of the product of the scales.
    unit = scale * input_scale
    scale = np.where(
        match.is_zero, scale * np.maximum(1, np.abs(bias / unit)), scale
    )
    unit = scale * input_scale
    return scale if np.all(np.abs(bias) < _BIAS_LIMIT * unit) else None


def _ends(limits, bits) -> Range:
    """Values of the least and the greatest integer of a tensor."""
    low, high = limits
    if bits == 8 and low == -high:
        # One more integer below zero than above: no zero point, then.
        return low * (128 / 127), high
    return low, high


def _weight_statistics(match, scale, bits) -> dict[str, np.ndarray]:
    shape = [1] * match.codes.ndim
    shape[match.axis] = -1
    bound = (scale * _LARGEST[bits]).reshape(shape)
    return {"min": -bound, "max": bound}


def feature_norms(graph: Graph, matches: Sequence[Match]) -> list[Any]:
    """Operators that scale or shift each input of a matrix product by itself.

    Features of measured data may differ by orders of magnitude, and the small
    ones would be lost in the one scale of an integer tensor.

    Args:
        graph: The file.
        matches: Operators of quantized layers.
    """
    producers = graph.producers
    found = []
    for match in matches:
        if graph.builtin(match.operator) != Builtin.FULLY_CONNECTED:
            continue
        source = weights.data_input(graph, match.operator)
        while len(graph.tensors[source].shape) == 2:
            norm = producers.get(source)
            if norm is None or graph.builtin(norm) not in _AFFINE:
                break
            inputs = [int(number) for number in norm.inputs]
            computed = [n for n in inputs if graph.raw(n) is None]
            if len(computed) != 1:
                break
            found.append(norm)
            (source,) = computed
    return found


def plain_operators(graph: Graph, activation_bits: int) -> list[Any]:
    """Operators between convolutions that may as well be integer.

    Args:
        graph: The file.
        activation_bits: 8 or 16.
    """
    kept = []
    for operator in graph.operators:
        builtin = graph.builtin(operator)
        if builtin not in _PLAIN:
            continue
        if activation_bits == 16 and builtin in _WITHOUT_INT16:
            continue
        numbers = [int(n) for n in [*operator.inputs, *operator.outputs]]
        ranks = {
            len(graph.tensors[number].shape)
            for number in numbers
            if graph.raw(number) is None
        }
        if _SEQUENCE_RANK not in ranks:
            kept.append(operator)
    return kept
