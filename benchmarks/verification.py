"""Times the proof of an exported file, where it need not be exact to the bit.

The references of a ResNet-8 in INT4 run on the same images, called eagerly (as
in the mode fake_quant) and compiled after the first batches (as in the others),
interleaved in one process: every round runs each once. The file itself is run
by both; its own time is a row, too.

    python benchmarks/verification.py [--samples=10000] [--output=<file.json>]
"""

import interleaved
import numpy as np
from absl import app
from absl import flags

import fliqs_tf as fliqs
from fliqs_tf.export import modes
from fliqs_tf.export import twin
from fliqs_tf.export import verify
from fliqs_tf.export.runner import Runner

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds.", lower_bound=3)
_SAMPLES = flags.DEFINE_integer(
    "samples",
    10000,
    "Images of 32 x 32; 10000 are CIFAR-10's test set.",
    lower_bound=64,
)
_OUTPUT = flags.DEFINE_string(
    "output", "docs/results/verification.json", "Where the numbers go."
)


def _functions():
    model = fliqs.models.get(
        "mlperf_tiny_resnet8", input_shape=(32, 32, 3), classes=10
    )
    fixed = fliqs.to_fixed(model, "int4")
    images = np.random.default_rng(0).standard_normal(
        (_SAMPLES.value, 32, 32, 3), "float32"
    )
    # Ranges of the inputs.
    fixed(images[:64], training=True)
    fixed = twin.uncompiled(fixed)
    head, _, _ = verify.first_batches(images, fixed)
    content = modes.convert(
        fixed, "float", "small", [batch.inputs for batch in head]
    ).to_bytes()
    runner = Runner(content)
    references = modes.references(fixed, "float", None, 0.01)

    def compare(is_exact):
        batches = verify.batches_of(images, fixed)
        found = verify.compare(
            runner, references, batches, "given", is_exact=is_exact
        )
        if not all(made.passed for made in found.values()):
            raise RuntimeError("The file must agree. Received: " + str(found))

    def run():
        for batch in verify.batches_of(images, fixed):
            runner(batch.inputs)

    return {
        "eager": lambda: compare(True),
        "compiled": lambda: compare(False),
        "file alone": run,
    }


def main(argv):
    """Runs the benchmark."""
    del argv
    seconds = interleaved.seconds(_functions(), _ROUNDS.value)
    result = {
        "samples": _SAMPLES.value,
        "rounds": _ROUNDS.value,
        **interleaved.machine(),
        "rows": {
            name: {"seconds": value, "/ eager": value / seconds["eager"]}
            for name, value in seconds.items()
        },
    }
    for name, row in result["rows"].items():
        print(f"{name:12s} {row['seconds']:6.2f} s, {row['/ eager']:.2f} eager")
    interleaved.write(_OUTPUT.value, result)


if __name__ == "__main__":
    app.run(main)
