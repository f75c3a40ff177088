"""Tests of distillation: the loss, and that a student comes to its teacher."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf import baselines
from tests.baselines import planted


def _model(units=16, classes=3, seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(units, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x))


def _softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def _divergence(teacher, student, x, temperature=1.0):
    """Mean over samples of KL(teacher, student), nat."""
    p = _softmax(np.asarray(teacher(x), np.float64) / temperature)
    q = _softmax(np.asarray(student(x), np.float64) / temperature)
    return float((p * np.log(p / q)).sum(axis=-1).mean())


def _loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class DistillationTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        self.y = np.random.default_rng(1).integers(0, 3, (64, 1))

    def test_loss_of_training_is_the_equation(self):
        teacher, student = _model(seed=1), _model(seed=2)
        student.compile(keras.optimizers.SGD(0.0), _loss(), jit_compile=False)
        plain = student.evaluate(self.x, self.y, batch_size=64, verbose=0)
        fliqs.distill(student, teacher, temperature=3.0, weight=0.25)
        history = student.fit(self.x, self.y, batch_size=64, verbose=0).history
        other = 9.0 * _divergence(teacher, student, self.x, 3.0)
        self.assertAlmostEqual(
            history["loss"][0], 0.75 * plain + 0.25 * other, places=5
        )
        # Evaluation knows no teacher.
        self.assertAlmostEqual(
            student.evaluate(self.x, self.y, batch_size=64, verbose=0),
            plain,
            places=5,
        )

    @parameterized.parameters(False, True)
    @pytest.mark.one_in(2)
    def test_student_comes_closer_to_the_teacher(self, searches):
        def trained(teacher):
            student = _model(seed=2)
            if searches:
                student = fliqs.SearchModel(student, "int_s")
            if teacher is not None:
                fliqs.distill(student, teacher, temperature=2.0, weight=1.0)
            student.compile(keras.optimizers.Adam(0.01), _loss())
            student.fit(self.x, self.y, epochs=20, verbose=0, shuffle=False)
            return student

        teacher = _model(seed=1)
        start = _divergence(teacher, _model(seed=2), self.x)
        alone = _divergence(teacher, trained(None), self.x)
        taught = _divergence(teacher, trained(teacher), self.x)
        self.assertLess(taught, 0.5 * start)
        self.assertLess(taught, 0.5 * alone)

    def test_teacher_is_not_trained_nor_stored(self):
        teacher, student = _model(seed=1), _model(seed=2)
        before = teacher.get_weights()
        fliqs.distill(student, teacher)
        student.compile("sgd", _loss())
        student.fit(self.x, self.y, verbose=0)
        for old, new in zip(before, teacher.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
        self.assertLen(student.weights, 4)
        path = self.create_tempdir().full_path + "/student.keras"
        student.save(path)
        again = keras.models.load_model(path)
        np.testing.assert_allclose(again(self.x), student(self.x), rtol=1e-6)

    @parameterized.parameters(
        "uniform:int4",
        "manual",
        "random",
        "ptq",
        "differentiable",
        "evolutionary",
    )
    @pytest.mark.slow
    def test_every_method_learns_from_a_teacher(self, method):
        """The teacher is of one class alone: students come to believe it."""
        task, _ = planted.planted_task(24, is_trained=False)
        teacher = planted.planted_model()
        constant = keras.layers.Dense(
            planted.SIZE,
            kernel_initializer="zeros",
            bias_initializer=keras.initializers.Constant([9.0] + [0.0] * 7),
        )
        teacher.add(constant)

        def fit(model, first, last, rate=1.0, **arguments):
            model.compile(
                keras.optimizers.Adam(0.02 * rate), task.loss, **arguments
            )
            fliqs.distill(model, teacher, temperature=1.0, weight=1.0)
            model.fit(task.data, initial_epoch=first, epochs=last, verbose=0)

        # Without biases, a constant class needs an input that is constant.
        data = task.data.map(
            lambda x, y: (tf.concat([x[:, :-1], tf.ones_like(x[:, :1])], 1), y)
        )
        task = dataclasses.replace(
            task, fit=fit, target=task.cost(task.model, "int8"), data=data
        )
        model = baselines.get(method)(task).model
        x = np.concatenate([x for x, _ in data.as_numpy_iterator()])
        before = _softmax(np.asarray(task.model(x)))[:, 0].mean()
        after = _softmax(np.asarray(model(x)))[:, 0].mean()
        self.assertLess(before, 0.5)
        self.assertGreater(after, 0.8)

    def test_teacher_without_a_graph(self):
        class Teacher(keras.Model):
            def __init__(self, classes):
                super().__init__()
                self.dense = keras.layers.Dense(classes)

            def call(self, inputs):
                return self.dense(inputs)

        for classes in (3, 5):
            student = _model()
            fliqs.distill(student, Teacher(classes))
            student.compile("sgd", _loss())
            if classes == 3:
                student.fit(self.x, self.y, verbose=0)
            else:
                with self.assertRaisesRegex(
                    ValueError, r"\[\(5,\)\] of the teacher"
                ):
                    student.fit(self.x, self.y, verbose=0)

    def test_bad_arguments(self):
        student = _model()
        for bad in ({"temperature": 0.0}, {"weight": 1.5}):
            with self.assertRaisesRegex(ValueError, "Received: temperature="):
                fliqs.distill(student, _model(), **bad)
        with self.assertRaisesRegex(ValueError, r"\[\(5,\)\] of the teacher"):
            fliqs.distill(student, _model(classes=5))
