"""Tests of schedules and optimizers, and of what a run makes of them."""

import math

import keras
import numpy as np
from absl.testing import parameterized

from fliqs_tf import layers
from fliqs_tf import recipes
from fliqs_tf.config import TrainConfig


def _config(**arguments):
    return TrainConfig(run_dir="unused", **arguments)


class ScheduleTest(parameterized.TestCase):
    def test_cosine_with_warmup(self):
        schedule = recipes.Schedule("cosine", 0.5, steps=100, warmup=20)
        for step, expected in (
            (0, 0.0),
            (10, 0.25),
            (20, 0.5),
            (60, 0.25),
            (80, 0.25 * (1 + math.cos(0.75 * math.pi))),
            (100, 0.0),
            (500, 0.0),
        ):
            self.assertAlmostEqual(float(schedule(step)), expected, places=6)

    def test_exponential_falls_in_steps(self):
        schedule = recipes.Schedule(
            "exponential", 1.0, steps=100, warmup=4, decay=0.5, decay_steps=10
        )
        for step, expected in (
            (2, 0.5),
            (9, 1.0),
            (10, 0.5),
            (19, 0.5),
            (35, 0.125),
        ):
            self.assertAlmostEqual(float(schedule(step)), expected)

    def test_steps_after_a_half_and_three_quarters(self):
        schedule = recipes.Schedule("step", 1.0, steps=100, decay=0.1)
        for step, expected in (
            (0, 1.0),
            (49, 1.0),
            (50, 0.1),
            (74, 0.1),
            (75, 0.01),
            (100, 0.01),
        ):
            self.assertAlmostEqual(float(schedule(step)), expected)

    def test_constant(self):
        schedule = recipes.Schedule("constant", 0.3, steps=10)
        self.assertAlmostEqual(float(schedule(9)), 0.3)

    def test_serial_form(self):
        schedule = recipes.Schedule("cosine", 0.5, steps=100, warmup=20)
        again = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(schedule)
        )
        self.assertEqual(float(again(33)), float(schedule(33)))


class OptimizerTest(parameterized.TestCase):
    @parameterized.parameters(
        ("adam", keras.optimizers.Adam),
        ("sgd", keras.optimizers.SGD),
        ("rmsprop", keras.optimizers.RMSprop),
    )
    def test_kind_and_schedule(self, name, kind):
        config = _config(
            optimizer=name,
            learning_rate=0.1,
            schedule="exponential",
            schedule_decay=0.5,
            schedule_epochs=2.5,
            learning_rate_warmup=0.5,
            clip_norm=2.0,
        )
        optimizer = recipes.make_optimizer(config, 4, 10, rate=0.5)
        self.assertIsInstance(optimizer, kind)
        self.assertEqual(optimizer.global_clipnorm, 2.0)
        schedule = optimizer._learning_rate
        self.assertAlmostEqual(float(schedule(1)), 0.025)
        self.assertAlmostEqual(float(schedule(9)), 0.05)
        self.assertAlmostEqual(float(schedule(10)), 0.025)

    def test_decay_leaves_biases_norms_and_ranges_alone(self):
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dense(2, bias_initializer="ones"),
                keras.layers.BatchNormalization(),
                layers.Dense(2, input_range="lsq"),
            ]
        )
        x = np.random.default_rng(0).standard_normal((4, 3))
        model(x.astype("float32"), training=True)
        before = [w.numpy() for w in model.trainable_variables]
        config = _config(
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=0.5,
            schedule="constant",
        )
        optimizer = recipes.make_optimizer(config, 1, 1)
        zeros = [np.zeros_like(w) for w in before]
        optimizer.apply(zeros, model.trainable_variables)
        after = [w.numpy() for w in model.trainable_variables]
        names = [w.name for w in model.trainable_variables]
        self.assertIn("input_range", names)
        for name, old, new in zip(names, before, after, strict=True):
            share = 0.95 if name == "kernel" else 1.0
            np.testing.assert_allclose(new, old * share, rtol=1e-6)

    def test_moving_average_becomes_the_weights(self):
        config = _config(
            optimizer="sgd",
            learning_rate=0.5,
            schedule="constant",
            weight_ema=0.9,
        )
        optimizer = recipes.make_optimizer(config, 1, 1)
        weight = keras.Variable(1.0)
        average = 0.0
        for step in range(5):
            optimizer.apply([keras.ops.array(0.2)], [weight])
            momentum = 0.9 if step else 0.0
            average = momentum * average + (1 - momentum) * float(weight)
        optimizer.finalize_variable_values([weight])
        self.assertAlmostEqual(float(weight), average, places=6)

    @parameterized.parameters(
        {"optimizer": "lion"},
        {"schedule": "linear"},
        {"schedule_decay": 0.0},
        {"learning_rate_warmup": 31.0},
        {"weight_ema": 1.0},
        {"clip_norm": -1.0},
        {"image_size": 0},
        {"model_arguments": "[1]"},
        {"model_arguments": "x=1"},
    )
    def test_bad_configurations(self, **arguments):
        (name,) = arguments
        with self.assertRaisesRegex(ValueError, f"`{name}`.*Received: "):
            _config(**arguments)

    def test_arguments_of_the_network(self):
        config = _config(width=0.5, model_arguments='{"dropout": 0.1}')
        self.assertEqual(
            config.network_arguments(), {"width": 0.5, "dropout": 0.1}
        )
