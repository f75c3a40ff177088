"""What a search refuses, and which way out the error names."""

import os

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from tests.search_cases import SearchTestCase
from tests.search_cases import make_data
from tests.search_cases import make_search


def _model(cls=keras.Model, **kwargs):
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(4, activation="relu", **kwargs)(inputs)
    return cls(inputs, keras.layers.Dense(2, name="head", **kwargs)(outputs))


def _search(model=None, **kwargs):
    return make_search(
        model=model or _model(), cost_target=None, metrics=(), **kwargs
    )


_X, _Y = np.ones((16, 3), "float32"), np.zeros(16, "int32")


class OwnLoss(keras.Model):
    def compute_loss(self, **kwargs):
        return 2.0 * super().compute_loss(**kwargs)


class OwnSteps(keras.Model):
    def train_step(self, data):
        raise NotImplementedError

    def test_step(self, data):
        raise NotImplementedError


class OwnCall(keras.Model):
    """As most classes of one's own: it computes, and no more."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


class LossSearch(fliqs.SearchModel):
    def compute_loss(self, *args, **kwargs):
        return 2.0 * super().compute_loss(*args, **kwargs)


class ArgumentsTest(SearchTestCase):
    @parameterized.parameters(
        ("`beta`", {"beta": "1"}),
        ("`beta`", {"beta": float("inf")}),
        ("`beta`", {"beta": float("nan")}),
        ("`beta`", {"beta": -1.0}),
        ("`quality`", {"quality": "acc"}),
        ("`bounds`", {"bounds": "size:50%"}),
    )
    def test_each_has_a_text_of_its_own(self, name, arguments):
        with self.assertRaisesRegex(ValueError, f"^{name}.*Received: "):
            _search(**arguments)

    def test_what_is_no_model(self):
        with self.assertRaisesRegex(ValueError, "Received: str"):
            fliqs.SearchModel("resnet8", "int_s")

    @parameterized.parameters(1, np.float32(0.5), np.int64(2))
    def test_numbers_of_any_kind(self, beta):
        self.assertEqual(_search(beta=beta).beta, beta)

    @parameterized.parameters(
        {"rules": [fliqs.Rule(path="head", formats="int8")]},
        {"input_range": "dynamic"},
        {"input_signedness": "affine"},
    )
    def test_conversion_of_what_is_converted(self, **arguments):
        model = fliqs.to_searchable(_model(), "int_s")
        (name,) = arguments
        with self.assertRaisesRegex(ValueError, f"Received: {name}=.*space"):
            fliqs.SearchModel(model, **arguments)
        fliqs.SearchModel(model, rules=[])


class StepsTest(SearchTestCase):
    def test_a_loss_of_the_model(self):
        for model in (_model(OwnLoss), _model()):
            # Also one that was put into a model.
            if type(model) is not OwnLoss:
                fliqs.distill(model, _model())
            with self.assertRaisesRegex(ValueError, "Received: .*compute_loss"):
                _search(model)

    def test_a_loss_of_the_search(self):
        loss = keras.losses.SparseCategoricalCrossentropy(True)
        search = LossSearch(_model(OwnLoss), "int_s")
        search.compile("sgd", loss)
        logs = search.evaluate(_X, _Y, verbose=0, return_dict=True)
        expected = 2.0 * float(loss(_Y, search.predict(_X, verbose=0)))
        self.assertAlmostEqual(logs["loss"], expected, places=5)

    def test_steps_of_the_model(self):
        with self.assertLogs("absl", level="WARNING") as logs:
            search = _search(_model(OwnSteps))
        self.assertLen(logs.output, 2)
        for name, text in zip(("train", "test"), logs.output, strict=True):
            self.assertIn(f"OwnSteps with `{name}_step` of its own", text)
        search.fit(_X, _Y, verbose=0)

    def test_a_call_of_the_model(self):
        model = OwnCall()
        model(_X)
        with self.assertNoLogs("absl", level="WARNING"):
            _search(model).fit(_X, _Y, epochs=2, verbose=0)


class CompileTest(SearchTestCase):
    @parameterized.parameters(fliqs.Controller, "decision", 1)
    def test_what_is_no_controller(self, controller):
        with self.assertRaisesRegex(ValueError, "Received: controller="):
            _search().compile("sgd", "mse", controller=controller)

    def test_a_controller_belongs_to_one_search(self):
        first, second = _search(), _search()
        with self.assertRaisesRegex(
            ValueError, "one search. Received: .*in use"
        ):
            second.compile("sgd", "mse", controller=first.controller)

    def test_compiled_again(self):
        search = _search()
        search.fit(_X, _Y, epochs=2, verbose=0)
        controller = search.controller
        steps = int(controller.optimizer.iterations)
        loss = keras.losses.SparseCategoricalCrossentropy(True)
        search.compile("sgd", loss, controller=controller)
        self.assertEqual(int(controller.optimizer.iterations), steps)
        search.compile("sgd", loss)
        self.assertIsNot(search.controller, controller)
        fresh = _search(search.searchable_model, space=None)
        self.assertEqual(
            [layer.name.split("_")[0] for layer in search.layers],
            [layer.name.split("_")[0] for layer in fresh.layers],
        )
        self.assertLen(search.weights, len(fresh.weights))
        path = os.path.join(self.create_tempdir(), "search.keras")
        search.fit(_X, _Y, verbose=0)
        search.save(path)
        self.assert_same_state(keras.models.load_model(path), search)

    def test_arguments_in_the_order_of_keras(self):
        search = _search()
        search.compile("sgd", "mse", [0.5], ["mae"])
        logs = search.evaluate(
            _X, np.ones((16, 2)), verbose=0, return_dict=True
        )
        search.compile("sgd", "mse")
        whole = search.evaluate(_X, np.ones((16, 2)), verbose=0)
        whole = whole[0] if isinstance(whole, list) else whole
        self.assertAlmostEqual(logs["loss"], 0.5 * whole, places=5)
        self.assertIn("mae", logs)
        with self.assertRaises(TypeError):
            search.compile("sgd", "mse", None, None, fliqs.Controller())


class FitTest(SearchTestCase):
    def test_batches_before_a_run(self):
        search = _search()
        with self.assertRaisesRegex(ValueError, "Received: `train_on_batch`"):
            search.train_on_batch(_X, _Y)
        search.fit(_X, _Y, epochs=2, verbose=0)
        found = search.assignment()
        search.train_on_batch(_X, _Y)
        self.assertEqual(search.assignment(), found)

    def test_one_output_in_a_dictionary(self):
        inputs = keras.Input((3,))
        model = keras.Model(inputs, {"kind": keras.layers.Dense(2)(inputs)})
        search = fliqs.SearchModel(model, "int_s", quality="accuracy")
        loss = keras.losses.SparseCategoricalCrossentropy(True)
        search.compile("sgd", {"kind": loss})
        search.fit(_X, {"kind": _Y}, epochs=2, verbose=0)
        self.assertEqual(int(search.frozen), 1)

    def test_exported(self):
        search = make_search(cost_target=None)
        data = make_data(steps=1)
        search.fit(data, epochs=2, verbose=0)
        folder = os.path.join(self.create_tempdir(), "exported")
        search.export(folder, verbose=False)
        x, _ = next(iter(data))
        loaded = tf.saved_model.load(folder)
        np.testing.assert_allclose(
            loaded.serve(x),
            search.best_model()(x),
            rtol=1e-5,
            atol=1e-5,
        )

    def test_loss_scaling_of_a_float16_model(self):
        keras.config.set_dtype_policy("mixed_float16")
        self.addCleanup(keras.config.set_dtype_policy, "float32")
        model = _model()
        keras.config.set_dtype_policy("float32")
        search = _search(model)
        path = os.path.join(self.create_tempdir(), "search.keras")
        search.fit(_X, _Y, epochs=2, verbose=0)
        search.save(path)
        loaded = keras.models.load_model(path)
        for one in (search, loaded):
            self.assertIsInstance(
                one.optimizer, keras.optimizers.LossScaleOptimizer
            )
        self.assert_same_state(loaded, search)
        np.testing.assert_array_equal(
            loaded.predict(_X, verbose=0), search.predict(_X, verbose=0)
        )


if __name__ == "__main__":
    absltest.main()
