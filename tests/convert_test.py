"""Conversion of whole models: what is kept, what is chosen, what is refused."""

import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_RULE = fliqs.Rule


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(4, 3, name="stem"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.DepthwiseConv2D(3, name="depthwise"),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="softmax", name="head"),
        ],
        name="plain",
    )


def functional():
    x = keras.Input((8, 8, 2), name="image")
    y = keras.layers.Conv2D(4, 3, padding="same", name="stem")(x)
    z = keras.layers.Conv2D(4, 1, name="shortcut", use_bias=False)(x)
    y = keras.layers.ReLU()(keras.layers.Add()([y, z]))
    a = keras.layers.GlobalAveragePooling2D()(y)
    return keras.Model(
        x,
        {
            "one": keras.layers.Dense(3, name="one")(a),
            "two": keras.layers.Dense(2, name="two")(a),
        },
        name="plain",
    )


def nested():
    inside = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2D(3, 1, name="conv"),
            keras.layers.BatchNormalization(),
        ],
        name="inside",
    )
    x = keras.Input((4, 4, 2))
    y = keras.layers.Conv2D(2, 1, name="narrow")(inside(x))
    middle = keras.Model(x, y, name="middle")
    x = keras.Input((6, 6, 1))
    y = keras.layers.Conv2D(2, 3, name="conv")(x)
    y = keras.layers.Flatten()(middle(y))
    return keras.Model(x, keras.layers.Dense(2, name="head")(y), name="plain")


def shared():
    x = keras.Input((5, 4))
    dense = keras.layers.Dense(4, name="twice")
    y = dense(keras.layers.ReLU()(dense(x)))
    return keras.Model(x, keras.layers.Dense(1, name="head")(y))


_MODELS = {
    "sequential": (sequential, ["stem", "depthwise", "head"]),
    "functional": (functional, ["stem", "shortcut", "one", "two"]),
    "nested": (
        nested, ["conv", "middle/inside/conv", "middle/narrow", "head"],
    ),
    "shared": (shared, ["twice", "head"]),
}  # fmt: skip


def names_of(model):
    """Names of layers; Keras names inputs anew that have none of their own."""
    return [
        layer.name
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer)
    ]


def settle(model):
    """Gives every weight a value that its initializer does not give."""
    rng = np.random.default_rng(0)
    model.set_weights(
        [rng.uniform(0.1, 1, w.shape).astype("float32") for w in model.weights]
    )
    return model


def inputs_of(model):
    rng = np.random.default_rng(1)
    shape = (3, *model.inputs[0].shape[1:])
    return rng.standard_normal(shape).astype("float32")


def outputs_of(model, x):
    return keras.tree.flatten(model(x))


