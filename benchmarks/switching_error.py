"""Switching error of integer and float formats, with and without the penalty.

Four searches on the embedded digits from the same weights: `int_l` and `fp_l`,
with the entropy penalty and without it. Writes `switching_error.png` and
`switching_error.json`, with the mean over the layers at a few moments.

    python benchmarks/switching_error.py --output=docs/results/switching_error
"""

import pathlib
import tempfile

import keras
import numpy as np
from absl import app
from absl import flags

import fliqs_tf as fliqs
from fliqs_tf import plots
from fliqs_tf.callbacks import SearchHistory
from fliqs_tf.files import write_json

OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
EPOCHS = flags.DEFINE_integer("epochs", 40, "Epochs of each search.")

_SPACES = {
    "integers (int_l)": ("int_l", "int4"),
    "floats (fp_l)": ("fp_l", "e2m1"),
}
_PENALTIES = {"with the entropy penalty": 0.1, "without it": 0.0}


def _history(space, narrowest, entropy_weight, path):
    keras.utils.set_random_seed(0)
    data = fliqs.datasets.load("digits", "train", batch_size=32)
    model = fliqs.models.get(
        "residual_small", input_shape=(8, 8, 1), classes=10
    )
    search = fliqs.SearchModel(
        model, space=space, cost_target=f"1.25x{narrowest}"
    )
    search.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        controller=fliqs.Controller(
            entropy_weight=entropy_weight, cost_samples=64
        ),
    )
    recorder = SearchHistory(path)
    search.fit(data, epochs=EPOCHS.value, verbose=0, callbacks=[recorder])
    return recorder.epochs


def main(_):
    output = pathlib.Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    series = {}
    with tempfile.TemporaryDirectory() as folder:
        for penalty, weight in _PENALTIES.items():
            for name, (space, narrowest) in _SPACES.items():
                series[f"{name}, {penalty}"] = _history(
                    space, narrowest, weight, f"{folder}/{len(series)}.json"
                )
    plots.switching_errors(series, output / "switching_error.png")
    moments = {
        share: round(share * (EPOCHS.value - 1))
        for share in (0, 0.25, 0.5, 0.85)
    }
    table = {
        title: {
            f"at {share:.0%}": round(
                float(np.mean(list(epochs[i]["switching_errors"].values()))), 4
            )
            for share, i in moments.items()
        }
        for title, epochs in series.items()
    }
    write_json(output / "switching_error.json", table)
    print(table)


if __name__ == "__main__":
    app.run(main)
