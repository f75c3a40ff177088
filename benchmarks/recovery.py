r"""What training takes back of rounding, of weights and of inputs.

The weights of all layers of a trained model, or the inputs of all layers, are
rounded to a narrow format, and all else is float. The divergence of the outputs
from the float model's is measured on images that are not trained on, before and
after steps that minimise it; `left` of it is the ratio.

    python benchmarks/recovery.py --model_file=<model.keras> \
        --output=docs/results/recovery/left_<network>.json
"""

import interleaved
import keras
import numpy as np
import tensorflow as tf
import trained
from absl import app
from absl import flags
from keras import ops

import fliqs_tf as fliqs
from fliqs_tf.baselines import divergence
from fliqs_tf.baselines.choice import Choice
from fliqs_tf.layers import calibration

_STEPS = flags.DEFINE_integer("steps", 200, "Steps for each case.")
_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Of Adam, falls to 0.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Where the numbers go.", required=True
)

_FORMATS = ("int2", "int3", "int4")
_FLOAT = "fp32"
_BATCH = 64
_MEASURED = 8


class _Probe:
    """A trained model of which one kind of tensors is rounded."""

    def __init__(self, model, is_logits, images):
        self._choice = Choice(
            model,
            (*_FORMATS, _FLOAT),
            fliqs.costs.get("bitops"),
            None,
            "percentile",
            "affine",
            input_formats="apart",
        )
        self.kinds = sorted({d.kind for d in self._choice.decisions})
        self._model = self._choice.model
        calibration.allow_uncalibrated(self._model)
        self._is_logits = is_logits
        self._weights = self._model.get_weights()
        self._round(None, None)
        self._batches = [(x, self._log_p(x)) for x in images]
        self._optimizer = keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(_RATE.value, _STEPS.value)
        )
        self._optimizer.build(self._model.trainable_variables)
        self._state = [ops.copy(v) for v in self._optimizer.variables]
        self._divergence = tf.function(self._divergence_of)
        self._step = tf.function(self._step_on)

    def _round(self, kind, name):
        self._choice.set(
            [
                self._choice.options.index(name if d.kind == kind else _FLOAT)
                for d in self._choice.decisions
            ]
        )

    def _log_p(self, x):
        (log_p,) = divergence.log_probabilities(self._model, x, self._is_logits)
        return log_p

    def _divergence_of(self, x, log_p):
        return divergence.divergence(log_p, self._log_p(x))

    def _step_on(self, x, log_p):
        weights = self._model.trainable_variables
        with tf.GradientTape() as tape:
            loss = self._divergence_of(x, log_p)
        self._optimizer.apply(tape.gradient(loss, weights), weights)

    def _measure(self):
        return float(
            np.mean([self._divergence(*b) for b in self._batches[:_MEASURED]])
        )

    def divergences(self, kind, name):
        """Before and after training, of a kind of tensors in a format."""
        self._model.set_weights(self._weights)
        for variable, value in zip(
            self._optimizer.variables, self._state, strict=True
        ):
            variable.assign(value)
        self._round(kind, name)
        before = self._measure()
        for batch in self._batches[_MEASURED:]:
            self._step(*batch)
        return before, self._measure()


def main(argv):
    """Runs the benchmark."""
    del argv
    images = trained.images(_BATCH).take(_MEASURED + _STEPS.value)
    probe = _Probe(*trained.load(), images)
    rows = []
    for name in _FORMATS:
        for kind in probe.kinds:
            before, after = probe.divergences(kind, name)
            rows.append(
                {
                    "kind": kind,
                    "format": name,
                    "before": before,
                    "after": after,
                    "left": after / before,
                }
            )
            print(
                f"{kind} {name}: {before:.4g} nat, {after:.4g} after "
                f"training, {after / before:.1%}",
                flush=True,
            )
    interleaved.write(
        _OUTPUT.value,
        {
            "steps": _STEPS.value,
            "learning_rate": _RATE.value,
            **interleaved.machine(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    app.run(main)
