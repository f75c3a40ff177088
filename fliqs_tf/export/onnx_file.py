"""Export of a fixed model to an `.onnx` file that has been run."""

import os
from typing import Any

import keras

from fliqs_tf.choices import check_choice
from fliqs_tf.export import agreement
from fliqs_tf.export import checks
from fliqs_tf.export import export_report
from fliqs_tf.export import file_metadata
from fliqs_tf.export import litert
from fliqs_tf.export import modes
from fliqs_tf.export import onnx_graph
from fliqs_tf.export import onnx_inputs
from fliqs_tf.export import onnx_trace
from fliqs_tf.export import onnx_weights
from fliqs_tf.export import partial_file
from fliqs_tf.export import twin
from fliqs_tf.export import verify
from fliqs_tf.export.agreement import RMS
from fliqs_tf.export.agreement import Bounds
from fliqs_tf.export.export_report import ExportReport
from fliqs_tf.export.export_report import LayerReport
from fliqs_tf.export.modes import ACCURACY_DROP
from fliqs_tf.export.onnx_runner import OnnxRunner
from fliqs_tf.formats import get_format

ACTIVATIONS = ("float", "fake_quant")
# The only kind there is here, in the words of `export_tflite`.
CONTAINERS = "small"
# Operands are scaled before they are multiplied, not after as in training: a
# last bit may carry a value across a rounding boundary of the next layer, and
# deep networks of few bits amplify that. Networks measured had errors of 1e-7.
RMS_TOLERANCE = 0.02


