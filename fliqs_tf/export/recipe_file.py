"""A recipe that makes `ai-edge-quantizer` apply an assignment by itself."""

import os
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from fliqs_tf import files
from fliqs_tf.choices import check_choice
from fliqs_tf.export import agreement
from fliqs_tf.export import checks
from fliqs_tf.export import file_report
from fliqs_tf.export import integer
from fliqs_tf.export import litert
from fliqs_tf.export import modes
from fliqs_tf.export import recipe_report
from fliqs_tf.export import twin
from fliqs_tf.export import verify
from fliqs_tf.export import weights
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.modes import ACCURACY_DROP
from fliqs_tf.export.quantization_recipe import QuantizationRecipe
from fliqs_tf.export.recipe_report import RecipeReport
from fliqs_tf.export.runner import Runner
from fliqs_tf.export.weights import Match
from fliqs_tf.formats import get_format

ACTIVATIONS = ("float", "dynamic", "int8", "int16")
# Of inputs that no range was learned for.
_ANY = (-1.0, 1.0)
# Half of INT32: measured ranges are not the learned ones.
_BIAS_LIMIT = 2.0**30


def export_recipe(
    fixed: keras.Model,
    path: str | os.PathLike,
    float_file: str | os.PathLike,
    activations: str = "float",
    verify_data: Any = None,
    tolerance: float | None = None,
    allow_mismatch: bool = False,
    accuracy_drop: float = ACCURACY_DROP,
) -> RecipeReport:
    """Writes a fixed model's formats as a recipe for `ai-edge-quantizer`.

    Whoever has the float file and the recipe (JSON) needs that tool alone:

        tool = ai_edge_quantizer.quantizer.Quantizer(float_file, path)
        ranges = tool.calibrate({"serving_default": inputs})
        tool.quantize(ranges).export_model("model.tflite")

    where `inputs` are dictionaries of input name -> array, and only `"int8"`
    and `"int16"` have ranges to measure. The recipe is applied here in the same
    way, what comes out is run in the LiteRT interpreter and compared with the
    Keras model, and only then the recipe is written.

    The tool knows integers, and takes the scale of a channel from its largest
    weight. So INT4 and INT8 weights, a scale for each channel, are what they
    were in training. Others of
    up to 8 bits that are multiples of one step (INT2, INT3, INT5 to INT7,
    E2M1, and INT4 in depthwise convolutions) get the next wider of the two and
    are rounded once more. Further formats, and layers that are no 2D
    convolution and no matrix product, stay FLOAT32. The report says so layer
    by layer. (INT2 is not used: in convolutions LiteRT 2.3 computes NaN.)

    Modes:

    - `"float"`: weights alone, decoded to float32.
    - `"dynamic"`: the runtime quantizes inputs at each call.
    - `"int8"`, `"int16"`: integer arithmetic, with ranges that the tool
      measures, not those that were learned. Layers without a format for their
      inputs, and those with a channel too small for its bias, compute in
      float32.

    Args:
        fixed: Built Functional or Sequential model in which every quantized
            layer has one format.
        path: File to write; an existing one is replaced.
        float_file: LiteRT file of the same model in float32. Either of `fixed`,
            `export_tflite(fixed, float_file, containers="float32")`, with
            weights that are rounded already; or of the plain Keras model with
            the weights that `fixed` rounds, `model.export(float_file,
            format="litert")`.
        activations: The mode.
        verify_data: See `export_tflite`; ranges are measured on its beginning.
        tolerance: Largest RMS of the error relative to that of the output; by
            default 0.1. Where labels tell, the accuracy decides instead, see
            `export_tflite`.
        allow_mismatch: Whether to keep a recipe outside the tolerances.
        accuracy_drop: Largest loss of accuracy against `fixed`, as a fraction;
            needs labels.

    Returns:
        What the recipe makes of the file, and how well that agrees.

    Raises:
        ValueError: If an argument is not as described, or the tool knows the
            format of no layer, or cannot quantize an output.
        RuntimeError: If the quantized file disagrees with the model.
        OSError: If the recipe cannot be written.
    """
    path = checks.check_path(path)
    checks.check_model(fixed)
    check_choice("activations", activations, ACTIVATIONS)
    modes.check_products(fixed, activations)
    modes.check_ranges(fixed, activations)
    content = file_report.read_litert("float_file", float_file)
    if path.exists() and path.samefile(float_file):
        raise ValueError(
            "`path` must be another file than `float_file`, which the recipe "
            f"is for. Received: path={str(path)!r}, the same file. Choose "
            "another name, 'recipe.json' for example."
        )
    given, fixed = fixed, twin.uncompiled(fixed)
    head, batches, data = verify.first_batches(verify_data, fixed)
    checks.check_call(given, fixed, head[0].inputs)
    checks.check_copy(fixed, head[0].inputs)
    graph = Graph(content)
    matches = _matches(graph, fixed, float_file)
    recipe = _recipe(graph, matches, fixed, activations)
    if not recipe.entries:
        raise ValueError(
            "A recipe is for integer weights of up to 8 bits of 2D "
            "convolutions and matrix products. Received: "
            f"{_formats(fixed)}. Use `export_tflite`, which stores these."
        )
    quantized = _apply(recipe, content, fixed, [b.inputs for b in head])
    made = Graph(quantized)
    tensors = recipe_report.stored_tensors(graph, matches, fixed, made)
    layers = recipe_report.read_layers(made, tensors, fixed, activations)
    # With "float" too, as weights may be rounded once more.
    references = modes.references(
        fixed,
        "dynamic" if activations == "float" else activations,
        tolerance,
        accuracy_drop,
        modes.unrounded_layers(made, tensors),
    )
    found = verify.compare(_runner(quantized, fixed), references, batches, data)
    if not (allow_mismatch or all(made.passed for made in found.values())):
        others = [row.path for row in layers if row.why]
        where = f"Layers that are stored otherwise than asked: {others}."
        raise RuntimeError(agreement.mismatch(path, activations, found, where))
    # A link stays one.
    files.write_json(path.resolve(), recipe.entries)
    return RecipeReport(
        path=str(path),
        float_file=str(float_file),
        activations=activations,
        float_bytes=len(content),
        quantized_bytes=len(quantized),
        verification=found["verification"],
        trained=found["trained"],
        layers=layers,
    )