class ConvertTest(parameterized.TestCase):
    def assert_same_outputs(self, one, other, x):
        for a, b in zip(outputs_of(one, x), outputs_of(other, x), strict=True):
            np.testing.assert_array_equal(a, b)

    @parameterized.parameters(*_MODELS)
    def test_searchable_clone(self, name):
        make, paths = _MODELS[name]
        model = settle(make())
        x = inputs_of(model)
        before = [np.array(w) for w in model.get_weights()]
        config = str(model.get_config())
        found = fliqs.to_searchable(model, ("int4", "fp32"))
        # The original is untouched, the clone the same function at fp32.
        self.assertEqual(str(model.get_config()), config)
        for one, other in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(one, other)
        self.assertIs(type(found), type(model))
        self.assertEqual(found.name, model.name)
        self.assertEqual(names_of(found), names_of(model))
        self.assertEqual(found.conversion_report.converted, tuple(paths))
        self.assertEmpty(found.conversion_report.left_alone)
        self.assert_same_outputs(found, model, x)
        for one, other in zip(
            found.trainable_weights, model.trainable_weights, strict=True
        ):
            self.assertEqual(one.name, other.name)
            np.testing.assert_array_equal(one, other)
            self.assertIsNot(one, other)
        # Training the clone leaves the original alone.
        found.trainable_weights[0].assign(found.trainable_weights[0] + 1)
        np.testing.assert_array_equal(model.get_weights()[0], before[0])

    @parameterized.parameters(*_MODELS)
    def test_fixed_clones(self, name):
        make, paths = _MODELS[name]
        model = settle(make())
        x = inputs_of(model)
        self.assert_same_outputs(
            fliqs.to_fixed(model, dict.fromkeys(paths, "fp32")), model, x
        )
        # The same formats give the same, by whatever way.
        assignment = {
            path: ("int4", "e4m3", "int8", "e2m1")[number]
            for number, path in enumerate(paths)
        }
        direct = fliqs.to_fixed(model, assignment)
        searchable = fliqs.to_searchable(model, "int_l")
        self.assert_same_outputs(
            fliqs.to_fixed(searchable, assignment), direct, x
        )
        again = fliqs.to_fixed(
            fliqs.to_fixed(model, dict.fromkeys(paths, "int5")), assignment
        )
        self.assert_same_outputs(again, direct, x)

    def test_formats_of_a_fixed_model(self):
        fixed = fliqs.to_fixed(
            sequential(),
            {
                "stem": "int4",
                "depthwise": {"weight": "int4", "input": "e4m3"},
                "head": {"weight": "e2m1", "input": None},
            },
            input_range="dynamic",
        )
        stem, depthwise, head = (
            fixed.get_layer(n) for n in ("stem", "depthwise", "head")
        )
        self.assertEqual(stem.formats, ("int4",))
        self.assertEqual(stem.input_quantizer.formats, ("int4",))
        self.assertEqual(depthwise.input_quantizer.formats, ("e4m3",))
        self.assertIsNone(head.input_quantizer)
        self.assertTrue(all(la.is_fixed for la in (stem, depthwise, head)))
        self.assertEqual(stem.input_range, "dynamic")

    def test_range_and_statistics_go_along(self):
        searchable = fliqs.to_searchable(sequential(), "int_s")
        x = inputs_of(searchable)
        searchable(x, training=True)
        fixed = fliqs.to_fixed(
            searchable, fliqs.Assignment.uniform(searchable, "int8")
        )
        for path in ("stem", "depthwise", "head"):
            one = searchable.get_layer(path)._input_state
            other = fixed.get_layer(path)._input_state
            self.assertGreater(float(one["range"]), 0)
            for key in ("range", "updates"):
                self.assertEqual(float(one[key]), float(other[key]))
        np.testing.assert_array_equal(
            fixed.get_layer("norm").moving_mean,
            searchable.get_layer("norm").moving_mean,
        )
        # A searchable model that nobody searches is at its widest format.
        self.assert_same_outputs(fixed, searchable, x)

    def test_trainable_is_kept(self):
        model = sequential()
        model.get_layer("stem").trainable = False
        model.get_layer("norm").trainable = False
        for found in (
            fliqs.to_searchable(model, "int_s"),
            fliqs.to_fixed(model, "int4"),
        ):
            self.assertFalse(found.get_layer("stem").trainable)
            self.assertFalse(found.get_layer("norm").trainable)
            self.assertTrue(found.get_layer("head").trainable)
            self.assertLen(
                found.trainable_weights, len(model.trainable_weights)
            )

    def test_shared_layer_is_one_decision(self):
        model = shared()
        found = fliqs.to_searchable(model, "int_s")
        self.assertLen(found.get_layer("twice")._inbound_nodes, 2)
        search = fliqs.SearchModel(model, "int_s")
        self.assertEqual([d.path for d in search.decisions], ["twice", "head"])

    def test_layers_left_alone_are_reported(self):
        class Mix(keras.layers.Layer):
            def build(self, shape):
                self.mixing = self.add_weight(shape=(shape[-1], shape[-1]))

            def call(self, x):
                return x @ self.mixing

        x = keras.Input((6,))
        y = keras.layers.Dense(4, name="stem")(x)
        y = Mix(name="mix")(y)
        y = keras.layers.Dense(2, name="head")(y)
        found = fliqs.to_searchable(
            keras.Model(x, y), "int_s", [_RULE(path="head")]
        )
        report = found.conversion_report
        self.assertEqual(report.converted, ("stem",))
        self.assertEqual(list(report.left_alone), ["mix", "head"])
        self.assertIn("Mix has no searchable form", report.left_alone["mix"])
        self.assertIn("rule path='head'", report.left_alone["head"])
        self.assertIn("1 layers are searchable", str(report))
        self.assertIs(type(found.get_layer("head")), keras.layers.Dense)

    def test_subclass_of_a_keras_layer_is_left_alone(self):
        class Odd(keras.layers.Dense):
            def call(self, inputs):
                return -super().call(inputs)

        model = keras.Sequential(
            [keras.Input((3,)), Odd(2, name="odd"), keras.layers.Dense(1)]
        )
        found = fliqs.to_searchable(model, "int_s")
        self.assertIs(type(found.get_layer("odd")), Odd)
        self.assertIn("odd", found.conversion_report.left_alone)


