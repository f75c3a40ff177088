"""Conversion of whatever Keras can build: the copy computes the same."""

import math
import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl.testing import absltest
from absl.testing import parameterized
from keras import layers
from keras import ops

import fliqs_tf as fliqs
from fliqs_tf import rules
from fliqs_tf.layers.base import walk

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_SHARED = _ROOT.parent / "shared"


@keras.saving.register_keras_serializable(package="convert_any_model_test")
class Block(layers.Layer):
    """Holds layers as an attribute, in a list and in a dictionary."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)
        self.more = [layers.Dense(units), {"last": layers.Dense(units)}]
        self.norm = layers.BatchNormalization()

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")
        super().build(input_shape)

    def call(self, inputs, training=False):
        x = self.more[0](self.dense(inputs))
        x = self.more[1]["last"](x + self.dense(inputs))
        return self.norm(x, training=training) * self.gain

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="convert_any_model_test")
class Blocks(keras.Model):
    """Blocks in a list, a model inside, and a weight of its own."""

    def __init__(self, number=2, **kwargs):
        super().__init__(**kwargs)
        self.number = number
        self.blocks = [Block(4) for _ in range(number)]
        self.inner = keras.Sequential(
            [keras.Input((4,)), layers.Dense(4, name="within")]
        )
        self.head = layers.Dense(2)
        self.again = self.head
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")

    def call(self, inputs, training=False):
        x = inputs
        for block in self.blocks:
            x = block(x, training=training)
        return self.again(self.inner(x)) * self.gain

    def get_config(self):
        return {**super().get_config(), "number": self.number}


class Classifier(keras.Model):
    """Has no configuration: its arguments are a layer and a function."""

    def __init__(self, backbone, activation):
        super().__init__()
        self.backbone = backbone
        self.heads = {"one": (layers.Dense(3), layers.ReLU())}
        self.activation = activation
        self.seen = keras.metrics.Mean()

    def call(self, inputs):
        dense, relu = self.heads["one"]
        return self.activation(relu(dense(self.backbone(inputs))))


def attention(grouped=False):
    inputs = keras.Input((6, 8))
    if grouped:
        layer = layers.GroupQueryAttention(4, 4, 2, name="attention")
    else:
        layer = layers.MultiHeadAttention(2, 4, name="attention")
    x = layers.LayerNormalization()(layer(inputs, inputs) + inputs)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def recurrent():
    lstm = layers.LSTM(3, return_sequences=True, name="lstm")
    return keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.Bidirectional(lstm, name="both"),
            layers.TimeDistributed(layers.Dense(4, name="dense"), name="each"),
            layers.GRU(3, name="gru"),
        ]
    )


def subclassed():
    model = Blocks(3)
    model(np.zeros((2, 4), "float32"))
    return model


def without_config():
    model = Classifier(Blocks(2), keras.activations.tanh)
    model(np.zeros((2, 4), "float32"))
    return model


def composite():
    inputs = keras.Input((4,))
    return keras.Model(inputs, Block(4, name="block")(inputs))


def nested():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="dense")], name="inner"
    )
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,), name="given")
    x = layers.Rescaling(0.5)(inputs)
    normalization = layers.Normalization(name="normalization")
    normalization.adapt(np.arange(12.0).reshape(3, 4))
    x = shared(shared(inner(normalization(x))))
    x = layers.Lambda(lambda t: ops.tanh(t) * _FACTOR)(x[:, ::-1])
    return keras.Model(inputs, [inner(x * 2.0 + 1.0), -x])


# A name that a function serialised by Keras would lose.
_FACTOR = 3.0


def embedded():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(7, 4, name="table"),
            layers.SeparableConv1D(4, 3, name="separable"),
            layers.Conv1DTranspose(3, 3, name="up"),
        ]
    )


_MODELS = {
    "attention": (
        attention,
        (4, 6, 8),
        {
            "attention/query": 384,
            "attention/key": 384,
            "attention/value": 384,
            "attention/output": 384,
            "head": 24,
        },
    ),
    "grouped_attention": (
        lambda: attention(grouped=True),
        (4, 6, 8),
        {
            "attention/query": 6 * 8 * 16,
            "attention/key": 6 * 8 * 8,
            "attention/value": 6 * 8 * 8,
            "attention/output": 6 * 16 * 8,
            "head": 24,
        },
    ),
    "recurrent": (
        recurrent,
        (4, 6, 4),
        {
            "both/forward_lstm": 6 * 12 * (4 + 3),
            "both/backward_lstm": 6 * 12 * (4 + 3),
            "each/dense": 6 * 24,
            "gru": 6 * 9 * (4 + 3),
        },
    ),
    "subclassed": (
        subclassed,
        (4, 4),
        {
            **{
                f"blocks/{i}/{name}": 16 * calls
                for i in range(3)
                for name, calls in (
                    ("dense", 2),
                    ("more/0", 1),
                    ("more/1/last", 1),
                )
            },
            "inner/within": 16,
            "head": 8,
        },
    ),
    "without_config": (
        without_config,
        (4, 4),
        {
            **{
                f"backbone/blocks/{i}/{name}": 16 * calls
                for i in range(2)
                for name, calls in (
                    ("dense", 2),
                    ("more/0", 1),
                    ("more/1/last", 1),
                )
            },
            "backbone/inner/within": 16,
            "backbone/head": 8,
            "heads/one/0": 6,
        },
    ),
    "composite": (
        composite,
        (4, 4),
        {"block/dense": 32, "block/more/0": 16, "block/more/1/last": 16},
    ),
    "nested": (nested, (4, 4), {"inner/dense": 32, "shared": 32}),
    "embedded": (
        embedded,
        (4, 5),
        {"table": 0, "separable": 3 * (12 + 16), "up": 3 * 36},
    ),
}
# Without a configuration, or with a lambda, Keras cannot save them either.
_NOT_SAVED = ("without_config", "nested")


def example(name):
    make, shape, macs = _MODELS[name]
    rng = np.random.default_rng(0)
    if name == "embedded":
        return make(), rng.integers(0, 7, shape), macs
    return make(), rng.standard_normal(shape).astype("float32"), macs


def state(model):
    return {w.path: ops.convert_to_numpy(w) for w in model.weights}


def assert_same(found, expected):
    pairs = zip(
        keras.tree.flatten(found), keras.tree.flatten(expected), strict=True
    )
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


class ConvertTest(parameterized.TestCase):
    @parameterized.parameters(*_MODELS)
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

    @parameterized.parameters(*_MODELS)
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

    @parameterized.parameters(*(n for n in _MODELS if n not in _NOT_SAVED))
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

    @parameterized.parameters("attention", "recurrent", "subclassed", "nested")
    def test_searched(self, name):
        model, x, macs = example(name)
        search = fliqs.SearchModel(model, "int_s", cost_target="1.5xint4")
        search.compile("sgd", "mse")
        y = [ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x))]
        search.fit(x, y if len(y) > 1 else y[0], epochs=2, verbose=0)
        found = search.assignment()
        self.assertSameElements(found, macs)
        best = search.best_model()
        assert_same(best(x), search(x))
        if name not in _NOT_SAVED:
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


class RulesTest(parameterized.TestCase):
    def _decisions(self, model, given):
        search = fliqs.SearchModel(model, "int_s", rules=given)
        return {d.name: (d.options, d.layers) for d in search.decisions}

    def test_kinds_of_rules(self):
        small = ("int4", "int8")
        found = self._decisions(
            recurrent(),
            [
                fliqs.Rule(path="each/.*"),
                fliqs.Rule(kind="GRU", formats="int8", input_formats=None),
                fliqs.Rule(
                    predicate=lambda path, layer: layer.go_backwards,
                    input_formats="apart",
                ),
                fliqs.Rule(kind="LSTM", formats="int5,int6"),
            ],
        )
        self.assertEqual(
            found,
            {
                "both/forward_lstm": (("int5", "int6"), ("both/forward_lstm",)),
                "both/backward_lstm:weight_format": (
                    small,
                    ("both/backward_lstm",),
                ),
                "both/backward_lstm:input_format": (
                    small,
                    ("both/backward_lstm",),
                ),
                "gru:weight_format": (("int8",), ("gru",)),
            },
        )

    def test_tied_layers_are_one_decision(self):
        model = attention()
        group = tuple(f"attention/{n}" for n in ("query", "key", "value"))
        tie = fliqs.Rule(path="attention/(query|key|value)", tie="projections")
        found = self._decisions(model, [tie])
        self.assertEqual(found["projections"], (("int4", "int8"), group))
        self.assertLen(found, 3)
        search = fliqs.SearchModel(
            model, "int_s", cost_target="1.8xint4", rules=[tie]
        )
        assignment = search.assignment()
        self.assertLen({assignment[path] for path in group}, 1)
        self.assertLessEqual(
            search.cost(model, assignment), search.budget.target * 1.0001
        )
        self.assertAlmostEqual(
            search.budget.of(np.zeros(3, int)), search.cost(model, "int4")
        )

    def test_ties_that_cannot_be(self):
        model = attention()
        for given in (
            [
                fliqs.Rule(path="head", tie="x", formats="int4,int5"),
                fliqs.Rule(tie="x"),
            ],
            [fliqs.Rule(path="attention/.*", tie="head")],
        ):
            with self.assertRaisesRegex(ValueError, "Received: tie="):
                fliqs.SearchModel(model, "int_s", rules=given)

    def test_presets(self):
        model = embedded()
        first_and_last = self._decisions(model, rules.first_and_last(model))
        self.assertEqual(first_and_last["separable"][0], ("int8",))
        self.assertEqual(first_and_last["up"][0], ("int8",))
        self.assertLen(self._decisions(model, rules.PAPER), 3)
        self.assertSameElements(
            self._decisions(model, rules.weights_only()),
            [f"{n}:weight_format" for n in ("table", "separable", "up")],
        )
        # A table has no inputs to quantize.
        self.assertLen(self._decisions(model, rules.apart()), 5)

    def test_a_rule_for_nothing(self):
        for rule in (
            fliqs.Rule(path="atention/query", tie="x"),
            fliqs.Rule(kind="Conv2D", formats="int8"),
        ):
            with self.assertRaisesRegex(ValueError, "attention/query"):
                fliqs.to_searchable(attention(), "int_s", rules=[rule])
        for bad in ({"path": "("}, {"kind": "["}, {"formats": "int9"}):
            with self.assertRaisesRegex(ValueError, "Received"):
                fliqs.Rule(**bad)


class Lowpass(layers.Layer):
    """A layer of one's own with a kernel, as in the documentation."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(3, input_shape[-1]), name="kernel")
        self.bias = self.activation = None

    def filter(self, inputs, kernel):
        return sum(ops.roll(inputs, i, axis=1) * kernel[i] for i in range(3))

    def call(self, inputs):
        return self.filter(inputs, self.kernel)


