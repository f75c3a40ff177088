"""Export of a fixed model to a `.tflite` file that has been run."""

import contextlib
import itertools
import os
import pathlib
import tempfile
from typing import Any

import keras

from fliqs_tf.export import export_report
from fliqs_tf.export import litert
from fliqs_tf.export import twin
from fliqs_tf.export import verify
from fliqs_tf.export import weights
from fliqs_tf.export.export_report import ExportReport
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.slots import Slots
from fliqs_tf.formats import get_format

ACTIVATIONS = ("float", "fake_quant")
# Different order of summation in float32, with room for deep networks.
TOLERANCE = 1e-4


def export_tflite(
    fixed: keras.Model,
    path: str | os.PathLike,
    activations: str = "float",
    verify_data: Any = None,
    tolerance: float = TOLERANCE,
    allow_mismatch: bool = False,
) -> ExportReport:
    """Writes a fixed model as a LiteRT file and proves that it behaves.

    The file is written beside its final name, run in the LiteRT interpreter
    over the verify data, compared with the Keras model, and only then renamed:
    a failure leaves nothing behind, and an older file as it was.

    Modes:

    - `"float"`: the quantized weights in small containers, inputs not rounded,
      batch norm folded. To be deployed. It is compared with `fixed` without
      its input quantizers.
    - `"fake_quant"`: the arithmetic of training, rounding of inputs included,
      in float32 operators; slow and larger. For verification: on the machine
      that exports, its outputs equal those of `fixed` called eagerly, but for
      operators that LiteRT computes by other float32 formulas (sigmoid, say):
      their last bits can carry a value across a rounding boundary.

    Example:

    >>> report = export_tflite(fixed, "model.tflite", verify_data=images)
    >>> report.max_relative_error < 1e-4
    True

    Args:
        fixed: Built Functional or Sequential model in which every quantized
            layer has one format. Without a quantized layer it is exported as
            a plain float model.
        path: File to write; an existing one is replaced.
        activations: `"float"` or `"fake_quant"`.
        verify_data: Inputs to compare on: an array `(samples, ...)`, one a
            model input in a list or dictionary, or a finite
            `tf.data.Dataset` of batches `x` or `(x, y)`. `None` for standard
            normal inputs of a fixed seed, which the report states.
        tolerance: Largest difference allowed, relative to the largest
            magnitude of the output.
        allow_mismatch: Whether to keep a file outside the tolerance, or with
            another argmax on some sample.

    Returns:
        What was stored and how well it agrees.

    Raises:
        ValueError: If an argument is not as described.
        RuntimeError: If the file disagrees with the model.
    """
    path = _check_path(path)
    _check_model(fixed)
    if activations not in ACTIVATIONS:
        raise ValueError(
            f"`activations` must be one of {', '.join(ACTIVATIONS)}. Received: "
            f"activations={activations!r}."
        )
    fixed = twin.uncompiled(fixed)
    batches, data = _batches(verify_data, fixed)
    if activations == "float":
        reference = twin.weight_only_reference(fixed)
    else:
        reference = twin.float32_reference(fixed)
    content = _convert(fixed, activations)
    with _beside(path) as partial:
        partial.write_bytes(content)
        written = partial.read_bytes()
        verification = verify.compare(
            written, reference, batches, data, tolerance
        )
        if not (verification.passed or allow_mismatch):
            raise RuntimeError(_mismatch(path, activations, verification))
        graph = Graph(written)
        layers = twin.fixed_layers(fixed).items()
        report = ExportReport(
            path=str(path),
            activations=activations,
            file_bytes=len(written),
            float32_bytes=export_report.float32_bytes(fixed),
            verification=verification,
            mismatch_allowed=allow_mismatch,
            layers=tuple(
                export_report.read_layer(graph, name, layer, activations)
                for name, layer in layers
            ),
        )
        os.replace(partial, path)
    return report


def _convert(fixed, activations) -> bytes:
    slots = Slots()
    is_faithful = activations == "fake_quant"
    if is_faithful:
        model = twin.fake_quant_twin(fixed, slots)
    else:
        model = twin.float_twin(fixed)
    graph = litert.convert(model, slots, fixed, is_faithful)
    kernels = [
        weights.Kernel(
            name, get_format(layer.formats[0]), twin.normalized_codes(layer)[0]
        )
        for name, layer in twin.fixed_layers(fixed).items()
    ]
    weights.store(graph, kernels)
    return graph.to_bytes()


def _batches(verify_data, model):
    if verify_data is None:
        batches, data = verify.random_batches(model), "random"
    else:
        batches, data = verify.batches_of(verify_data, model), "given"
    # Bad data is found before the conversion, which takes its time.
    return itertools.chain([next(batches)], batches), data


@contextlib.contextmanager
def _beside(path: pathlib.Path):
    """Yields a new file in the folder of `path`, removed if it is left."""
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".partial"
        )
    except OSError as error:
        raise ValueError(
            f"`path` must be in a folder that can be written. Received: "
            f"path={str(path)!r} ({error})."
        ) from error
    os.close(handle)
    try:
        yield pathlib.Path(name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)


def _check_path(path) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(
            f"`path` must name a file. Received: path={str(path)!r}, a folder. "
            "Add a file name, 'model.tflite' for example."
        )
    if not path.parent.is_dir():
        raise ValueError(
            "`path` must be in an existing folder. Received: "
            f"path={str(path)!r}. Create {str(path.parent)!r} first."
        )
    return path


def _check_model(model) -> None:
    if not isinstance(model, keras.Sequential | keras.src.models.Functional):
        raise ValueError(
            "`fixed` must be a Functional or Sequential model. Received: "
            f"{type(model).__name__}. Take the result of `to_fixed` or of "
            "`SearchModel.best_model()`."
        )
    if not model.built:
        raise ValueError(
            "`fixed` must be built. Received: a model without weights. Give it "
            "an `Input`, or call it once on a batch."
        )
    for tensor in model.inputs:
        if tensor.shape[0] is not None:
            raise ValueError(
                "Inputs of `fixed` must leave the batch dimension open. "
                f"Received: {tensor.name!r} of shape {tensor.shape}. Build the "
                "model with `keras.Input(shape)`, without a batch size."
            )
    unfixed = [
        path
        for path, layer in twin.fixed_layers(model).items()
        if not layer.is_fixed
    ]
    if unfixed:
        raise ValueError(
            "Every layer of `fixed` must have one format. Received: several "
            f"options in {unfixed}. Call `to_fixed(model, assignment)` first."
        )


def _mismatch(path, activations, verification) -> str:
    return (
        "The file must agree with the Keras model within "
        f"{verification.tolerance:g} of the largest output and have the same "
        "argmax. Received: "
        f"max_relative_error={verification.max_relative_error:.3g}, argmax "
        f"equal on {verification.argmax_agreement} and "
        f"{verification.deviating_samples} deviating of "
        f"{verification.samples} {verification.data} samples "
        f"(activations={activations!r}). {str(path)!r} was not written; pass "
        "`allow_mismatch=True` to keep such a file, or a larger `tolerance`."
    )
