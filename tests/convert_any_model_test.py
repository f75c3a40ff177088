"""Conversion of whatever Keras can build: the copy computes the same."""

import os
import pathlib
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

import fliqs_tf as fliqs
from fliqs_tf.layers.base import walk
from tests.any_models import MODELS
from tests.any_models import NOT_SAVED
from tests.any_models import assert_same
from tests.any_models import attention
from tests.any_models import example
from tests.any_models import nested
from tests.any_models import state

_SHARED = pathlib.Path(__file__).resolve().parent.parent.parent / "shared"


class ConvertTest(parameterized.TestCase):
    @parameterized.parameters(*MODELS)
    @pytest.mark.one_in(3, start=1)
    def test_the_copy_is_the_model_at_fp32(self, name):
        model, x, macs = example(name)
        before = state(model)
        expected = model(x)
        searchable = fliqs.to_searchable(model, ("int4", "fp32"))
        self.assertSameElements(searchable.conversion_report.converted, macs)
        # It starts at its widest format.
        assert_same(searchable(x), expected)
        self.assertEqual(searchable.name, model.name)
        self.assertIsInstance(searchable, type(model))
        for (path, layer), (other, twin) in zip(
            walk(model), walk(searchable), strict=True
        ):
            self.assertEqual((path, layer.name), (other, twin.name))
            self.assertIsNot(layer, twin)

        fixed = fliqs.to_fixed(
            searchable, fliqs.Assignment.uniform(searchable, "fp32")
        )
        assert_same(fixed(x), expected)
        # Compiled too, where compilers fuse operations.
        assert_same(fixed.predict_on_batch(x), model.predict_on_batch(x))
        direct = fliqs.to_fixed(model, fliqs.Assignment.uniform(model, "int4"))
        self.assertNotAllClose(
            keras.tree.flatten(direct(x))[0], keras.tree.flatten(expected)[0]
        )
        # Nothing happened to the original.
        self.assertEqual(list(state(model)), list(before))
        for path, value in state(model).items():
            np.testing.assert_array_equal(value, before[path])
        assert_same(model(x), expected)

    def assertNotAllClose(self, one, other):  # noqa: N802
        self.assertFalse(np.allclose(one, other, atol=1e-6))

    @parameterized.parameters(*MODELS)
    @pytest.mark.one_in(3)
    def test_macs_of_all_calls(self, name):
        model, _, macs = example(name)
        searchable = fliqs.to_searchable(model, "int_s")
        for version in (model, searchable):
            found = fliqs.costs.profile(version)
            self.assertEqual({p: f.macs for p, f in found.items()}, macs)
        cost = fliqs.costs.get("bitops")
        self.assertAlmostEqual(
            cost(model, "int4") * 1e9, 16 * sum(macs.values())
        )

    @parameterized.parameters(*(n for n in MODELS if n not in NOT_SAVED))
    @pytest.mark.one_in(3, start=2)
    def test_saved_and_loaded(self, name):
        model, x, _ = example(name)
        searchable = fliqs.to_searchable(
            model, "int_s", rules=[fliqs.Rule(input_formats="apart", tie="all")]
        )
        searchable(x, training=True)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.keras")
            searchable.save(path)
            loaded = keras.models.load_model(path)
        self.assertIsInstance(loaded, type(model))
        assert_same(loaded(x), searchable(x))
        for (path, layer), (other, twin) in zip(
            walk(searchable), walk(loaded), strict=True
        ):
            self.assertEqual(path, other)
            if isinstance(layer, fliqs.layers.SearchableLayer):
                self.assertEqual(twin.tie, "all")
                self.assertEqual(twin.get_config(), layer.get_config())

    @parameterized.parameters("attention", "building", "nested")
    @pytest.mark.one_in(3)
    def test_searched(self, name):
        self._check_searched(name)

    @parameterized.parameters("recurrent", "subclassed")
    @pytest.mark.slow
    def test_searched_for_longer(self, name):
        self._check_searched(name)

    def _check_searched(self, name):
        model, x, macs = example(name)
        search = fliqs.SearchModel(model, "int_s", cost_target="1.5xint4")
        search.compile("sgd", "mse")
        y = [ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x))]
        search.fit(x, y if len(y) > 1 else y[0], epochs=2, verbose=0)
        found = search.assignment()
        self.assertSameElements(found, macs)
        best = search.best_model()
        assert_same(best(x), search(x))
        if name not in NOT_SAVED:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "model.keras")
                best.save(path)
                assert_same(keras.models.load_model(path)(x), best(x))

    def test_trainability_is_kept(self):
        model = attention()
        model.get_layer("head").trainable = False
        copy = fliqs.to_searchable(model, "int_s")
        self.assertLen(copy.trainable_weights, len(model.trainable_weights))
        model.trainable = False
        copy = fliqs.to_searchable(model, "int_s")
        self.assertEmpty(copy.trainable_weights)

    @parameterized.parameters(keras.Sequential, keras.Model)
    def test_names_that_keras_does_not_give_back(self, kind):
        class _Tail(keras.layers.Layer):
            # Of keywords not called `kwargs`, Keras keeps no name.
            def __init__(self, **options):
                super().__init__(**options)
                self.dense = keras.layers.Dense(3)

            def call(self, inputs):
                return self.dense(inputs)

        x = np.ones((2, 4), "float32")
        inputs = keras.Input((4,))
        # TensorFlow refuses its name, "__tail", where it begins a path.
        tail = _Tail()
        if kind is keras.Sequential:
            model = kind([inputs, tail])
        else:
            model = kind(inputs, tail(inputs))
        copy = fliqs.to_searchable(model, ("int4", "fp32"))
        self.assertEqual(copy.layers[-1].name, tail.name)
        assert_same(copy(x), model(x))
        # 4 x 3 MACs, 16 BOPs each.
        cost = fliqs.costs.get("bitops")(
            copy, fliqs.Assignment.uniform(copy, "int4")
        )
        self.assertAlmostEqual(cost, 4 * 3 * 4 * 4 * 1e-9)

    def test_a_compiled_model_with_any_loss(self):
        model = nested()
        model.compile("adam", loss=[lambda y, p: p, lambda y, p: p])
        self.assertFalse(fliqs.to_searchable(model, "int_s").compiled)

    def test_compiled_function_of_a_subclassed_model(self):
        model, x, _ = example("subclassed")
        fixed = fliqs.to_fixed(model, fliqs.Assignment.uniform(model, "int8"))
        np.testing.assert_allclose(
            tf.function(fixed)(x), fixed(x), rtol=1e-5, atol=1e-5
        )


class PretrainedTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        path = _SHARED / "mlperf_tiny" / "pretrainedResnet.h5"
        if not path.exists():
            self.skipTest("No Keras 2 file beside the checkout.")
        self.model = keras.models.load_model(path, compile=False)

    def _images(self, split):
        folder = _SHARED / "tfds"
        if not (folder / "cifar10").exists():
            self.skipTest("No CIFAR-10 beside the checkout.")
        data = tfds.load(
            "cifar10",
            split=split,
            data_dir=str(folder),
            as_supervised=True,
            batch_size=100,
            download=False,
        )
        # The file's network takes raw images, 0 to 255, and gives softmax.
        return data.map(lambda x, y: (tf.cast(x, "float32"), y))

    def test_a_keras_2_file_converts_to_the_bit(self):
        x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
        fixed = fliqs.to_fixed(
            self.model, fliqs.Assignment.uniform(self.model, "fp32")
        )
        assert_same(fixed(x), self.model(x))
        assert_same(fixed.predict_on_batch(x), self.model.predict_on_batch(x))

    @pytest.mark.slow
    def test_keeps_its_accuracy(self):
        data = self._images("test")
        fixed = fliqs.to_fixed(
            self.model, fliqs.Assignment.uniform(self.model, "fp32")
        )
        fixed.compile(metrics=["accuracy"])
        _, accuracy = fixed.evaluate(data, verbose=0)
        self.assertAlmostEqual(accuracy, 0.8719, places=6)

    @pytest.mark.slow
    def test_searched_from_its_weights(self):
        search = fliqs.SearchModel(self.model, "int_s", cost_target="1.25xint4")
        search.compile(
            keras.optimizers.SGD(1e-4), "sparse_categorical_crossentropy"
        )
        search.fit(self._images("train[:600]"), epochs=1, verbose=0)
        best = search.best_model()
        self.assertLess(
            search.cost(self.model, search.assignment()),
            1.2501 * search.cost(self.model, "int4"),
        )
        for source in self.model.layers:
            if source.name.startswith("conv2d"):
                # Trained from there, by small steps.
                np.testing.assert_allclose(
                    best.get_layer(source.name).kernel,
                    source.kernel,
                    atol=0.02,
                )


if __name__ == "__main__":
    absltest.main()