class BadInputTest(parameterized.TestCase):
    def test_unknown_layers_are_reported_and_can_be_taught(self):
        class Custom(Lowpass):
            pass

        inputs = keras.Input((5, 4))
        x = layers.Dense(4, name="dense")(Custom(name="custom")(inputs))
        model = keras.Model(inputs, x)
        report = fliqs.to_searchable(model, "int_s").conversion_report
        self.assertEqual(report.converted, ("dense",))
        self.assertRegex(report.left_alone["custom"], "searchable")

        @fliqs.layers.searchable(Custom)
        class SearchableCustom(fliqs.layers.SearchableLayer, Custom):
            def compute(self, inputs, training):
                inputs, kernel, scale = self.quantize_operands(inputs, training)
                return self.finish(self.filter(inputs, kernel), scale)

            @staticmethod
            def macs(layer, input_shape):
                return math.prod(input_shape[1:]) * layer.kernel.shape[0]

        searchable = fliqs.to_searchable(model, ("int4", "fp32"))
        self.assertIsInstance(searchable.get_layer("custom"), SearchableCustom)
        x = np.random.default_rng(0).standard_normal((2, 5, 4))
        assert_same(searchable(x), model(x))
        self.assertEqual(fliqs.costs.profile(model)["custom"].macs, 60)

    def test_twice(self):
        for model in (attention(), subclassed()):
            searchable = fliqs.to_searchable(model, "int_s")
            with self.assertRaisesRegex(ValueError, "searchable layers"):
                fliqs.to_searchable(searchable, "int_s")
        model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
        model.quantize("int8")
        with self.assertRaisesRegex(ValueError, "quantized by Keras"):
            fliqs.to_searchable(model, "int_s")
        searchable = fliqs.layers.Dense(3)
        searchable.build((None, 4))
        with self.assertRaisesRegex(ValueError, "Received: mode='int8'"):
            searchable.quantize("int8")

    def test_not_built(self):
        for model in (
            Blocks(),
            keras.Sequential([layers.Dense(3)]),
            "model.keras",
        ):
            with self.assertRaisesRegex(ValueError, "Received"):
                fliqs.to_searchable(model, "int_s")

    def test_no_kernel(self):
        inputs = keras.Input((4,))
        model = keras.Model(inputs, layers.Lambda(lambda x: 2 * x)(inputs))
        with self.assertRaisesRegex(ValueError, "Lambda"):
            fliqs.to_searchable(model, "int_s")

    def test_lora(self):
        with self.assertRaisesRegex(ValueError, "Received: lora_rank=2"):
            fliqs.layers.Dense(3, lora_rank=2)
        layer = fliqs.layers.EinsumDense("ab,bc->ac", 3)
        layer.build((None, 4))
        with self.assertRaisesRegex(ValueError, "Merge them"):
            layer.enable_lora(2)
        model = attention()
        model.get_layer("head").enable_lora(2)
        report = fliqs.to_searchable(model, "int_s").conversion_report
        self.assertIn("LoRA", report.left_alone["head"])

    @parameterized.parameters("jax", "torch", "numpy")
    def test_other_backends(self, backend):
        result = subprocess.run(
            [sys.executable, "-c", "import fliqs_tf"],
            cwd=_ROOT,
            env={**os.environ, "KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
        )
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(f"Received: backend='{backend}'", result.stderr)


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
