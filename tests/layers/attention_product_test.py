"""The two products of attention as layers with formats and a cost."""

import os
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

import fliqs_tf as fliqs
from fliqs_tf.numerics import fake_quant

_T, _S, _N, _H, _D = 5, 7, 2, 3, 8
_PRODUCTS = ("attention/scores", "attention/weighted_sum")
_KINDS = {
    "plain": {},
    "dropout": dict(dropout=0.3),
    "causal": dict(use_causal_mask=True),
    "windows": dict(attention_axes=(2,)),
    "gated": dict(use_gate=True),
}


def make(kind="plain", grouped=False, **keywords):
    """A model of two inputs, queries of 5 steps and values of 7, and data."""
    given = {**_KINDS[kind], **keywords}
    call = {k: given.pop(k) for k in ("use_causal_mask",) if k in given}
    lead = (4,) if "attention_axes" in given else ()
    query = keras.Input((*lead, _T, _D))
    value = keras.Input((*lead, _S, _D))
    if grouped:
        layer = keras.layers.GroupQueryAttention(
            _H, _N, 1, name="attention", **given
        )
    else:
        layer = keras.layers.MultiHeadAttention(
            _N, _H, name="attention", **given
        )
    outputs = keras.layers.Dense(3, name="head")(layer(query, value, **call))
    model = keras.Model([query, value], outputs)
    rng = np.random.default_rng(0)
    data = [
        rng.standard_normal((2, *x.shape[1:])).astype("float32")
        for x in model.inputs
    ]
    return model, data


def fixed(model, formats, **keywords):
    """The model with its products, at one format or several."""
    explicit = fliqs.with_attention_products(model)
    searchable = fliqs.to_searchable(explicit, "int8", **keywords)
    if isinstance(formats, str):
        formats = fliqs.Assignment.uniform(searchable, formats)
    return fliqs.to_fixed(searchable, formats)


