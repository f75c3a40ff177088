"""Loops over time count at every step, however Keras runs them."""

import keras
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized
from keras import layers

import fliqs_tf as fliqs

_STEPS, _FEATURES, _UNITS = 50, 8, 16
# A row times the kernel, at each step.
_INPUT = _STEPS * _FEATURES * _UNITS
_STATE = _STEPS * _UNITS * _UNITS


@keras.saving.register_keras_serializable(package="calls_test")
class Cell(layers.Layer):
    """Kernel layers for its input and for its state."""

    state_size = _UNITS

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inp = layers.Dense(_UNITS, name="inp")
        self.rec = layers.Dense(_UNITS, name="rec")

    def build(self, input_shape):
        self.inp.build(input_shape)
        self.rec.build((None, _UNITS))

    def call(self, inputs, states):
        state = keras.ops.tanh(self.inp(inputs) + self.rec(states[0]))
        return state, [state]


@keras.saving.register_keras_serializable(package="calls_test")
class Projected(layers.RNN):
    """A kernel layer before the loop, on all steps at once."""

    def __init__(self, cell, **kwargs):
        super().__init__(cell, **kwargs)
        self.project = layers.Dense(_FEATURES, name="project")

    def build(self, sequences_shape, initial_state_shape=None):
        self.project.build(sequences_shape)
        super().build(sequences_shape, initial_state_shape)

    def call(self, sequences, initial_state=None, mask=None, training=False):
        return super().call(
            self.project(sequences), initial_state, mask, training
        )


class Model(keras.Model):
    """A loop in a model without a graph, called twice."""

    def __init__(self):
        super().__init__()
        self.loop = layers.RNN(Cell(name="cell"))

    def call(self, inputs):
        return self.loop(inputs) - self.loop(-inputs)


def _macs(*parts):
    model = keras.Sequential([keras.Input((_STEPS, _FEATURES)), *parts])
    return {path: p.macs for path, p in fliqs.costs.profile(model).items()}


class LoopTest(parameterized.TestCase):
    @parameterized.parameters({}, {"unroll": True}, {"return_sequences": True})
    @pytest.mark.one_in(3)
    def test_layers_of_a_cell(self, **keywords):
        model = keras.Sequential(
            [
                keras.Input((_STEPS, _FEATURES)),
                layers.RNN(Cell(name="cell"), name="r", **keywords),
            ]
        )
        for form in (model, fliqs.to_searchable(model, "int_s")):
            found = fliqs.costs.profile(form)
            self.assertEqual(
                {path: (p.macs, p.inputs) for path, p in found.items()},
                {
                    "r/cell/inp": (6400, _STEPS * _FEATURES),
                    "r/cell/rec": (12800, _STEPS * _UNITS),
                },
            )

    def test_masked_and_in_both_directions(self):
        found = _macs(
            layers.Masking(),
            layers.Bidirectional(layers.RNN(Cell(name="cell"), name="r")),
        )
        self.assertEqual(list(found.values()), 2 * [_INPUT, _STATE])

    def test_stacked_cells(self):
        cells = [Cell(name="one"), Cell(name="two")]
        found = _macs(layers.RNN(cells))
        self.assertEqual(list(found.values()), [_INPUT, _STATE, _STATE, _STATE])

    def test_what_is_outside_of_the_loop_counts_once(self):
        found = _macs(Projected(Cell(name="cell"), name="p"))
        self.assertEqual(
            found,
            {
                "p/cell/inp": _INPUT,
                "p/cell/rec": _STATE,
                "p/project": _STEPS * _FEATURES**2,
            },
        )

    def test_each_step_may_be_a_loop(self):
        inner = layers.RNN(Cell(name="cell"), name="r")
        found = _macs(
            layers.Reshape((5, _STEPS // 5, _FEATURES)),
            layers.TimeDistributed(inner, name="each"),
        )
        self.assertEqual(
            found, {"each/r/cell/inp": _INPUT, "each/r/cell/rec": _STATE}
        )

    def test_model_without_a_graph(self):
        model = Model()
        model(np.zeros((1, _STEPS, _FEATURES), "float32"))
        found = fliqs.costs.profile(model)
        self.assertEqual(
            {path: p.macs for path, p in found.items()},
            {"loop/cell/inp": 2 * _INPUT, "loop/cell/rec": 2 * _STATE},
        )

    def test_unknown_number_of_steps(self):
        model = keras.Sequential(
            [keras.Input((None, _FEATURES)), layers.RNN(Cell(), name="r")]
        )
        with self.assertRaisesRegex(
            ValueError,
            r"known number of steps. Received: 'r' with input shape "
            r"\(None, None, 8\)",
        ):
            fliqs.costs.profile(model)


if __name__ == "__main__":
    absltest.main()