def export_onnx(
    fixed: keras.Model,
    path: str | os.PathLike,
    activations: str = "float",
    verify_data: Any = None,
    tolerance: float | None = None,
    allow_mismatch: bool = False,
    accuracy_drop: float = ACCURACY_DROP,
) -> ExportReport:
    """Writes a fixed model as an ONNX file and proves that it behaves.

    As `export_tflite`: the file is written beside its final name, run in ONNX
    Runtime (on the CPU, with the optimisations that users get by default) over
    the verify data, compared with the Keras model, and only then renamed.

    Weights are stored in the smallest ONNX type that holds their values
    exactly and decoded by DequantizeLinear, a scale for each output channel:
    INT4 up to `int4`, INT8 up to `int8` (and for float formats whose values
    are as few multiples of one step, such as `e2m1`), INT16, FLOAT8E4M3FN,
    FLOAT8E5M2; FLOAT16 or BFLOAT16 behind a Cast; FLOAT for the rest. The set
    of operators is 18, or the first one that has the types: 19 for FLOAT8, 21
    for INT4 and INT16. Batch norm is folded into convolutions.

    Modes:

    - `"float"`: inputs of layers not rounded.
    - `"fake_quant"`: inputs rounded as in training, by QuantizeLinear and
      DequantizeLinear with the ranges learned in training: INT8 or INT16
      (UINT8 or UINT16 for grids without sign or with a zero point) after a
      Clip to the grid's own ends, FLOAT8E4M3FN for `e4m3fn`, FLOAT8E5M2 for
      `e5m2_ocp`, Casts for `bf16` and `fp16`. Runtimes may compute such layers
      in integers; but not products and convolutions with `int8` weights, whose
      sums ONNX Runtime saturates on CPUs without VNNI. Other formats of inputs
      have no type in ONNX. Recurrent layers, one step after another in both
      modes, round the state of each.

    Needs the extra `fliqs_tf[onnx]`.

    Example:

    >>> report = export_onnx(fixed, "model.onnx", "fake_quant", images)
    >>> report.layers[0].stored_type
    'INT4'

    Args:
        fixed: Built Functional or Sequential model in which every quantized
            layer has one format.
        path: File to write; an existing one is replaced.
        activations: The mode.
        verify_data: See `export_tflite`.
        tolerance: Largest error. In `"float"` of any value relative to the
            largest magnitude of its output, and the argmax must agree (default
            1e-4). In `"fake_quant"` the RMS of the error relative to that of
            the output (default 0.02).
        allow_mismatch: Whether to keep a file outside the tolerances.
        accuracy_drop: Largest loss of accuracy in `"fake_quant"`, as a
            fraction; needs labels.

    Returns:
        What was stored and how well it agrees.

    Raises:
        ImportError: If a package of the extra is missing.
        ValueError: If an argument is not as described, or ONNX has no operator
            for a layer or no type for the format of its inputs.
        RuntimeError: If the file disagrees with the model.
        OSError: If the file cannot be written.
    """
    path = checks.check_path(path)
    checks.check_model(fixed)
    check_choice("activations", activations, ACTIVATIONS)
    onnx_graph.check_packages()
    if activations == "fake_quant":
        modes.check_learned_ranges(fixed, activations)
    given, fixed = fixed, twin.uncompiled(fixed)
    head, batches, data = verify.first_batches(verify_data, fixed)
    checks.check_call(given, fixed, head[0].inputs)
    checks.check_copy(fixed, head[0].inputs)
    references = _references(fixed, activations, tolerance, accuracy_drop)
    marks = onnx_inputs.Marks()
    graph = _convert(fixed, activations, marks)
    kernels = modes.kernels_of(fixed)
    graph.raise_opset(
        max(
            [onnx_weights.container_of(kernel).opset for kernel in kernels]
            + [grid.opset for grid in marks.grids],
            default=0,
        )
    )
    marks.replace(graph)
    stored = onnx_weights.store(graph, kernels)
    content = graph.to_bytes()
    layers = twin.fixed_layers(fixed)
    with partial_file.beside(path) as partial:
        partial_file.write(partial, content, path)
        runner = OnnxRunner(partial.read_bytes(), litert.input_names(fixed))
        found = verify.compare(runner, references, batches, data)
        passed = all(made.passed for made in found.values())
        if not (passed or allow_mismatch):
            meant, bounds = references["verification"]
            where = onnx_trace.first_deviation(
                graph, stored, marks, meant, head[0].inputs, bounds
            )
            raise RuntimeError(
                agreement.mismatch(path, activations, found, where)
            )
        file_metadata.attach(
            graph,
            {p: export_report.asked_formats(la) for p, la in layers.items()},
            activations,
            CONTAINERS,
            found,
            allow_mismatch,
            onnx_graph.PACKAGES,
        )
        content = graph.to_bytes()
        partial_file.write(partial, content, path)
        partial_file.keep(partial, path)
    return ExportReport.of(
        path,
        fixed,
        activations,
        CONTAINERS,
        content=content,
        found=found,
        layers=[
            _read_layer(graph, path, layer, stored, marks)
            for path, layer in layers.items()
        ],
        mismatch_allowed=allow_mismatch,
    )


def _references(fixed, activations, tolerance, accuracy_drop):
    if activations == "float":
        return modes.references(fixed, "float", tolerance, accuracy_drop)
    limit = RMS_TOLERANCE if tolerance is None else tolerance
    bounds = Bounds(limit, RMS, accuracy_drop)
    return {"verification": (twin.float32_reference(fixed), bounds)}


def _convert(fixed, activations, marks):
    if activations == "float":
        model = twin.float_twin(fixed)
    else:
        model = twin.marked_twin(fixed, marks.quantizer)
    return onnx_graph.convert(model, fixed)


def _read_layer(graph, path, layer, stored, marks) -> LayerReport:
    """Describes a layer by what the file holds of it."""
    fmt = get_format(layer.formats[0])
    own = {s.tensor: s for s in stored if s.kernel.path == path}
    types = sorted({s.container.type_name for s in own.values()})
    stored_type = "/".join(types) or export_report.MISSING
    sizes = [graph.size(tensor) for tensor in own]
    least = export_report.count_weights(layer) * fmt.bits
    why = ""
    if "FLOAT" in types and fmt.name != "fp32":
        why = "No smaller ONNX type holds every value of these weights."
    elif 8 * sum(sizes) > least + 8 * len(sizes):
        why = (
            f"ONNX has no type of {fmt.bits} bits that holds the format: the "
            f"codes stand in {stored_type}."
        )
    return LayerReport.of(
        path, layer, stored_type, marks.description(path), sum(sizes), why
    )