class AttentionProductTest(parameterized.TestCase):
    @parameterized.product(kind=tuple(_KINDS), grouped=(False, True))
    @pytest.mark.one_in(4)
    def test_same_bits_as_keras(self, kind, grouped):
        if grouped and kind == "windows":
            self.assertNotIn(
                "attention_axes",
                keras.layers.GroupQueryAttention(1, 1, 1).get_config(),
            )
            return
        model, x = make(kind, grouped)
        explicit = fliqs.with_attention_products(model)
        searchable = fliqs.to_searchable(explicit, ("int4", "fp32"))
        exact = fixed(model, "fp32")
        for other in (explicit, searchable, exact):
            np.testing.assert_array_equal(other(x), model(x))
            np.testing.assert_array_equal(
                other.predict_on_batch(x), model.predict_on_batch(x)
            )
        self.assertEqual(
            [w.path for w in explicit.weights], [w.path for w in model.weights]
        )

    @parameterized.parameters("mixed_bfloat16", "mixed_float16")
    def test_mixed_precision(self, policy):
        model, x = make(dtype=policy)
        expected = ops.cast(model(x), "float32")
        for other in (
            fliqs.with_attention_products(model),
            fixed(model, "fp32"),
        ):
            np.testing.assert_allclose(
                ops.cast(other(x), "float32"),
                expected,
                # Sums in 16 bits, in another order.
                atol=0.03 if policy == "mixed_bfloat16" else 0.004,
            )

    @parameterized.parameters(False, True)
    def test_masks_of_inputs_are_used_and_end(self, grouped):
        inputs = keras.Input((_T,), dtype="int32")
        x = keras.layers.Embedding(9, _D, mask_zero=True)(inputs)
        layer = keras.layers.MultiHeadAttention(_N, _H)
        if grouped:
            layer = keras.layers.GroupQueryAttention(_H, _N, 1)
        model = keras.Model(inputs, layer(x, x))
        explicit = fliqs.with_attention_products(model)
        x = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]])
        with self.assertNoLogs():
            np.testing.assert_array_equal(explicit(x), model(x))

    def test_equals_numpy_on_rounded_operands(self):
        model, x = make()
        plain = fliqs.Assignment.uniform(model, "fp32")
        found = fixed(
            model,
            {
                **plain,
                "attention/scores": {"weight": "int4", "input": "e4m3"},
                "attention/weighted_sum": {"weight": "int8", "input": "int4"},
            },
            input_range="dynamic",
        )
        layer = model.get_layer("attention")
        query = layer.query_dense(x[0])
        key, value = layer.key_dense(x[1]), layer.value_dense(x[1])
        logits = np.einsum(
            "btnh,bsnh->bnts",
            fake_quant(query, "e4m3"),
            fake_quant(key, "int4"),
        ) / np.sqrt(np.float32(_H))
        exp = np.exp(logits - logits.max(-1, keepdims=True))
        chances = exp / exp.sum(-1, keepdims=True)
        heads = np.einsum(
            "bnts,bsnh->btnh",
            fake_quant(chances, "int4"),
            fake_quant(value, "int8"),
        )
        expected = model.get_layer("head")(layer.output_dense(heads))
        np.testing.assert_allclose(found(x), expected, rtol=1e-5, atol=1e-5)

    @parameterized.parameters("affine", "unsigned")
    def test_probabilities_use_every_code(self, signedness):
        model, x = make()
        found = fixed(
            model, "int4", input_range="dynamic", input_signedness=signedness
        )
        attention = found.get_layer("attention")
        seen = []
        product = attention._weighted_sum_product
        quantizer = product.input_quantizer
        codes = quantizer.codes
        quantizer.codes = lambda *args: seen.append(codes(*args)) or seen[-1]
        found(x)
        (codes, scale), *_ = seen
        # 15 steps of 4 bits from 0 to the largest probability.
        top = float(ops.max(codes * scale))
        steps = ops.convert_to_numpy(codes * scale) / top * 15
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
        key = attention._scores_product.kernel_quantizer
        expected = {"affine": "affine", "unsigned": "symmetric"}
        self.assertEqual(key.signedness, expected[signedness])

    @parameterized.parameters("mxfp4", "mxint8", "e2m1", "bf16")
    def test_other_formats(self, fmt):
        model, x = make()
        found = fixed(model, fmt, input_range="dynamic")
        expected = ops.convert_to_numpy(model(x))
        error = np.abs(found(x) - expected).max() / np.abs(expected).max()
        self.assertBetween(error, 1e-6, 0.9)

    @parameterized.parameters(False, True)
    def test_cost(self, grouped):
        model, _ = make(grouped=grouped)
        explicit = fliqs.with_attention_products(model)
        macs = _N * _T * _S * _H
        found = fliqs.costs.profile(explicit)
        for path in _PRODUCTS:
            self.assertEqual(found[path].macs, macs)
            self.assertEqual(found[path].kind, "AttentionProduct")
            self.assertEqual(found[path].weights, 0)
        # Queries and keys; probabilities and values.
        self.assertEqual(found[_PRODUCTS[0]].inputs, _N * _H * _T)
        self.assertEqual(found[_PRODUCTS[0]].right_inputs, _N * _H * _S)
        self.assertEqual(found[_PRODUCTS[1]].inputs, _N * _S * _T)
        self.assertEqual(found[_PRODUCTS[1]].right_inputs, _N * _S * _H)
        cost = fliqs.costs.get("bitops")
        self.assertNotIn("attention/scores", fliqs.costs.profile(model))
        searchable = fliqs.to_searchable(explicit, "int_l")
        for version in (explicit, searchable):
            self.assertAlmostEqual(
                1e9 * (cost(version, "int4") - cost(model, "int4")),
                2 * macs * 16,
            )
            split = {
                **fliqs.Assignment.uniform(version, "int4"),
                "attention/scores": {"weight": "int8", "input": "int4"},
            }
            self.assertAlmostEqual(
                1e9 * (cost(version, split) - cost(version, "int4")), macs * 16
            )
        size = fliqs.costs.get("size")
        self.assertEqual(size(explicit, "int4"), size(model, "int4"))

    def test_decisions_and_rules(self):
        model, _ = make()
        explicit = fliqs.with_attention_products(model)
        searchable = fliqs.to_searchable(
            explicit,
            "int_l",
            rules=[
                fliqs.Rule(path=".*/scores", input_formats="apart"),
                fliqs.Rule(kind="AttentionProduct", formats="int8"),
            ],
        )
        layers = dict(searchable.layers[2]._scores_product.choices())
        self.assertEqual(list(layers), ["weight_format", "input_format"])
        self.assertTrue(searchable.layers[2]._weighted_sum_product.is_fixed)

    @pytest.mark.slow
    def test_searched_saved_and_fixed_elsewhere(self):
        model, x = make(grouped=True)
        explicit = fliqs.with_attention_products(model)
        search = fliqs.SearchModel(explicit, "int_s", cost_target="1.5xint4")
        search.compile("sgd", "mse")
        search.fit(x, model.predict(x, verbose=0), epochs=3, verbose=0)
        found = search.assignment()
        self.assertContainsSubset(_PRODUCTS, found)
        best = search.best_model()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.keras")
            best.save(path)
            loaded = keras.models.load_model(path)
        np.testing.assert_array_equal(loaded(x), best(x))
        # On a model that was not made explicit.
        again = fliqs.to_fixed(model, found)
        self.assertEqual(
            fliqs.costs.get("bitops")(again, found), search.cost(best, found)
        )
        self.assertEqual(
            fliqs.Assignment.uniform(again, "int4").keys(), found.keys()
        )

    def test_choice_is_data_and_compiles(self):
        model, x = make()
        explicit = fliqs.with_attention_products(model)
        options = ("int4", "e2m1", "fp32")
        searchable = fliqs.to_searchable(
            explicit, options, input_range="dynamic"
        )
        variables = [
            weight
            for layer in searchable._flatten_layers()
            if isinstance(layer, fliqs.layers.SearchableLayer)
            for _, chosen in layer.choices().values()
            for weight in chosen
        ]
        traces = []

        @tf.function(jit_compile=True)
        def call(x):
            traces.append(x)
            return searchable(x)

        for number, fmt in enumerate(options):
            for variable in variables:
                variable.assign(number)
            np.testing.assert_allclose(
                call(x),
                fixed(model, fmt, input_range="dynamic")(x),
                rtol=1e-4,
                atol=1e-5,
            )
        self.assertLen(traces, 1)

    def test_gradient_is_that_of_rounded_operands(self):
        layer = fliqs.layers.attention_product.SearchableAttentionProduct(
            "btnh,bsnh->bnts", formats="int4", input_range="dynamic"
        )
        rng = np.random.default_rng(0)
        left = tf.constant(rng.standard_normal((2, _T, _N, _H)), "float32")
        right = tf.constant(rng.standard_normal((2, _S, _N, _H)), "float32")
        with tf.GradientTape() as tape:
            tape.watch([left, right])
            outputs = layer([left, right])
            weight = tf.cos(
                tf.reshape(tf.range(float(tf.size(outputs))), outputs.shape)
            )
            loss = tf.reduce_sum(outputs * weight)
        found = tape.gradient(loss, [left, right])
        expected = (
            np.einsum("bnts,bsnh->btnh", weight, fake_quant(right, "int4")),
            np.einsum("bnts,btnh->bsnh", weight, fake_quant(left, "int4")),
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)

    @parameterized.parameters("MultiHeadAttention", "GroupQueryAttention")
    def test_as_an_option_of_the_layer(self, kind):
        keywords = dict(num_heads=_N, key_dim=_H)
        if kind == "GroupQueryAttention":
            keywords = dict(
                head_dim=_H, num_query_heads=_N, num_key_value_heads=1
            )
        rng = np.random.default_rng(0)
        x = rng.standard_normal((2, _T, _D)).astype("float32")
        layer = getattr(fliqs.layers, kind)(
            **keywords, formats="int4", quantize_products=True, name="attention"
        )
        inputs = keras.Input((_T, _D))
        model = keras.Model(inputs, layer(inputs, inputs))
        self.assertContainsSubset(
            _PRODUCTS, fliqs.Assignment.uniform(model, "int4")
        )
        self.assertEqual(
            fliqs.costs.profile(model)["attention/scores"].macs,
            _N * _T * _T * _H,
        )
        model(x, training=True)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.keras")
            model.save(path)
            loaded = keras.models.load_model(path)
        np.testing.assert_array_equal(loaded(x), model(x))
        _, scores = layer(x, x, return_attention_scores=True)
        self.assertEqual(scores.shape, (2, _N, _T, _T))

    def test_bad_input(self):
        dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        with self.assertRaisesRegex(ValueError, "Received: 'mine' without"):
            dense.name = "mine"
            fliqs.with_attention_products(dense)
        explicit = fliqs.with_attention_products(make()[0])
        with self.assertRaisesRegex(ValueError, "not quantized yet"):
            fliqs.with_attention_products(explicit)
        with self.assertRaisesRegex(ValueError, r"unknown \['a/scores'\]"):
            fliqs.to_fixed(dense, {"a/scores": "int4"})


if __name__ == "__main__":
    absltest.main()
