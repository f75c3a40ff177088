"""Exports whole networks and measures their files.

Every network gets a random mixed assignment over each space, with the ranges
of its inputs taken from images; each file is run, compared with Keras and
timed against the float32 file of the same network, both in turn on one thread.
Writes a table and the numbers behind it.

    python benchmarks/export_latency.py [--networks=resnet18,deit_s] \
        [--data_dir=...] [--output=docs/results/export]

Networks that are not named keep their rows of an earlier run.
"""

import json
import math
import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl import app
from absl import flags

import fliqs_tf as fliqs
from fliqs_tf.export import inspect
from fliqs_tf.export import twin
from fliqs_tf.export.output_errors import rms_error
from fliqs_tf.export.timing import all_times
from fliqs_tf.layers.base import searchable_layers

# Name -> input size and arguments. Small sizes: time is not the network's
# native one, agreement and bytes do not depend on it.
_NETWORKS = {
    "mlperf_tiny_resnet8": (32, {}),
    "mlperf_tiny_mobilenet_v1": (96, {}),
    "resnet20": (32, {}),
    "resnet18": (64, {}),
    "mobilenet_v2": (64, {}),
    "efficientnet_b0": (64, {}),
    "deit_s": (64, {"hidden_size": 384}),
    "resnet50": (64, {}),
    "inception_v3": (96, {}),
    "embedding_attention_lstm": (32, {}),
}
_VOCABULARY = 500
_SPACES = {
    "int_l": fliqs.SPACES["int_l"],
    "fp_l": fliqs.SPACES["fp_l"],
    "both": fliqs.SPACES["mixed_l"],
}
_CASES = (
    ("int_l", "float", "small"),
    ("fp_l", "float", "small"),
    ("both", "float", "small"),
    ("both", "float", "fast"),
    ("int_l", "int8", "small"),
    ("both", "dynamic", "small"),
)
_NAMES = flags.DEFINE_list("networks", list(_NETWORKS), "What to export.")
_OUTPUT = flags.DEFINE_string(
    "output", "docs/results/export", "Files to write, without suffix."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS has cifar10.")
_SAMPLES = flags.DEFINE_integer("samples", 64, "Images.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 21, "Rounds.", lower_bound=3)

_SLACK_BYTES = 20 * 1024
_SLACK = 0.03


def _model(name, size, arguments):
    if name != "embedding_attention_lstm":
        return fliqs.models.get(
            name.removesuffix("_s"),
            input_shape=(size, size, 3),
            classes=10,
            **arguments,
        )
    layers = keras.layers
    tokens = keras.Input((size,), dtype="int32")
    x = layers.Embedding(_VOCABULARY, 64)(tokens)
    y = layers.MultiHeadAttention(4, 16)(x, x)
    x = layers.LayerNormalization()(x + y)
    y = layers.Dense(128, activation="gelu")(x)
    x = layers.LayerNormalization()(x + layers.Dense(64)(y))
    x = layers.LSTM(64)(x)
    return keras.Model(tokens, layers.Dense(10)(x))


def _data(name, size):
    if name != "embedding_attention_lstm":
        return _images(size)
    random = np.random.default_rng(0)
    shape = (_SAMPLES.value, size)
    return random.integers(0, _VOCABULARY, shape).astype(np.int32)


def _images(size):
    data = fliqs.datasets.load(
        "cifar10", "test", _SAMPLES.value, _DATA_DIR.value, training=False
    )
    images, _ = next(iter(data))
    return np.asarray(tf.image.resize(images, (size, size)), np.float32)


def _settle(model, images):
    """Gives batch norms the statistics of some images.

    And biases some values: equal constants, zeros above all, are stored once.
    """
    random = np.random.default_rng(0)
    for weight in model.trainable_weights:
        if weight.name in ("bias", "beta"):
            weight.assign(0.01 * random.standard_normal(weight.shape))
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images, training=True)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum, layer.trainable = 0.99, False


def _fixed(model, space, images):
    random = np.random.default_rng(0)
    assignment = {
        path: str(random.choice(_SPACES[space]))
        for path in searchable_layers(model)
    }
    fixed = fliqs.to_fixed(model, assignment)
    for layer in fixed._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    fixed(images, training=True)
    return fixed


def _noise_error(fixed, images):
    """RMS error of Keras itself with noise of half an INT8 step.

    What the INT8 file rounds and the reference does not, the outputs of layers,
    gets uniform noise of at most half of the step that 256 values leave.
    """
    model = twin.container_reference(fixed, "int8")
    layers = [
        layer
        for layer in model.layers
        if keras.backend.is_float_dtype(layer.output.dtype)
    ]
    outputs = [layer.output for layer in layers]
    clean = keras.Model(model.inputs, outputs)(images, training=False)
    expected = np.asarray(model(images, training=False))
    random = np.random.default_rng(0)

    def noisy(call, step):
        def wrapped(*args, **kwargs):
            outputs = call(*args, **kwargs)
            noise = random.uniform(-step / 2, step / 2, outputs.shape)
            return outputs + tf.constant(noise, tf.float32)

        return wrapped

    for layer, value in zip(layers, clean, strict=True):
        value = np.asarray(value)
        step = (max(value.max(), 0.0) - min(value.min(), 0.0)) / 255
        object.__setattr__(layer, "call", noisy(layer.call, step))
    return rms_error(np.asarray(model(images, training=False)), expected)


def _theoretical_bytes(fixed, report):
    """Weights in their stored types with their scales, the rest in float32."""
    layers = twin.fixed_layers(fixed)
    scales = weights = missing = 0
    for row in report.layers:
        layer = layers[row.path]
        kernels, _ = layer.shapes(layer)
        count = sum(math.prod(shape) for shape, _ in kernels)
        weights += count
        # What is not stored as codes is there as it was.
        missing += 4 * count if row.stored_type == "none" else 0
        # FLOAT32 has no scales.
        size = 0 if row.stored_type == "FLOAT32" else 4
        if row.stored_type.startswith("INT"):
            # LiteRT wants a zero point of 8 bytes beside each scale.
            size += 8
            # Integer biases have scales and zero points again.
            if row.stored_input.startswith("INT"):
                size += 12
        for shape, axes in kernels:
            scales += size * math.prod(shape[axis] for axis in axes)
    # Batch norm is folded: of its four vectors one is left, as a bias.
    norms = sum(
        3 * 4 * layer.moving_mean.shape[0]
        for layer in fixed._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    plain = sum(
        4 * math.prod(weight.shape)
        for weight in fixed.weights
        if weight.shape and "seed" not in weight.name
    )
    stored = sum(row.weight_bytes for row in report.layers)
    return stored + missing + scales + plain - 4 * weights - norms


def _times(plain, path):
    """Milliseconds, and the ratio to the float32 file: median, quartiles."""
    times = all_times(
        {"plain": plain.read_bytes(), "file": path.read_bytes()}, _ROUNDS.value
    )
    ratios = np.divide(times["file"], times["plain"])
    low, ratio, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {
        "milliseconds": 1e3 * float(np.median(times["file"])),
        "float32_milliseconds": 1e3 * float(np.median(times["plain"])),
        "time_ratio": float(ratio),
        "time_ratio_quartiles": [float(low), float(high)],
    }


def _rows(name):
    size, arguments = _NETWORKS[name]
    images = _data(name, size)
    model = _model(name, size, arguments)
    _settle(model, images)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        plain = folder / "float32.tflite"
        fliqs.export_tflite(model, plain, verify_data=images)
        for space, activations, containers in _CASES:
            fixed = _fixed(model, space, images)
            path = folder / "model.tflite"
            row = {
                "network": name,
                "size": size,
                "space": space,
                "activations": activations,
                "containers": containers,
            }
            try:
                report = fliqs.export_tflite(
                    fixed,
                    path,
                    activations,
                    images,
                    containers=containers,
                    allow_mismatch=True,
                )
            except (RuntimeError, ValueError) as error:
                print(name, space, activations, error, flush=True)
                yield row | {"error": str(error)}
                continue
            theory = _theoretical_bytes(fixed, report)
            check = report.verification
            row |= {
                "file_bytes": report.file_bytes,
                "float32_bytes": plain.stat().st_size,
                "theoretical_bytes": theory,
                "within_aim": report.file_bytes
                <= theory * (1 + _SLACK) + _SLACK_BYTES,
                "layers": len(inspect(path).rows),
                "samples": check.samples,
                "max_relative_error": check.max_relative_error,
                "rms_error": check.rms_error,
                "argmax_agreement": check.argmax_agreement,
                "replayed_samples": check.replayed_samples,
                "passed": check.passed,
                "trained_rms_error": report.trained.rms_error,
                **_times(plain, path),
            }
            if activations == "int8":
                row["noise_rms_error"] = _noise_error(fixed, images)
            print(json.dumps(row), flush=True)
            yield row


def _page(rows):
    lines = [
        "# Exported networks",
        "",
        "Written by `benchmarks/export_latency.py`: random weights and random",
        "mixed assignments, images of CIFAR-10 scaled to the size (random",
        "tokens for `embedding_attention_lstm`), x86-64, one thread. *Over",
        "theory*: bytes beyond weights in their stored types, LiteRT's scales",
        "and zero points a channel, and the rest in float32; *in aim*: at most",
        "3% and 20 KiB of them. A negative number: equal arrays, such as zero",
        "points, are written once. *Of float32*, of time: the median, over",
        "rounds in which both files ran one after the other, of the ratio of",
        "their times, and its quartiles; time of the thread on the processor,",
        "so that other programs on the machine matter little.",
        "*Error*: the largest relative one in `float` and `fake_quant`, the",
        "RMS in the modes with integer arithmetic, against what the file is to",
        "compute; *to trained*: the RMS against the model as trained.",
        "",
        "*small* decodes floats, and runs 4-bit weights, at every call and",
        "outside of the fast kernels; *fast* takes INT8 and FLOAT16, which the",
        "fast kernels decode once, and is as exact.",
        "",
        "*Noise* says what INT8 does to random weights: the RMS error of Keras",
        "itself, with the inputs of layers rounded to the same INT8 grids, if",
        "each output of a layer gets uniform noise of at most half an INT8",
        "step. Where the file's error is no larger, it is the network that",
        "amplifies rounding, which the file cannot help. Trained networks do",
        "not: see `export_trained.md`.",
        "",
        "The recurrence of `embedding_attention_lstm` is unrolled, as LiteRT's",
        "loops take no open batch: its 32 steps are operators that take room,",
        "in the float32 file too.",
        "",
        "| network | size | space | mode | KiB | of float32 | over theory |"
        " in aim | ms | of float32 | error | noise | passed | argmax |"
        " to trained |",
        "|" + "---|" * 15,
    ]
    for row in rows:
        mode = f"{row['activations']}, {row['containers']}"
        start = f"| {row['network']} | {row['size']} | {row['space']} | {mode} "
        if "error" in row:
            text = row["error"].replace("|", "/").split(". ")[0]
            lines.append(f"{start}| {text} |" + " |" * 10)
            continue
        is_exact = row["activations"] in ("float", "fake_quant")
        error = row["max_relative_error" if is_exact else "rms_error"]
        noise = row.get("noise_rms_error")
        over = (row["file_bytes"] - row["theoretical_bytes"]) / 1024
        low, high = row["time_ratio_quartiles"]
        cells = (
            f"{row['file_bytes'] / 1024:.0f}",
            f"{row['file_bytes'] / row['float32_bytes']:.3f}",
            f"{over:+.0f} KiB",
            "yes" if row["within_aim"] else "no",
            f"{row['milliseconds']:.2f}",
            f"{row['time_ratio']:.2f} ({low:.2f} to {high:.2f})",
            f"{error:.1e}",
            "" if noise is None else f"{noise:.1e}",
            "yes" if row["passed"] else "no",
            f"{row['argmax_agreement']}/{row['samples']}",
            f"{row['trained_rms_error']:.1e}",
        )
        lines.append(f"{start}| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv):
    del argv
    output = pathlib.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    numbers = output.with_suffix(".json")
    rows = json.loads(numbers.read_text()) if numbers.exists() else []
    order = list(_NETWORKS)
    for name in _NAMES.value:
        rows = [row for row in rows if row["network"] != name]
        for row in _rows(name):
            rows.append(row)
            # `sort` keeps the order of a network's rows.
            rows.sort(key=lambda row: order.index(row["network"]))
            numbers.write_text(json.dumps(rows, indent=1) + "\n")
            output.with_suffix(".md").write_text(_page(rows))


if __name__ == "__main__":
    app.run(main)
