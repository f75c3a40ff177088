"""How long LiteRT takes for each layer of a model in each format.

Every layer becomes a file of its own, exported like a whole model. The files
run in turn, one call each a round, so that what slows the machine down for a
while slows all of them; the median over the rounds is what a layer takes.

With one thread, time is that of the thread on the processor: what other
programs take while it waits does not count. With several it is wall time.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from fliqs_tf.convert import to_fixed
from fliqs_tf.cost_tables import VERSION
from fliqs_tf.costs import profile
from fliqs_tf.export.tflite import export_tflite
from fliqs_tf.layers.base import graph_of
from fliqs_tf.layers.base import searchable_layers

_MICRO = 1e6
# A measurement is of as many calls as take this long, in seconds.
_AT_LEAST = 2e-3


def latency_table(
    model: keras.Model,
    formats: Sequence[str],
    activations: str = "float",
    rounds: int = 21,
    threads: int = 1,
    source: str = "",
) -> dict[str, Any]:
    """Times every (layer, format) of a model on this machine.

    Args:
        model: Plain Functional or Sequential model, inputs of fixed sizes.
        formats: Formats; the weights and inputs of a layer have the same.
        activations: Mode of the export, see `export_tflite`.
        rounds: Measurements of each, of which the median counts.
        threads: Threads of the interpreter.
        source: Where the numbers come from, for the record.

    Returns:
        A table of measured layers in microseconds, as `cost_tables` reads it.

    Raises:
        ValueError: If a layer cannot be run alone.
    """
    profiles = profile(model)
    files: dict[tuple, bytes] = {}
    counts: dict[tuple[str, tuple], int] = {}
    for path, shapes in _call_shapes(model).items():
        layer = searchable_layers(model)[path]
        for shape in shapes:
            counts[path, shape] = counts.get((path, shape), 0) + 1
        for shape in set(shapes):
            for fmt in formats:
                files[path, shape, fmt] = _export(
                    layer, shape, fmt, activations
                )
    times = median_times(files, rounds, threads)
    layers: dict[str, Any] = {}
    for (path, shape, fmt), seconds in times.items():
        entry = layers.setdefault(
            path, {"macs": profiles[path].macs, "costs": {}}
        )
        row = entry["costs"].setdefault(fmt, {fmt: 0.0})
        row[fmt] += counts[path, shape] * seconds * _MICRO
    return {
        "version": VERSION,
        "unit": "us",
        "source": source,
        "layers": layers,
    }


def model_time(
    model: keras.Model,
    formats: Sequence[str],
    activations: str = "float",
    rounds: int = 21,
    threads: int = 1,
) -> dict[str, float]:
    """Times whole models at one format; see `latency_table`.

    Returns:
        Format -> microseconds for one sample.
    """
    files = {
        fmt: _content(to_fixed(model, fmt), activations) for fmt in formats
    }
    times = median_times(files, rounds, threads)
    return {fmt: seconds * _MICRO for fmt, seconds in times.items()}


def median_times(
    files: Mapping[Any, bytes], rounds: int, threads: int = 1
) -> dict[Any, float]:
    """Key -> median seconds of a call with one sample; see `all_times`."""
    found = all_times(files, rounds, threads)
    return {key: statistics.median(times) for key, times in found.items()}


def all_times(
    files: Mapping[Any, bytes], rounds: int, threads: int = 1
) -> dict[Any, list[float]]:
    """Runs LiteRT files in turn on normal inputs.

    Args:
        files: Key -> bytes of a file.
        rounds: Measurements of each.
        threads: Threads of the interpreter.

    Returns:
        Key -> seconds of a call with one sample, one number a round. What slows
        the machine down for longer than a round slows all files of the round.
    """
    runs = {key: _prepare(files[key], threads) for key in files}
    # The calling thread is the interpreter's first one.
    clock = time.thread_time if threads == 1 else time.perf_counter
    repeats = {key: _repeats(run, clock) for key, run in runs.items()}
    found: dict[Any, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            found[key].append(_time(run, repeats[key], clock))
    return found


def _prepare(content, threads):
    run = Interpreter(model_content=content, num_threads=threads)
    run.allocate_tensors()
    random = np.random.default_rng(0)
    for tensor in run.get_input_details():
        values = random.standard_normal(tensor["shape"])
        run.set_tensor(tensor["index"], values.astype(tensor["dtype"]))
    return run


def _repeats(run, clock) -> int:
    _time(run, 1, clock)  # The first call prepares what later ones find.
    return max(1, round(_AT_LEAST / _time(run, 1, clock)))


def _time(run, repeats, clock) -> float:
    start = clock()
    for _ in range(repeats):
        run.invoke()
    return (clock() - start) / repeats


def _export(layer, shape, fmt, activations) -> bytes:
    inputs = keras.Input(shape[1:])
    copy = type(layer).from_config(layer.get_config())
    alone = keras.Model(inputs, copy(inputs))
    copy.set_weights(layer.get_weights())
    return _content(to_fixed(alone, {copy.name: fmt}), activations)


def _content(fixed, activations) -> bytes:
    random = np.random.default_rng(0)
    data = [
        random.standard_normal((2, *x.shape[1:])).astype(x.dtype)
        for x in fixed.inputs
    ]
    # Modes with quantized inputs need ranges, of whatever data.
    fixed(keras.tree.pack_sequence_as(fixed.input, data), training=True)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.tflite")
        # How an untrained model rounds is of no interest here.
        export_tflite(
            fixed, path, activations, verify_data=data, allow_mismatch=True
        )
        with open(path, "rb") as file:
            return file.read()


def _call_shapes(model) -> dict[str, list[tuple]]:
    """Path -> shapes of the inputs of a layer's calls."""
    shapes: dict[int, list[tuple]] = {}

    def visit(graph):
        for nodes in graph._nodes_by_depth.values():
            for node in nodes:
                inner = None
                if isinstance(node.operation, keras.Model):
                    inner = graph_of(node.operation)
                if inner is not None:
                    visit(inner)
                elif len(node.input_tensors) == 1:
                    shape = tuple(node.input_tensors[0].shape)
                    shapes.setdefault(id(node.operation), []).append(shape)

    visit(graph_of(model))
    layers = searchable_layers(model)
    alone = {path: shapes.get(id(layer), []) for path, layer in layers.items()}
    bad = sorted(
        path
        for path, calls in alone.items()
        if not calls or None in calls[0][1:]
    )
    if bad:
        raise ValueError(
            "Layers that are timed must have one input of a fixed size in the "
            f"model's own graph. Received: {', '.join(bad)}. Build the model "
            "with a fixed input shape, of layers that stand alone."
        )
    return alone
