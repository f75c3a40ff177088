"""Where an ONNX file begins to differ from its reference.

As in `trace.py` the inputs of layers with weights are compared.
"""

from collections.abc import Sequence

import keras
import numpy as np

from fliqs_tf.export import layer_inputs
from fliqs_tf.export import litert
from fliqs_tf.export import output_errors
from fliqs_tf.export.agreement import Bounds
from fliqs_tf.export.onnx_graph import OnnxGraph
from fliqs_tf.export.onnx_inputs import Marks
from fliqs_tf.export.onnx_runner import OnnxRunner
from fliqs_tf.export.onnx_weights import Stored


def first_deviation(
    graph: OnnxGraph,
    stored: Sequence[Stored],
    marks: Marks,
    reference: keras.Model,
    arrays: Sequence[np.ndarray],
    bounds: Bounds,
) -> str:
    """A sentence that names the first layer whose inputs deviate.

    Args:
        graph: The file.
        stored: Its weights.
        marks: Its rounded inputs.
        reference: What it is to compute.
        arrays: A batch, of which the first sample is run.
        bounds: How large an RMS error counts.
    """
    sample = [array[:1] for array in arrays]
    expected = layer_inputs.inputs_of_layers(reference, sample)
    rounded = {path for path, _ in marks.sources}
    names = [
        (s.kernel.path, s.node.input[0])
        for s in stored
        if s.kernel.path not in rounded and s.node.op_type != "Gather"
    ]
    names += marks.sources
    # Layers may share a tensor, which is an output once.
    outputs = list(dict.fromkeys(name for _, name in names))
    content = graph.with_outputs(outputs)
    runner = OnnxRunner(content, litert.input_names(reference))
    results = runner(sample)
    values = dict(zip(outputs, results[len(results) - len(outputs) :]))
    found = {
        path: min(errors)
        for path, name in names
        if (errors := _errors(values[name], expected.get(path, [])))
    }
    deviating = [p for p in expected if found.get(p, 0) > bounds.tolerance]
    if deviating:
        path = deviating[0]
        return (
            f"The first deviation is in front of layer {path!r}: its inputs "
            f"have an RMS error of {found[path]:.3g}."
        )
    return (
        "The inputs of all quantized layers agree (with these as outputs, "
        "which the runtime may compute otherwise)."
    )


def _errors(value, calls):
    """RMS errors against the calls of a layer, channels moved to the end."""
    return [
        output_errors.rms_error(moved.reshape(x.shape), x)
        for x in calls
        for moved in (value, np.moveaxis(value, 1, -1))
        if value.size == x.size
    ]
