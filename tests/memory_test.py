"""Tests of the peak activation memory against sums made by hand."""

import keras
import numpy as np
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf import memory
from tests.any_models import subclassed


class _Block(keras.layers.Layer):
    """Adds rows that are looked up, at its input or at places, to a product."""

    def __init__(self, embeds_input, **kwargs):
        super().__init__(**kwargs)
        self.embeds_input = embeds_input
        self.table = keras.layers.Embedding(16, 4)
        self.dense = keras.layers.Dense(4)

    def build(self, input_shape):
        self.table.build()
        self.dense.build((None, 16, 4))

    def call(self, inputs):
        if self.embeds_input:
            return self.dense(self.table(inputs))
        return self.dense(inputs) + self.table(keras.ops.arange(16))


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

    @parameterized.parameters("int32", "float32")
    def test_indices_are_int32(self, dtype):
        inputs = keras.Input((512,), dtype=dtype)
        table = keras.layers.Embedding(10, 4, name="table")
        model = keras.Model(inputs, table(inputs))
        for fmt in ("int4", "int8"):
            # Nothing reads the rows, which are float32.
            self.assertEqual(_bytes(model, fmt), 512 * 4 + 512 * 4 * 4)

    def test_block_that_looks_up(self):
        for embeds_input, shape, dtype, size in (
            (True, (16,), "int32", 16 * 4),
            # Places that a block makes up are none of its inputs.
            (False, (16, 4), "float32", 16 * 4 / 2),
        ):
            inputs = keras.Input(shape, dtype=dtype)
            block = _Block(embeds_input, name="block")
            model = keras.Model(inputs, block(inputs))
            formats = {"block/table": "int8", "block/dense": "int4"}
            self.assertEqual(_bytes(model, formats), size + 16 * 4 * 4)

    @parameterized.parameters(False, True)
    def test_output_of_attention_does_not_read_its_input(self, has_products):
        inputs = keras.Input((16, 8))
        layer = keras.layers.MultiHeadAttention(2, 8, name="a")
        model = keras.Model(inputs, layer(inputs, inputs))
        later = ["a/output"]
        if has_products:
            model = fliqs.with_attention_products(model)
            later += ["a/scores", "a/weighted_sum"]
        early = ["a/query", "a/key", "a/value"]
        formats = dict.fromkeys([*early, *later], "int4")
        for path in (None, *early, *later):
            bits = 8 if path in early else 4
            self.assertEqual(
                _bytes(model, {**formats, **({path: "int8"} if path else {})}),
                128 * bits / 8 + 128 * 4,
            )

    def test_open_sizes_are_refused(self):
        inputs = keras.Input((None, None, 4))
        model = keras.Model(inputs, keras.layers.Conv2D(4, 1)(inputs))
        with self.assertRaisesRegex(ValueError, "fixed input shape"):
            memory.live_tensors(model)

    def test_models_without_a_graph_are_refused(self):
        with self.assertRaisesRegex(ValueError, "Received: Blocks. Wrap it"):
            memory.live_tensors(subclassed())

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