def _formats(fixed) -> str:
    layers = twin.fixed_layers(fixed)
    return ", ".join(f"{p}: {la.formats[0]}" for p, la in layers.items())


def _matches(graph, fixed, float_file) -> list[Match]:
    """Operators of quantized layers, by their weights, rounded or not."""
    rounded = modes.kernels_of(fixed)
    layers = twin.fixed_layers(fixed)
    trained = [
        weights.Kernel(
            path,
            get_format(layer.formats[0]),
            np.asarray(getattr(layer.holder(layer), operand.kernel)),
            operand.inputs,
        )
        for path, layer in layers.items()
        for operand in layer.operands_of(layer)
        if operand.kernel in layer.kernels
    ]
    found = weights.find(graph, [*rounded, *trained])
    if not found:
        raise ValueError(
            "`float_file` must hold the weights of `fixed` in float32. "
            f"Received: float_file={str(float_file)!r}, in which no operator "
            f"has those of {list(layers)}. Write it by `export_tflite` with "
            "`containers='float32'`."
        )
    return found


def _recipe(graph, matches, fixed, activations) -> QuantizationRecipe:
    recipe = QuantizationRecipe(graph)
    bits = modes.STATIC_BITS.get(activations)
    layers = twin.fixed_layers(fixed)
    learned = twin.learned_ranges(fixed)
    integers = []
    for match in matches:
        width = integer.weight_bits(graph, match)
        if width is None:
            continue
        path = match.kernel.path
        is_weight_only = activations == "float"
        if bits is not None:
            limits = learned.get((path, match.kernel.inputs)) or _ANY
            is_weight_only = not (
                twin.rounds_inputs(layers[path])
                and _bias_fits(graph, match, width, bits, limits)
            )
            if not is_weight_only:
                integers.append(match.operator)
        recipe.add(
            match.operator,
            width,
            None if is_weight_only else bits,
            is_weight_only,
        )
    if bits is not None and recipe.entries:
        for operator in integer.plain_operators(graph, bits):
            recipe.add(operator, 8, bits)
            integers.append(operator)
    _check_outputs(graph, fixed, integers, activations)
    return recipe


