"""How many samples post-training search needs to look at.

The sensitivities of pieces of 64 training images of CIFAR-10 are measured one
by one. Formats chosen by a few pieces are judged by all the others, and
compared with those that the others themselves choose: `excess` is by how much
the sum of their divergences is larger. Decisions are on weights and inputs of
INT2 to INT8 at the cost of INT4.

    python benchmarks/sensitivities.py --model_file=<model.h5> [--nonormalize]
"""

import interleaved
import numpy as np
import trained
from absl import app
from absl import flags

import fliqs_tf as fliqs
from fliqs_tf.baselines import ptq
from fliqs_tf.baselines.choice import Choice

_PIECES = flags.DEFINE_integer("pieces", 16, "Pieces.", lower_bound=2)
_OUTPUT = flags.DEFINE_string(
    "output", "docs/results/sensitivities.json", "Where the numbers go."
)

_PIECE = 64
_SPACE = tuple(f"int{bits}" for bits in range(2, 9))
_RANGE = ("percentile", "unsigned")


def _sensitivities(model, is_logits):
    images = trained.images(_PIECE)
    return np.array(
        [
            ptq.sensitivities(
                model,
                images.skip(piece).take(1),
                _SPACE,
                *_RANGE,
                is_logits=is_logits,
                input_formats="apart",
            )
            for piece in range(_PIECES.value)
        ]
    )


def _excesses(choice, pieces, count):
    """Of what disjoint groups of pieces choose."""

    def total(sample, by):
        return by[np.arange(len(sample)), sample].sum()

    for first in range(0, len(pieces) - count + 1, count):
        group = slice(first, first + count)
        others = np.delete(pieces, group, axis=0).mean(axis=0)
        found = ptq.best_sample(choice, pieces[group].mean(axis=0))
        best = ptq.best_sample(choice, others)
        yield total(found, others) / total(best, others) - 1.0


def main(argv):
    """Runs the benchmark."""
    del argv
    model, is_logits = trained.load()
    pieces = _sensitivities(model, is_logits)
    cost = fliqs.costs.get("bitops")
    choice = Choice(
        model,
        _SPACE,
        cost,
        fliqs.costs.target(cost, model, "1xint4"),
        *_RANGE,
        input_formats="apart",
    )
    rows = {}
    for power in range(int(np.log2(len(pieces)))):
        found = list(_excesses(choice, pieces, 2**power))
        rows[_PIECE * 2**power] = row = {
            "groups": len(found),
            "mean_excess": float(np.mean(found)),
            "largest_excess": float(np.max(found)),
        }
        print(
            f"{_PIECE * 2**power:4d} samples: {row['mean_excess']:.1%} above "
            f"the least sum, at most {row['largest_excess']:.1%}"
        )
    interleaved.write(
        _OUTPUT.value,
        {
            "decisions": len(choice.decisions),
            **interleaved.machine(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    app.run(main)
