"""Functions timed side by side, for the benchmarks that compare whole calls."""

import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from collections.abc import Mapping

import keras
import tensorflow as tf
from absl import logging


def seconds(
    functions: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
    """Median times; every round calls each function once."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            # Every call finds Keras with no names given out.
            keras.backend.clear_session(free_memory=False)
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def machine() -> dict[str, str]:
    """What the times were taken with."""
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "machine": platform.machine(),
    }


def write(output: str, result: Mapping) -> None:
    """Writes the numbers of a benchmark; makes the folder."""
    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    logging.info("Wrote %s", path)
