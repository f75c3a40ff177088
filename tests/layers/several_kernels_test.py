"""Layers of several kernels, tables and attention."""

import inspect

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

from fliqs_tf import layers
from fliqs_tf.numerics import fake_quant

_KEYWORDS = {
    "SeparableConv1D": (dict(filters=3, kernel_size=3), (2, 7, 4)),
    "SeparableConv2D": (
        dict(filters=3, kernel_size=3, strides=2, depth_multiplier=2),
        (2, 7, 7, 4),
    ),
    "LSTM": (dict(units=3, return_sequences=True), (2, 5, 4)),
    "GRU": (dict(units=3, reset_after=False), (2, 5, 4)),
    "SimpleRNN": (dict(units=3, activation="relu"), (2, 5, 4)),
    "Embedding": (dict(input_dim=7, output_dim=3), (2, 5)),
    "MultiHeadAttention": (dict(num_heads=2, key_dim=3), (2, 5, 4)),
    "GroupQueryAttention": (
        dict(head_dim=3, num_query_heads=4, num_key_value_heads=2),
        (2, 5, 4),
    ),
}


def make(kind, **kwargs):
    """Returns a layer, its Keras twin of equal weights, and call arguments."""
    keywords, shape = _KEYWORDS[kind]
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype("float32")
    if kind == "Embedding":
        x = rng.integers(0, 7, shape)
    inputs = (x, x) if "Attention" in kind else (x,)
    layer = getattr(layers, kind)(**keywords, **kwargs)
    twin = getattr(keras.layers, kind)(**keywords)
    layer(*inputs)
    twin(*inputs)
    values = {"/".join(w.path.split("/")[1:]): w for w in twin.weights}
    for weight in layer.weights:
        name = "/".join(weight.path.split("/")[1:])
        if name in values:
            weight.assign(values[name])
    return layer, twin, inputs


