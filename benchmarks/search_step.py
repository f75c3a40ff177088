"""A training step of a search: its time and memory, and what others' need.

The search (with 2, 5 and 16 formats, and with a critic) beside the plain Keras
model and differentiable search, which computes a branch a format.

Times: interleaved in one process, every round a few steps of each variant, so
that a drift of the machine meets all alike; medians, and their ratio to the
plain model. The claim is that a step does not grow with the number of formats.
First steps: from the call of `fit` to the end of its first step, most of it
tracing; medians of 3 rounds, interleaved as well. Not of differentiable search,
whose branches take minutes to trace.
Memory: each variant in a process of its own; what it has held at most, above
what it held before its first step.

    python benchmarks/search_step.py --output=docs/results/search_step.json
"""

import functools
import json
import multiprocessing
import resource
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app
from absl import flags

import fliqs_tf as fliqs
from fliqs_tf import costs
from fliqs_tf.baselines.choice import Choice
from fliqs_tf.baselines.differentiable import MixtureModel
from fliqs_tf.files import write_json
from fliqs_tf.search_run import create_state

_ROUNDS = flags.DEFINE_integer("rounds", 20, "Rounds.", lower_bound=3)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps a round.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 64, "Samples.", lower_bound=1)
_MODEL = flags.DEFINE_enum(
    "model", "resnet20", list(fliqs.models.names()), "Network (32x32x3)."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_PLAIN = "plain Keras"
_SPACES = {"2 formats": "int_s", "5 formats": "int_l", "16 formats": "fp_l"}
_CRITIC = "5 formats, critic"
_BRANCHES = "differentiable, "
_TRACED = [_PLAIN, *_SPACES, _CRITIC]
_FIRST_STEPS = 3
_VARIANTS = [*_TRACED, *(_BRANCHES + name for name in _SPACES)]


def _model(name):
    plain = fliqs.models.get(_MODEL.value, input_shape=(32, 32, 3), classes=10)
    if name == _PLAIN:
        return plain
    space = _SPACES[name.removeprefix(_BRANCHES).partition(",")[0]]
    if not name.startswith(_BRANCHES):
        return fliqs.SearchModel(plain, space, cost_target="4xe3m0")
    cost = costs.get("bitops")
    target = costs.target(cost, plain, "4xe3m0")
    return MixtureModel(Choice(plain, fliqs.SPACES[space], cost, target), 10**6)


def _compiled(name):
    model = _model(name)
    options = {}
    if name == _CRITIC:
        options["controller"] = fliqs.Controller(
            credit="decision", cost_samples=64
        )
    model.compile(
        keras.optimizers.Adam(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
        **options,
    )
    return model


def _data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(_BATCH.value, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, _BATCH.value)
    return tf.data.Dataset.from_tensors((x, y)).cache().repeat()


class _Stop(keras.callbacks.Callback):
    """Ends a run after its first step."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = True


def _first_step(name):
    keras.backend.clear_session(free_memory=False)
    model, data = _compiled(name), _data()
    start = time.perf_counter()
    # Of two epochs, so that the search does not end with the step.
    model.fit(data, epochs=2, steps_per_epoch=1, verbose=0, callbacks=[_Stop()])
    return time.perf_counter() - start


def _stepper(name):
    model, data = _compiled(name), _data()
    if isinstance(model, fliqs.SearchModel):
        create_state(model, data, None)
        model.total_steps.assign(10**6)
        # In the middle of the search: inputs are quantized, the policy learns.
        model.step.assign(500_000)
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


def _held():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _memory(name, arguments, queue):
    flags.FLAGS(arguments)
    # TensorFlow's own, and its first operation's.
    float(tf.reduce_sum(tf.ones((2, 2)) @ tf.ones((2, 2))))
    before = _held()
    run = _stepper(name)
    run()
    queue.put(_held() - before)


def _memories(arguments):
    context = multiprocessing.get_context("spawn")
    found = {}
    for name in _VARIANTS:
        queue = context.Queue()
        process = context.Process(target=_memory, args=(name, arguments, queue))
        process.start()
        found[name] = queue.get()
        process.join()
    return found


def _medians(functions, rounds):
    """Medians of what functions return; every round calls each once."""
    found = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            found[name].append(function())
    return {name: statistics.median(values) for name, values in found.items()}


def main(argv):
    """Runs the benchmark."""
    memories = _memories([argv[0], *_given_flags()])
    firsts = _medians(
        {name: functools.partial(_first_step, name) for name in _TRACED},
        _FIRST_STEPS,
    )
    medians = _medians(
        {name: _stepper(name) for name in _VARIANTS}, _ROUNDS.value
    )
    result = {
        name: {
            "ms": round(medians[name] * 1e3, 2),
            "time_ratio": round(medians[name] / medians[_PLAIN], 3),
            "mib": round(memories[name], 1),
            "memory_ratio": round(memories[name] / memories[_PLAIN], 3),
        }
        for name in _VARIANTS
    }
    for name, first in firsts.items():
        result[name]["first_step_s"] = round(first, 2)
        result[name]["first_step_ratio"] = round(first / firsts[_PLAIN], 3)
    print(json.dumps(result, indent=2))
    if _OUTPUT.value:
        write_json(_OUTPUT.value, result)


def _given_flags():
    return [
        f"--{name}={flags.FLAGS[name].value}"
        for name in ("batch_size", "model", "steps")
    ]


if __name__ == "__main__":
    app.run(main)