def _check_outputs(graph, fixed, integers, activations) -> None:
    """Raises a `ValueError` for outputs that the tool leaves inconsistent."""
    tensors = {
        int(number)
        for operator in integers
        for number in [*operator.inputs, *operator.outputs]
    }
    _, _, outputs = _signature(graph, fixed)
    shared = tensors.intersection(integer.shared_outputs(graph))
    names = [name for name, tensor in outputs.items() if tensor in shared]
    if names:
        raise ValueError(
            "ai-edge-quantizer makes no integers of outputs that other layers "
            f"read. Received: activations={activations!r} and the outputs "
            f"{names}. Use `export_tflite`, `activations='dynamic'`, or a "
            "model without these outputs."
        )


def _bias_fits(graph, match, width, bits, limits) -> bool:
    """Whether the tool's INT32 holds the bias.

    Its unit is the product of the scales of input and weights; a channel of
    zeros, which a norm leaves of one that it switches off, has almost none.
    """
    inputs = match.operator.inputs
    if len(inputs) < 3 or inputs[2] < 0:
        return True
    bias = graph.constant(int(inputs[2]))
    constant = np.moveaxis(graph.constant(match.constant), match.axis, 0)
    largest = np.abs(constant.reshape(len(constant), -1)).max(axis=1)
    unit = largest / 2 ** (width - 1) * max(map(abs, limits)) / 2 ** (bits - 1)
    return bool(np.all(np.abs(bias) <= _BIAS_LIMIT * unit))


def _apply(recipe, content, fixed, samples) -> bytes:
    """The file that the tool makes."""
    from ai_edge_quantizer import quantizer

    tool = quantizer.Quantizer(bytearray(content), recipe.entries)
    key, inputs, _ = _signature(Graph(content), fixed)
    calls = [dict(zip(inputs, arrays, strict=True)) for arrays in samples]
    # Without entries that need them no ranges are measured.
    ranges = tool.calibrate({key: calls})
    result = tool.quantize(ranges, enable_progress_report=False)
    return bytes(result.quantized_model)


def _runner(
    content, fixed
) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Calls a file in the order of the model, which need not be its own."""
    graph, runner = Graph(content), Runner(content)
    _, inputs, outputs = _signature(graph, fixed)

    def call(arrays):
        given = dict(zip(inputs.values(), arrays, strict=True))
        received = runner([given[tensor] for tensor in graph.inputs])
        found = dict(zip(graph.outputs, received, strict=True))
        return [found[tensor] for tensor in outputs.values()]

    return call


def _signature(graph, fixed) -> tuple[str, dict[str, int], dict[str, int]]:
    """Key, inputs and outputs, by name in the order of the model."""
    names = litert.input_names(fixed), litert.output_names(fixed)
    # What Keras calls those that have no keys.
    numbered = [f"output_{place}" for place in range(len(fixed.outputs))]
    if graph.signature is not None:
        key, inputs, outputs = graph.signature
        for given in (names[1], numbered):
            if set(inputs) == set(names[0]) and set(outputs) == set(given):
                return (
                    key,
                    {name: inputs[name] for name in names[0]},
                    {name: outputs[name] for name in given},
                )
    raise ValueError(
        f"`float_file` must have a signature with the inputs {names[0]} and "
        f"the outputs {names[1]} or {numbered}. Received: {graph.signature}. "
        "Write it by `export_tflite` with `containers='float32'`."
    )
