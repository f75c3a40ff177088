"""Times fake quantization against TensorFlow's own fused operation.

A 64 MiB float32 tensor, per tensor and per channel (the last axis), interleaved
in one process: every round runs each variant once, so that a drift of the
machine meets all alike. `fake_quant_with_min_max_vars` rounds to 8-bit integers
within a range that it is given; so there are two comparisons:

- with a given range, both do the same work;
- `fliqs.fake_quant` without a scale first looks for the largest magnitude. That
  is one more pass over memory, compared once with TensorFlow's operation alone
  and once with that operation after TensorFlow's own reductions.

"floor" is the least that the second can be against TensorFlow's operation
alone on this machine: that operation and one read of the tensor ("tf max",
TensorFlow's fastest), which has to end before the first element is rounded.

Besides the time on the wall, which other processes stretch, there is the time
of the process on all cores ("cpu"), which they touch less.

"sampled" rows are gathered by a tensor from a table of 2 or 16 formats.

    python benchmarks/fake_quant.py [--rounds=25] [--output=<file.json>]
"""

import platform
import statistics
import time

import interleaved
import numpy as np
import tensorflow as tf
from absl import app
from absl import flags

from fliqs_tf import numerics
from fliqs_tf.formats import get_format
from fliqs_tf.space import SPACES

_ROUNDS = flags.DEFINE_integer("rounds", 25, "Rounds.", lower_bound=3)
_THREADS = flags.DEFINE_integer("threads", 2, "Threads.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", "docs/results/fake_quant.json", "Where the numbers go."
)
_SHAPE = (16384, 1024)  # 64 MiB.
_FORMATS = ("int4", "int8", "e4m3", "e2m1")


def _graph(function):
    return tf.function(function, autograph=False)


def _baselines(limits):
    def absmax(x, axis):
        # Two fused reductions: TensorFlow's fastest way to a magnitude.
        return tf.maximum(tf.reduce_max(x, axis), -tf.reduce_min(x, axis))

    def own_range(x):
        top = absmax(x, None)
        return tf.quantization.fake_quant_with_min_max_vars(
            x, -top, top, 8, True
        )

    def own_range_per_channel(x):
        top = absmax(x, 0)
        return tf.quantization.fake_quant_with_min_max_vars_per_channel(
            x, -top, top, 8, True
        )

    yield "copy", lambda x: tf.raw_ops.DeepCopy(x=x)
    yield "tf max", _graph(tf.reduce_max)
    yield (
        "tf tensor given",
        _graph(
            lambda x: tf.quantization.fake_quant_with_min_max_vars(
                x, -4.0, 4.0, 8, True
            )
        ),
    )
    yield "tf tensor own", _graph(own_range)
    yield (
        "tf channel given",
        _graph(
            lambda x: tf.quantization.fake_quant_with_min_max_vars_per_channel(
                x, -limits, limits, 8, True
            )
        ),
    )
    yield "tf channel own", _graph(own_range_per_channel)


def _variants(limits):
    for name in _FORMATS:
        top = get_format(name).max_value
        yield (
            f"{name} tensor given",
            _graph(
                lambda x, f=name, t=top: numerics.fake_quant(
                    x, f, scale=tf.constant(4.0 / t)
                )
            ),
        )
        yield (
            f"{name} tensor own",
            _graph(lambda x, f=name: numerics.fake_quant(x, f)),
        )
        yield (
            f"{name} channel given",
            _graph(
                lambda x, f=name, t=top: numerics.fake_quant(
                    x, f, scale=limits / t
                )
            ),
        )
        yield (
            f"{name} channel own",
            _graph(lambda x, f=name: numerics.fake_quant(x, f, axis=-1)),
        )
    for space in ("int_s", "fp_l"):
        table = tf.constant(numerics.format_table(SPACES[space]))
        choice = tf.Variable(1)

        def sampled(x, axis, table=table, choice=choice):
            row = tf.gather(table, choice)
            scale = numerics.absmax_scale(x, row, axis)
            return numerics.quantize(x, row, scale)

        count = len(SPACES[space])
        yield (
            f"sampled of {count} tensor own",
            _graph(lambda x, s=sampled: s(x, None)),
        )
        yield (
            f"sampled of {count} channel own",
            _graph(lambda x, s=sampled: s(x, -1)),
        )


def _measure(functions, x):
    for function in functions.values():
        function(x)
    clocks = {"median": time.perf_counter, "cpu": time.process_time}
    times = {name: {clock: [] for clock in clocks} for name in functions}
    for _ in range(_ROUNDS.value):
        for name, function in functions.items():
            starts = {key: clock() for key, clock in clocks.items()}
            result = function(x)
            for key, clock in clocks.items():
                times[name][key].append(1e3 * (clock() - starts[key]))
            del result  # Its memory is the next one's.
    return {
        name: {
            **{key: statistics.median(t) for key, t in found.items()},
            "least": min(found["median"]),
        }
        for name, found in times.items()
    }


def main(argv):
    """Runs the benchmark."""
    del argv
    tf.config.threading.set_intra_op_parallelism_threads(_THREADS.value)
    x = tf.constant(
        np.random.default_rng(0).standard_normal(_SHAPE, dtype=np.float32)
    )
    limits = tf.fill((_SHAPE[1],), 4.0)
    functions = dict(_baselines(limits)) | dict(_variants(limits))
    times = _measure(functions, x)
    rows = []
    for name, milliseconds in times.items():
        per = "channel" if "channel" in name else "tensor"
        row = {"name": name, **milliseconds}
        others = ["copy", "tf tensor given", f"tf {per} given"]
        if name.endswith("own"):
            others.append(f"tf {per} own")
        for other in dict.fromkeys(others):
            row[f"/ {other}"] = milliseconds["median"] / times[other]["median"]
        row["cpu / tf tensor given"] = (
            milliseconds["cpu"] / times["tf tensor given"]["cpu"]
        )
        rows.append(row)
        ratios = ", ".join(
            f"{key} {value:.2f}" for key, value in row.items() if "/" in key
        )
        print(f"{name:26s} {milliseconds['median']:7.1f} ms  {ratios}")
    floor = {
        key: 1 + times["tf max"][key] / times["tf tensor given"][key]
        for key in ("median", "cpu")
    }
    print(f"floor {floor['median']:.2f}, cpu {floor['cpu']:.2f}")
    result = {
        "bytes": 4 * int(np.prod(_SHAPE)),
        "rounds": _ROUNDS.value,
        "threads": _THREADS.value,
        "tensorflow": tf.__version__,
        "machine": platform.machine(),
        "floor / tf tensor given": floor["median"],
        "floor cpu / tf tensor given": floor["cpu"],
        "milliseconds": rows,
    }
    interleaved.write(_OUTPUT.value, result)


if __name__ == "__main__":
    app.run(main)