class RulesTest(parameterized.TestCase):
    def test_first_match_decides(self):
        found = fliqs.to_searchable(
            nested(),
            "int_l",
            [
                _RULE(path="middle/narrow", formats="e4m3"),
                _RULE(path="middle/.*", formats=("int4", "int8")),
                _RULE(path="head"),
            ],
        )
        middle = found.get_layer("middle")
        self.assertEqual(middle.get_layer("narrow").formats, ("e4m3",))
        self.assertEqual(
            middle.get_layer("inside").get_layer("conv").formats,
            ("int4", "int8"),
        )
        self.assertEqual(found.get_layer("conv").formats, fliqs.SPACES["int_l"])
        self.assertIs(type(found.get_layer("head")), keras.layers.Dense)

    def test_unmatched_rule(self):
        with self.assertRaises(ValueError) as context:
            fliqs.to_searchable(nested(), "int_s", [_RULE(path="middle/conv")])
        message = str(context.exception)
        self.assertIn("path='middle/conv'", message)
        self.assertIn("middle/inside/conv", message)

    def test_rule_that_an_earlier_one_hides(self):
        with self.assertRaisesRegex(ValueError, "path='stem'"):
            fliqs.to_searchable(
                sequential(),
                "int_s",
                [_RULE(path=".*", formats="int4"), _RULE(path="stem")],
            )

    def test_rule_of_a_layer_without_searchable_form(self):
        with self.assertRaisesRegex(ValueError, "path='norm'"):
            fliqs.to_searchable(sequential(), "int_s", [_RULE(path="norm")])


class ErrorsTest(parameterized.TestCase):
    def test_not_a_model(self):
        with self.assertRaisesRegex(ValueError, "Received: Dense"):
            fliqs.to_searchable(keras.layers.Dense(2), "int_s")

    def test_unbuilt_model(self):
        model = keras.Sequential([keras.layers.Dense(2)])
        with self.assertRaisesRegex(ValueError, "without weights yet"):
            fliqs.to_searchable(model, "int_s")

    def test_nothing_to_search(self):
        x = keras.Input((3,))
        model = keras.Model(x, keras.layers.ReLU()(x))
        with self.assertRaisesRegex(ValueError, "'ReLU'"):
            fliqs.to_searchable(model, "int_s")
        with self.assertRaisesRegex(ValueError, "all left alone"):
            fliqs.to_searchable(sequential(), "int_s", [_RULE(path=".*")])

    def test_searchable_already(self):
        model = fliqs.to_searchable(sequential(), "int_s")
        with self.assertRaisesRegex(ValueError, "with searchable layers"):
            fliqs.to_searchable(model, "int_s")

    def test_bad_space_and_range(self):
        with self.assertRaisesRegex(ValueError, "Received"):
            fliqs.to_searchable(sequential(), "int_m")
        with self.assertRaisesRegex(ValueError, "Received: range='static'"):
            fliqs.to_searchable(sequential(), "int_s", input_range="static")

    def test_assignment_of_other_layers(self):
        for model in (sequential(), fliqs.to_searchable(sequential(), "int_s")):
            good = fliqs.Assignment.uniform(model, "int4")
            with self.assertRaises(ValueError) as context:
                fliqs.to_fixed(model, {**good, "depthwis": "int4"})
            self.assertIn("nearest to 'depthwis'", str(context.exception))
            self.assertIn("depthwise", str(context.exception))
            with self.assertRaisesRegex(ValueError, r"none for \['stem'\]"):
                fliqs.to_fixed(model, {k: good[k] for k in [*good][1:]})
            with self.assertRaisesRegex(ValueError, "Received"):
                fliqs.to_fixed(model, {**good, "stem": "int9"})


class FileTest(parameterized.TestCase):
    def test_fixed_model_opens_in_a_fresh_process(self):
        model = settle(nested())
        x = inputs_of(model)
        fixed = fliqs.to_fixed(
            model,
            {
                "conv": "int4",
                "middle/inside/conv": {"weight": "int4", "input": "e4m3"},
                "middle/narrow": {"weight": "e2m1", "input": None},
                "head": "bf16",
            },
        )
        fixed(x, training=True)  # Ranges and statistics.
        with tempfile.TemporaryDirectory() as folder:
            fixed.save(os.path.join(folder, "model.keras"))
            np.save(os.path.join(folder, "x.npy"), x)
            np.save(os.path.join(folder, "y.npy"), fixed(x))
            code = (
                "import os, sys\n"
                "import keras, numpy as np\n"
                "import fliqs_tf\n"
                "os.chdir(sys.argv[1])\n"
                "model = keras.models.load_model('model.keras')\n"
                "np.testing.assert_array_equal(\n"
                "    model(np.load('x.npy')), np.load('y.npy'))\n"
                "print(model.get_layer('conv').formats)"
            )
            result = subprocess.run(
                [sys.executable, "-c", code, folder],
                cwd=_ROOT,
                capture_output=True,
                text=True,
            )
        self.assertEqual(result.returncode, 0, result.stderr[-2000:])
        self.assertEqual(result.stdout.strip(), "('int4',)")

    def test_searchable_model_round_trip(self):
        model = fliqs.to_searchable(settle(nested()), "int_l")
        x = inputs_of(model)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.keras")
            model.save(path)
            loaded = keras.models.load_model(path)
        np.testing.assert_array_equal(loaded(x), model(x))
        self.assertEqual(
            loaded.get_layer("conv").formats, fliqs.SPACES["int_l"]
        )


if __name__ == "__main__":
    absltest.main()
