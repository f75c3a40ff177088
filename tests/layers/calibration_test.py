"""A model whose ranges saw no data says so: once, by name, and only then."""

import os
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from tests.any_models import example

_X = np.random.default_rng(0).standard_normal((8, 4)).astype("float32")
_Y = np.zeros((8, 2), "float32")


def make(input_range="ema", number=2, **kwargs):
    """A model of kernel layers `dense_0` to `dense_<number - 1>`."""
    inputs = x = keras.Input((4,))
    for index in range(number):
        x = keras.layers.Dense(2, name=f"dense_{index}")(x)
    plain = keras.Model(inputs, x, name="mine")
    return fliqs.to_searchable(
        plain, ("int4", "int8"), input_range=input_range, **kwargs
    )


class CalibrationTest(parameterized.TestCase):
    def assertTells(self, function, *names):  # noqa: N802
        """Runs a function that must log one warning with these names."""
        with self.assertLogs("absl", "WARNING") as logs:
            function()
        (message,) = (r.getMessage() for r in logs.records)
        self.assertIn("seen no data", message)
        self.assertIn("fliqs.recalibrate", message)
        for name in names:
            self.assertIn(name, message)
        return message

    def assertSilent(self, function):  # noqa: N802
        with self.assertNoLogs("absl", "WARNING"):
            return function()

    @parameterized.product(
        input_range=("ema", "percentile", "lsq"),
        way=("predict", "evaluate", "call"),
    )
    @pytest.mark.one_in(3)
    def test_tells_once(self, input_range, way):
        model = make(input_range)
        model.compile("sgd", "mse")
        run = {
            "predict": lambda: model.predict(_X, verbose=0),
            "evaluate": lambda: model.evaluate(_X, _Y, verbose=0),
            "call": lambda: model(_X),
        }[way]
        message = self.assertTells(run, "dense_0", "dense_1", "2 layers")
        self.assertStartsWith(message, "mine ")
        self.assertSilent(run)
        self.assertSilent(lambda: model.predict(_X[:3], verbose=0))

    def test_names_few_of_many(self):
        model = make(number=9)
        message = self.assertTells(lambda: model(_X), "dense_4", "and 4 more")
        self.assertNotIn("dense_5", message)

    def test_names_only_those_without_data(self):
        model = make()
        model.layers[1](_X, training=True)
        message = self.assertTells(lambda: model(_X), "dense_1", "1 layers")
        self.assertNotIn("dense_0", message)

    @parameterized.parameters("ema", "percentile", "lsq")
    @pytest.mark.one_in(3)
    def test_silent_with_data(self, input_range):
        def run():
            model = make(input_range)
            model.compile("sgd", "mse")
            model.fit(_X, _Y, validation_data=(_X, _Y), verbose=0)
            model.predict(_X, verbose=0)
            fixed = fliqs.to_fixed(
                model, fliqs.Assignment.uniform(model, "int4")
            )
            fixed.predict(_X, verbose=0)
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "model.keras")
                fixed.save(path)
                keras.models.load_model(path)(_X)

        self.assertSilent(run)

    def test_silent_after_recalibration(self):
        def run():
            model = make()
            data = tf.data.Dataset.from_tensor_slices(_X).batch(4)
            fliqs.recalibrate(model, data)
            model.predict(_X, verbose=0)

        self.assertSilent(run)

    def test_silent_without_ranges(self):
        unquantized = [fliqs.Rule(input_formats=None)]
        for model in (make("dynamic"), make(rules=unquantized)):
            self.assertSilent(lambda model=model: model.predict(_X, verbose=0))
        model = make()
        fixed = fliqs.to_fixed(model, fliqs.Assignment.uniform(model, "fp32"))
        self.assertSilent(lambda: fixed.predict(_X, verbose=0))

    @parameterized.parameters("nested", "subclassed", "attention", "recurrent")
    @pytest.mark.one_in(2)
    def test_silent_while_models_are_made(self, name):
        def run():
            model, _, _ = example(name)
            searchable = fliqs.to_searchable(model, "int_s")
            fliqs.costs.get("bitops")(searchable, "int4")
            fixed = fliqs.to_fixed(
                searchable, fliqs.Assignment.uniform(searchable, "int4")
            )
            return fixed

        fixed = self.assertSilent(run)
        _, x, _ = example(name)
        self.assertTells(lambda: fixed(x))

    def test_a_search_that_did_not_run(self):
        search = fliqs.SearchModel(make())
        search.compile("sgd", "mse")
        self.assertTells(
            lambda: search.evaluate(_X, _Y, verbose=0), "dense_0", "dense_1"
        )

    def test_across_replicas(self):
        with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
            model = make()
            self.assertTells(lambda: model.predict(_X, verbose=0), "dense_0")
            trained = make()
            trained.compile("sgd", "mse")
            trained.fit(_X, _Y, verbose=0)
            self.assertSilent(lambda: trained.predict(_X, verbose=0))


if __name__ == "__main__":
    absltest.main()
