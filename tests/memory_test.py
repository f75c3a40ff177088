"""Tests of the peak activation memory against sums made by hand."""

import keras
import numpy as np
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf import memory

_kib = fliqs.costs.get("memory")


def _bytes(model, assignment):
    return _kib(model, assignment) * 1024


class MemoryTest(parameterized.TestCase):
    def test_chain(self):
        inputs = keras.Input((8, 8, 4))  # 256
        x = keras.layers.Conv2D(8, 3, padding="same", name="a")(inputs)  # 512
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
        x = keras.layers.Conv2D(2, 3, padding="same", name="b")(x)  # 128
        x = keras.layers.Flatten()(x)
        x = keras.layers.Dense(3, name="c")(x)
        model = keras.Model(inputs, x)
        self.assertEqual(_bytes(model, "int8"), 256 + 512)
        # Outputs have the width in which the next layer reads them.
        self.assertEqual(
            _bytes(model, {"a": "int8", "b": "int4", "c": "int8"}),
            256 + 512 / 2,
        )
        self.assertEqual(
            _bytes(model, {"a": "int2", "b": "int4", "c": "bf16"}),
            512 / 2 + 128 * 2,
        )
        # Weights do not count, and inputs that are not rounded are float32.
        split = {"weight": "int8", "input": None}
        self.assertEqual(
            _bytes(model, {"a": "int2", "b": split, "c": "int2"}),
            256 / 4 + 512 * 4,
        )

    def test_widest_reader_and_shortcut(self):
        inputs = keras.Input((4, 4, 4))
        x = keras.layers.Conv2D(8, 1, name="stem")(inputs)  # 128 elements
        shortcut = keras.layers.Conv2D(8, 1, name="projection")(x)
        y = keras.layers.Conv2D(8, 1, name="conv")(x)
        y = keras.layers.Add()([shortcut, y])
        y = keras.layers.Conv2D(1, 1, name="last")(y)
        model = keras.Model(inputs, y)
        formats = {"stem": "int2", "last": "int4"}
        for projection, conv, widest in (
            ("int2", "int8", 8),
            ("int8", "int2", 8),
            ("int4", "int4", 4),
        ):
            # x, the shortcut and the sum's other operand, which takes the sum.
            self.assertEqual(
                _bytes(
                    model, {**formats, "projection": projection, "conv": conv}
                ),
                128 * widest / 8 + 128 * 4 / 8 + 128 * 4 / 8,
            )

    def test_concatenation_is_a_copy(self):
        inputs = keras.Input((4, 4, 2))
        x = keras.layers.Conv2D(4, 1, name="a")(inputs)
        y = keras.layers.Conv2D(4, 1, name="b")(inputs)
        z = keras.layers.Concatenate()([x, y])
        model = keras.Model(inputs, keras.layers.Conv2D(1, 1, name="c")(z))
        self.assertEqual(_bytes(model, "int8"), 64 + 64 + 128)

    def test_nested_model_counts_as_its_layers(self):
        def block(x, name):
            x = keras.layers.Conv2D(8, 3, padding="same", name=f"{name}a")(x)
            x = keras.layers.ReLU()(x)
            return keras.layers.Conv2D(4, 3, padding="same", name=f"{name}b")(x)

        inputs = keras.Input((8, 8, 4))
        flat = keras.Model(inputs, block(block(inputs, "p"), "q"))
        inner = keras.Input((8, 8, 4))
        first = keras.Model(inner, block(inner, "p"))
        inner = keras.Input((8, 8, 4))
        second = keras.Model(inner, block(inner, "q"))
        nested = keras.Model(inputs, second(first(inputs)))
        self.assertEqual(_bytes(flat, "int4"), _bytes(nested, "int4"))

    def test_layer_left_alone_reads_float32(self):
        inputs = keras.Input((4, 4, 4))
        x = keras.layers.Conv2D(4, 1, name="a")(inputs)
        model = keras.Model(inputs, keras.layers.Conv2D(4, 1, name="b")(x))
        search = fliqs.SearchModel(
            model, "int_s", cost="memory", rules=[fliqs.Rule(path="b")]
        )
        # b's output is a float32 output as well.
        self.assertEqual(search.budget.lowest * 1024, 2 * 64 * 4)

    def test_open_sizes_are_refused(self):
        inputs = keras.Input((None, None, 4))
        model = keras.Model(inputs, keras.layers.Conv2D(4, 1)(inputs))
        with self.assertRaisesRegex(ValueError, "fixed input shape"):
            memory.live_tensors(model)

    def test_search_keeps_a_memory_target(self):
        model = fliqs.models.get("residual_small")
        search = fliqs.SearchModel(
            model, "int_l", cost="memory", cost_target=3.0
        )
        # Every policy, likely or not, is brought below the target.
        for seed in range(5):
            logits = np.random.default_rng(seed).normal(size=(9, 5))
            sample = search.budget.most_probable(logits, used=0.98)
            self.assertLessEqual(search.budget.of(sample), 3.0)
        self.assertEqual(search.budget.lowest, _kib(model, "int4"))
        self.assertEqual(search.budget.highest, _kib(model, "int8"))
