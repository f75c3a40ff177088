"""Times a training step of a search against the plain Keras model's.

Interleaved in one process: every round runs a few steps of each variant, so
that a drift of the machine meets all alike. Prints medians and their ratio to
the plain model, and the ratio of 16 formats to 2: the claim is that a step does
not grow with the number of formats.

    python benchmarks/search_step.py [--rounds=20] [--model=resnet20]
"""

import json
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app
from absl import flags

import fliqs_tf as fliqs

_ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds.", lower_bound=3)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps a round.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Samples.", lower_bound=1)
_MODEL = flags.DEFINE_enum(
    "model", "resnet20", list(fliqs.models.names()), "Network (32x32x3)."
)
_SPACES = {"2 formats": "int_s", "5 formats": "int_l", "16 formats": "fp_l"}


def _plain():
    return fliqs.models.get(_MODEL.value, input_shape=(32, 32, 3), classes=10)


def _variants():
    yield "plain Keras", _plain()
    for name, space in _SPACES.items():
        yield name, fliqs.SearchModel(_plain(), space, cost_target="4xe3m0")


def _stepper(model):
    model.compile(
        keras.optimizers.Adam(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    if isinstance(model, fliqs.SearchModel):
        model.total_steps.assign(10**6)
        # In the middle of the search: inputs are quantized, the policy learns.
        model.step.assign(500_000)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(_BATCH.value, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, _BATCH.value)
    data = tf.data.Dataset.from_tensors((x, y)).cache().repeat()
    model.make_train_function()
    step = model.train_function
    iterator = iter(data)

    def run():
        start = time.perf_counter()
        for _ in range(_STEPS.value):
            logs = step(iterator)
        float(logs["loss"])
        return (time.perf_counter() - start) / _STEPS.value

    run()
    return run


def main(argv):
    """Runs the benchmark."""
    del argv
    steppers = {name: _stepper(model) for name, model in _variants()}
    times = {name: [] for name in steppers}
    for _ in range(_ROUNDS.value):
        for name, run in steppers.items():
            times[name].append(run())
    medians = {name: statistics.median(t) for name, t in times.items()}
    plain = medians["plain Keras"]
    result = {
        name: {"ms": round(m * 1e3, 2), "ratio": round(m / plain, 3)}
        for name, m in medians.items()
    }
    result["16 formats / 2 formats"] = {
        "ratio": round(medians["16 formats"] / medians["2 formats"], 3)
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)
