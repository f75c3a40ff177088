"""Exports a trained network in every mode and measures its accuracy.

MLPerf Tiny's ResNet-8 (`pretrainedResnet.h5`, float, pixels 0 to 255), its
weights rounded without training and its ranges taken from training images, on
test images of CIFAR-10. Writes a table and the numbers behind it.

    python benchmarks/export_trained.py --model_file=pretrainedResnet.h5 \
        [--data_dir=...] [--images=10000] \
        [--output=docs/results/export_trained]
"""

import json
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import app
from absl import flags

import fliqs_tf as fliqs
from fliqs_tf.layers.base import searchable_layers

_MODEL = flags.DEFINE_string(
    "model_file", None, "Network of MLPerf Tiny.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", "docs/results/export_trained", "Files to write, without suffix."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS has cifar10.")
_IMAGES = flags.DEFINE_integer("images", 10000, "Test images.", lower_bound=64)
_CALIBRATION = 512

_MIXED = ("int4", "int5", "int6", "int7", "int8", "e2m1", "e3m2", "e4m3")


def _assignments(model):
    paths = list(searchable_layers(model))
    random = np.random.default_rng(0)
    mixed = {path: str(random.choice(_MIXED)) for path in paths}
    # Weights and inputs of 4 bits but at both ends, as papers do.
    narrow = dict.fromkeys(paths, "int4")
    narrow[paths[0]] = narrow[paths[-1]] = "int8"
    return {
        "int8": dict.fromkeys(paths, "int8"),
        "int4 inputs": {
            path: {"weight": "int8", "input": fmt}
            for path, fmt in narrow.items()
        },
        "mixed": mixed,
    }


def _fixed(model, assignment, images):
    fixed = fliqs.to_fixed(model, assignment)
    for layer in fixed._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    for start in range(0, len(images), 64):
        fixed(images[start : start + 64], training=True)
    return fixed


def _arrays(split, count):
    data = tfds.load(
        "cifar10",
        split=f"{split}[:{count}]",
        batch_size=-1,
        as_supervised=True,
        data_dir=_DATA_DIR.value,
    )
    images, labels = tfds.as_numpy(data)
    return images.astype(np.float32), labels.astype(np.int64)


def _rows(model):
    images, _ = _arrays("train", _CALIBRATION)
    data = tf.data.Dataset.from_tensor_slices(
        _arrays("test", _IMAGES.value)
    ).batch(500)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        plain = fliqs.export_tflite(model, path, "float", data)
        for name, assignment in _assignments(model).items():
            fixed = _fixed(model, assignment, images)
            for mode, containers in (
                ("float", "small"),
                ("float", "fast"),
                ("fake_quant", "small"),
                ("int8", "small"),
                ("int16", "small"),
                ("dynamic", "small"),
            ):
                report = fliqs.export_tflite(
                    fixed,
                    path,
                    mode,
                    data,
                    containers=containers,
                    allow_mismatch=True,
                )
                check, trained = report.verification, report.trained
                row = {
                    "assignment": name,
                    "activations": mode,
                    "containers": containers,
                    "images": check.samples,
                    "file_bytes": report.file_bytes,
                    "float32_bytes": plain.file_bytes,
                    "float32_accuracy": plain.verification.accuracy,
                    "accuracy": check.accuracy,
                    "meant_accuracy": check.reference_accuracy,
                    "keras_accuracy": trained.reference_accuracy,
                    "max_relative_error": check.max_relative_error,
                    "rms_error": check.rms_error,
                    "argmax_agreement": check.argmax_agreement,
                    "keras_rms_error": trained.rms_error,
                    "keras_argmax_agreement": trained.argmax_agreement,
                    "deviating_samples": check.deviating_samples,
                    "replayed_samples": check.replayed_samples,
                    "passed": check.passed and trained.passed,
                }
                print(json.dumps(row), flush=True)
                yield row


def _page(rows):
    float32 = rows[0]["float32_accuracy"]
    lines = [
        "# A trained network in every mode",
        "",
        "Written by `benchmarks/export_trained.py`: ResNet-8 of MLPerf Tiny,",
        "trained in float, its weights rounded and its input ranges taken from",
        f"{_CALIBRATION} training images, without training; the first "
        f"{rows[0]['images']:,} test",
        "images of CIFAR-10. The float32 file takes "
        f"{rows[0]['float32_bytes']:,} bytes and is",
        f"right on {100 * float32:.2f}%.",
        "",
        "*Keras* is the fixed model with its inputs rounded as assigned;",
        "*meant* is what the file is to compute: in `float` and `dynamic`",
        "without that rounding, in `int8` and `int16` with all inputs rounded",
        "to the container, over the same ranges. *Same class* counts images on",
        "which the file agrees with Keras, and its error is the RMS relative",
        "to Keras's outputs. So the rows of `int4 inputs` in `int8` are the",
        "measured difference of 4-bit activations in INT8 containers: the file",
        "is finer than what was trained.",
        "",
        "| assignment | mode | bytes | accuracy | meant | Keras | error to "
        "meant (max) | error to meant (RMS) | same class | error to Keras |"
        " passed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row["assignment"],
            f"{row['activations']}, {row['containers']}",
            f"{row['file_bytes']:,}",
            *(
                f"{100 * row[key]:.2f}"
                for key in ("accuracy", "meant_accuracy", "keras_accuracy")
            ),
            f"{row['max_relative_error']:.1e}",
            f"{row['rms_error']:.1e}",
            f"{row['keras_argmax_agreement']:,}",
            f"{row['keras_rms_error']:.1e}",
            "yes" if row["passed"] else "no",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv):
    del argv
    model = keras.models.load_model(_MODEL.value, compile=False)
    output = pathlib.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in _rows(model):
        rows.append(row)
        output.with_suffix(".json").write_text(json.dumps(rows, indent=1))
        output.with_suffix(".md").write_text(_page(rows))


if __name__ == "__main__":
    app.run(main)
