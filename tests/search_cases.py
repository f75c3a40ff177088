"""Small searches and the data for them, and what is asked of each."""

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized
from keras import ops

import fliqs_tf as fliqs

_STEPS = 4


def make_data(steps=_STEPS, batch_size=16):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps * batch_size, 6, 6, 1)).astype("float32")
    y = (x.mean((1, 2, 3)) > 0).astype("int32") + (x[:, 0, 0, 0] > 0.5)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)


def make_model(norm=True, dropout=0.0):
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 1))
    y = keras.layers.Conv2D(4, 3, name="stem")(x)
    if norm:
        y = keras.layers.BatchNormalization(name="norm")(y)
    y = keras.layers.ReLU()(y)
    if dropout:
        y = keras.layers.Dropout(dropout, seed=3)(y)
    y = keras.layers.Conv2D(4, 3, name="body")(y)
    y = keras.layers.Flatten()(y)
    return keras.Model(x, keras.layers.Dense(3, name="head")(y))


def make_search(
    space="int_l",
    cost_target="1.5xint4",
    controller=None,
    model=None,
    metrics=("accuracy",),
    compile_with=(),
    **kwargs,
):
    search = fliqs.SearchModel(
        model or make_model(), space, cost_target=cost_target, **kwargs
    )
    search.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=list(metrics),
        controller=controller
        or fliqs.Controller(
            keras.optimizers.Adam(0.05), warmup=0.2, activation_delay=0.1
        ),
        **dict(compile_with),
    )
    return search


def state_of(search):
    """Everything that a run hands from step to step."""
    variables = [
        *search.variables,
        *search.optimizer.variables,
        *search.controller.optimizer.variables,
    ]
    return [(v.name, ops.convert_to_numpy(v)) for v in variables]


class SearchTestCase(parameterized.TestCase):
    def assert_same_state(self, one, other):
        one, other = state_of(one), state_of(other)
        self.assertEqual([name for name, _ in one], [n for n, _ in other])
        for (name, value), (_, expected) in zip(one, other, strict=True):
            np.testing.assert_array_equal(value, expected, err_msg=name)

    def assert_kept_its_promise(self, search):
        found = search.assignment()
        cost = search.cost(search.searchable_model, found)
        self.assertLessEqual(cost, search.budget.target * (1 + 1e-9))


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch + 1 == self.epoch