class SeveralKernelsTest(parameterized.TestCase):
    @parameterized.parameters(*_KEYWORDS, "GroupedQueryAttention")
    def test_signature(self, kind):
        parent = getattr(keras.layers, kind.replace("Grouped", "Group"))
        found = inspect.signature(getattr(layers, kind)).parameters
        base = inspect.signature(layers.SearchableLayer).parameters
        ours = [n for n, p in base.items() if p.kind is p.KEYWORD_ONLY]
        if "Attention" in kind:
            ours.append("quantize_products")
            self.assertFalse(found["quantize_products"].default)
        kept = {n: p.default for n, p in found.items() if n not in ours}
        parameters = inspect.signature(parent).parameters
        self.assertEqual(kept, {n: p.default for n, p in parameters.items()})
        self.assertEqual(list(kept), list(parameters))

    @parameterized.parameters(*_KEYWORDS)
    def test_bit_identical_at_fp32(self, kind):
        for formats in ("fp32", ("int4", "fp32")):
            layer, twin, inputs = make(kind, formats=formats)
            np.testing.assert_array_equal(layer(*inputs), twin(*inputs))

    @parameterized.parameters(*_KEYWORDS)
    def test_trains_compiled_in_each_policy(self, kind):
        for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
            layer, twin, inputs = make(
                kind, formats=("int4", "int8"), dtype=policy
            )

            @tf.function(jit_compile=True)
            def gradients(*inputs):
                with tf.GradientTape() as tape:
                    outputs = ops.cast(layer(*inputs, **training), "float32")
                    loss = tf.reduce_sum(outputs**2)
                return tape.gradient(loss, layer.trainable_weights)

            training = {} if kind == "Embedding" else {"training": True}
            self.assertEqual(
                [w.name for w in layer.trainable_weights],
                [w.name for w in twin.trainable_weights],
            )
            for gradient in gradients(*inputs):
                gradient = ops.convert_to_numpy(gradient)
                self.assertTrue(np.all(np.isfinite(gradient)))
            expected = ops.convert_to_numpy(twin(*inputs))
            found = ops.cast(layer(*inputs), "float32")
            # INT8, the widest, is near to float.
            np.testing.assert_allclose(
                found, expected, atol=0.1 * np.abs(expected).max()
            )

    @parameterized.parameters("SeparableConv1D", "LSTM", "GRU", "SimpleRNN")
    def test_one_decision_sets_all_quantizers(self, kind):
        layer, _, inputs = make(kind, formats=("int4", "int8"))
        ((name, (options, variables)),) = layer.choices().items()
        self.assertEqual((name, options), ("format", ("int4", "int8")))
        self.assertLen(variables, 4)
        self.assertLen(layer.input_identities(), 2)
        traces = []

        @tf.function
        def call(x):
            traces.append(x)
            return layer(x)

        for number, formats in enumerate(options):
            for variable in variables:
                variable.assign(number)
            fixed, _, _ = make(kind, formats=formats)
            for weight in fixed.weights:
                for other in layer.weights:
                    if weight.name == other.name:
                        weight.assign(other)
            np.testing.assert_allclose(
                call(*inputs), fixed(*inputs), rtol=1e-5, atol=1e-6
            )
        self.assertLen(traces, 1)

    def test_separable_equals_keras_on_rounded_operands(self):
        layer, twin, (x,) = make(
            "SeparableConv1D", formats="e4m3", input_range="dynamic"
        )
        for kernel in ("depthwise_kernel", "pointwise_kernel"):
            codes, scale = layer.quantized_kernel(kernel)
            getattr(twin, kernel).assign(codes * scale)
        between = ops.depthwise_conv(
            fake_quant(x, "e4m3"), twin.depthwise_kernel
        )
        expected = ops.conv(fake_quant(between, "e4m3"), twin.pointwise_kernel)
        np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)

    def test_lstm_equals_a_loop_in_numpy(self):
        layer, twin, (x,) = make("LSTM", formats="int4", input_range="dynamic")
        kernel, recurrent = (
            np.multiply(*layer.quantized_kernel(name))
            for name in ("kernel", "recurrent_kernel")
        )
        bias = ops.convert_to_numpy(twin.cell.bias)
        x = ops.convert_to_numpy(fake_quant(x, "int4"))
        h = c = np.zeros((2, 3), "float32")
        for step in range(x.shape[1]):
            # tanh and sigmoid bound the state: 7 steps of INT4 to 1.
            rounded = np.round(h * 7) / 7
            z = x[:, step] @ kernel + rounded @ recurrent + bias
            i, f, g, o = np.split(z, 4, axis=1)
            i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
            c = f * c + i * np.tanh(g)
            h = o * np.tanh(c)
            np.testing.assert_allclose(
                layer(*[x], training=False)[:, step], h, rtol=1e-4, atol=1e-5
            )

    def test_embedding_gives_rows_of_the_rounded_table(self):
        layer, _, (x,) = make("Embedding", formats="int4")
        codes, scale = layer.quantized_kernel()
        np.testing.assert_allclose(layer(x), (codes * scale)[x], rtol=1e-6)
        self.assertEqual(list(layer.choices()), ["weight_format"])
        table = np.arange(12.0).reshape(4, 3)
        given = layers.Embedding(4, 3, weights=[table], formats="fp32")
        np.testing.assert_array_equal(given(np.arange(4)), table)

    def test_attention_equals_keras_on_rounded_operands(self):
        layer, twin, inputs = make(
            "MultiHeadAttention", formats="int4", input_range="dynamic"
        )
        for name in ("query", "key", "value"):
            codes, scale = getattr(layer, f"{name}_dense").quantized_kernel()
            getattr(twin, f"{name}_dense").kernel.assign(codes * scale)
        codes, scale = layer.output_dense.quantized_kernel()
        rounded = [fake_quant(x, "int4") for x in inputs]
        query, key, value = (
            getattr(twin, f"{name}_dense")(rounded[0])
            for name in ("query", "key", "value")
        )
        heads, _ = twin._compute_attention(query, key, value)
        heads = fake_quant(heads, "int4")
        expected = ops.einsum("bthk,hkd->btd", heads, codes * scale)
        expected += twin.output_dense.bias
        np.testing.assert_allclose(
            layer(*inputs), expected, rtol=1e-4, atol=1e-5
        )

    def test_cudnn_is_refused(self):
        with self.assertRaisesRegex(ValueError, "use_cudnn=True"):
            layers.LSTM(3, use_cudnn=True)


if __name__ == "__main__":
    absltest.main()
