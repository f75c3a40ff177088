"""Times the conversion of a model of 100 kernel layers.

Conversion copies a model: it must build each layer again, as Keras's own
`clone_model` does. So its time is compared with that, for the same model and
interleaved in one process: every round runs each variant once. The aim is less
than 2 seconds beyond building the model.

    python benchmarks/conversion.py [--rounds=7] [--output=<file.json>]
"""

import interleaved
import keras
from absl import app
from absl import flags

import fliqs_tf as fliqs

_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds.", lower_bound=3)
_LAYERS = flags.DEFINE_integer("layers", 100, "Kernel layers.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", "docs/results/conversion.json", "Where the numbers go."
)


def _dense():
    inputs = x = keras.Input((64,))
    for _ in range(_LAYERS.value):
        x = keras.layers.Dense(64, activation="relu")(x)
    return keras.Model(inputs, x)


def _convolutional():
    """Residual blocks of two convolutions, each with its norm."""
    inputs = x = keras.Input((16, 16, 16))
    for _ in range(_LAYERS.value // 2):
        shortcut = x
        for _ in range(2):
            x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.ReLU()(x)
        x = x + shortcut
    return keras.Model(inputs, x)


def _clone(model):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())


def _measure(build):
    model = build()
    searchable = fliqs.to_searchable(model, "int_l")
    int4 = fliqs.Assignment.uniform(model, "int4")
    functions = {
        "build": build,
        "clone_model": lambda: _clone(model),
        "to_searchable": lambda: fliqs.to_searchable(model, "int_l"),
        "to_fixed": lambda: fliqs.to_fixed(model, int4),
        "to_fixed of searchable": lambda: fliqs.to_fixed(searchable, int4),
    }
    seconds = interleaved.seconds(functions, _ROUNDS.value)
    return {
        name: {
            "seconds": value,
            "beyond build": value - seconds["build"],
            "/ clone_model": value / seconds["clone_model"],
        }
        for name, value in seconds.items()
    }


def main(argv):
    """Runs the benchmark."""
    del argv
    result = {
        "layers": _LAYERS.value,
        "rounds": _ROUNDS.value,
        **interleaved.machine(),
    }
    for name, build in (("dense", _dense), ("conv", _convolutional)):
        result[name] = _measure(build)
        for variant, row in result[name].items():
            print(
                f"{name:6s} {variant:22s} {row['seconds']:6.2f} s, "
                f"{row['beyond build']:+6.2f} s beyond building, "
                f"{row['/ clone_model']:.2f} of clone_model"
            )
    interleaved.write(_OUTPUT.value, result)


if __name__ == "__main__":
    app.run(main)
