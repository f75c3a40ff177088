"""Export of a fixed model to a `.tflite` file that has been run."""

import os
from typing import Any

import keras
import numpy as np

from fliqs_tf.choices import check_choice
from fliqs_tf.export import agreement
from fliqs_tf.export import checks
from fliqs_tf.export import export_report
from fliqs_tf.export import file_metadata
from fliqs_tf.export import modes
from fliqs_tf.export import partial_file
from fliqs_tf.export import trace
from fliqs_tf.export import twin
from fliqs_tf.export import verify
from fliqs_tf.export import weights
from fliqs_tf.export.agreement import Agreement
from fliqs_tf.export.containers import CONTAINERS
from fliqs_tf.export.export_report import ExportReport
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.modes import ACCURACY_DROP
from fliqs_tf.export.modes import ACTIVATIONS
from fliqs_tf.export.replay import Replay
from fliqs_tf.export.runner import Runner


def export_tflite(
    fixed: keras.Model,
    path: str | os.PathLike,
    activations: str = "float",
    verify_data: Any = None,
    tolerance: float | None = None,
    allow_mismatch: bool = False,
    accuracy_drop: float = ACCURACY_DROP,
    containers: str = "small",
    reference_kernels: bool = False,
) -> ExportReport:
    """Writes a fixed model as a LiteRT file and proves that it behaves.

    The file is written beside its final name, run in the LiteRT interpreter
    over the verify data, compared with the Keras model, and only then renamed:
    a failure leaves nothing behind, and an older file as it was. What was
    found travels in the file (`python -m fliqs_tf.bin.export --inspect`).

    Modes:

    - `"float"`: the quantized weights in small containers, inputs not rounded,
      batch norm folded. It is compared with `fixed` without its input
      quantizers.
    - `"int8"`: integer arithmetic with the input ranges learned in training,
      `range / 127` being the scale of a trained `int8` input. Weights that
      are integers of up to 8 bits, float formats such as `e2m1` among them,
      keep their exact scales; layers with others, or without a format for
      inputs, compute in float32. Inputs trained in fewer bits run in INT8 all
      the same: finer than trained, not equal. Tensors that training learned
      no range for are measured on the first `verify_data`.
    - `"int16"`: the same with activations of 16 bits; slow.
    - `"dynamic"`: integer weights; the runtime quantizes inputs at each call.
    - `"fake_quant"`: the arithmetic of training, rounding of inputs included,
      in float32 operators; slow and larger. For verification: on the machine
      that exports, its outputs equal those of `fixed` called eagerly, but for
      operators that LiteRT computes by other float32 formulas (softmax, layer
      norm): their last bits can carry a value across a rounding boundary. A
      sample that deviates for this reason alone, which is proved by calling
      `fixed` with the file's roundings, is counted apart and accepted.

    Example:

    >>> report = export_tflite(fixed, "model.tflite", verify_data=images)
    >>> report.max_relative_error < 1e-4
    True

    Args:
        fixed: Built Functional or Sequential model in which every quantized
            layer has one format. Without a quantized layer it is exported as
            a plain float model.
        path: File to write; an existing one is replaced.
        activations: The mode.
        verify_data: Inputs to compare on: an array `(samples, ...)`, one a
            model input in a list or dictionary, or batches `x` or `(x, y)`
            as a finite `tf.data.Dataset`, a `keras.utils.PyDataset` or an
            iterator that ends. Numbers must be finite. With class numbers
            from 0 or one-hot rows as `y`, accuracies are measured. `None` for
            standard normal inputs of a fixed seed, which the report states.
        tolerance: Largest error against what the file is meant to compute. In
            `"float"` and `"fake_quant"`, of any value relative to the largest
            magnitude of its output, and the argmax must agree (default 1e-4:
            float rounding). In the others, the RMS of the error relative to
            that of the output, the reference being `fixed` with its inputs
            rounded to the containers; by default 0.1. Where labels tell the
            file from one that names one class always, the accuracy decides
            instead: the file must also keep half of what the reference gains
            over that.
        allow_mismatch: Whether to keep a file outside the tolerances.
        accuracy_drop: Largest loss of accuracy against `fixed` in the modes
            with integer arithmetic, as a fraction; needs labels.
        containers: `"small"`: the fewest bytes, decoded at every call where
            LiteRT has no such type. `"fast"`: the types that the optimised
            float kernels read, INT8, FLOAT16 and FLOAT32; just as exact.
            `"float32"`: plain values, for tools that quantize themselves.
        reference_kernels: Whether the file is to be run in the reference
            kernels too, with the same tolerance. A file with operators that
            they lack is reported, not refused.

    Returns:
        What was stored and how well it agrees.

    Raises:
        ValueError: If an argument is not as described.
        RuntimeError: If the file disagrees with the model.
        OSError: If the file cannot be written.
    """
    path = checks.check_path(path)
    checks.check_model(fixed)
    check_choice("activations", activations, ACTIVATIONS)
    check_choice("containers", containers, CONTAINERS)
    modes.check_products(fixed, activations)
    modes.check_ranges(fixed, activations)
    given, fixed = fixed, twin.uncompiled(fixed)
    head, batches, data = verify.first_batches(verify_data, fixed)
    checks.check_call(given, fixed, head[0].inputs)
    checks.check_copy(fixed, head[0].inputs)
    samples = [batch.inputs for batch in head]
    graph = modes.convert(fixed, activations, containers, samples)
    content = graph.to_bytes()
    graph, tensors = _stored(content, fixed)
    references = modes.references(
        fixed,
        activations,
        tolerance,
        accuracy_drop,
        modes.unrounded_layers(graph, tensors),
    )
    assignment = {
        path: export_report.asked_formats(layer)
        for path, layer in twin.fixed_layers(fixed).items()
    }
    with partial_file.beside(path) as partial:
        partial_file.write(partial, content, path)
        content = partial.read_bytes()
        replay = None
        if activations == "fake_quant":
            meant, bounds = references["verification"]
            replay = Replay(content, meant, bounds.tolerance)
        found = verify.compare(
            Runner(content),
            references,
            batches,
            data,
            replay,
            is_exact=activations == "fake_quant",
        )
        plain = None
        if reference_kernels:
            # On the head alone: these kernels are slow.
            plain = _in_reference_kernels(content, references, head, data)
        agreements = dict(found)
        if isinstance(plain, Agreement):
            agreements["reference_kernels"] = plain
        passed = all(made.passed for made in agreements.values())
        if not (passed or allow_mismatch):
            meant, bounds = references["verification"]
            where = trace.first_deviation(
                content, meant, samples[0], list(assignment), bounds
            )
            raise RuntimeError(
                agreement.mismatch(path, activations, agreements, where)
            )
        file_metadata.attach(
            graph,
            assignment,
            activations,
            containers,
            agreements,
            allow_mismatch,
        )
        partial_file.write(partial, graph.to_bytes(), path)
        written = partial.read_bytes()
        _check_same(written, content, samples[0])
        graph, tensors = _stored(written, fixed)
        report = ExportReport.of(
            path,
            fixed,
            activations,
            containers,
            content=written,
            found=found,
            layers=[
                export_report.read_layer(
                    graph,
                    name,
                    layer,
                    tensors[name],
                    activations,
                    containers,
                )
                for name, layer in twin.fixed_layers(fixed).items()
            ],
            mismatch_allowed=allow_mismatch,
            reference_kernels=plain,
        )
        partial_file.keep(partial, path)
    return report


def _stored(content, fixed) -> tuple[Graph, dict[str, list[int]]]:
    """The file, parsed, and path -> tensors that hold a layer's weights."""
    graph = Graph(content)
    paths = twin.fixed_layers(fixed)
    return graph, {path: weights.stored_tensors(graph, path) for path in paths}


def _in_reference_kernels(content, references, head, data) -> Agreement | str:
    meant = {"verification": references["verification"]}
    try:
        runner = Runner(content, "reference")
        return verify.compare(runner, meant, iter(head), data)["verification"]
    except (RuntimeError, ValueError) as error:
        return f"not run: {str(error).strip().splitlines()[0]}"


def _check_same(written, proven, arrays) -> None:
    """The file that is kept must compute what the proven one computed."""
    pairs = zip(Runner(written)(arrays), Runner(proven)(arrays), strict=True)
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in pairs):
        raise RuntimeError(
            "Metadata must not change what a file computes. Received: another "
            "output after it was added. Please report this."
        )
