"""Layers of several kernels, tables and attention."""

import inspect
import os
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

from fliqs_tf import layers
from fliqs_tf.space import SPACES
from tests.layers.several_kernels import KINDS
from tests.layers.several_kernels import VARIANTS
from tests.layers.several_kernels import arguments
from tests.layers.several_kernels import make
from tests.layers.several_kernels import reference

_FORMATS = ("int2", "int4", "int8", "e2m1", "e4m3", "bf16")
_ALL_FORMATS = (
    *("int2", "int3", "int4", "int5", "int6", "int7", "int8", "int16"),
    *SPACES["fp_l"],
    *("bf16", "fp16"),
)


class SeveralKernelsTest(parameterized.TestCase):
    @parameterized.parameters(*KINDS, "GroupedQueryAttention")
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

    @parameterized.parameters(*KINDS)
    def test_bit_identical_at_fp32(self, kind):
        for formats in ("fp32", ("int4", "fp32")):
            layer, twin, inputs = make(kind, formats=formats)
            np.testing.assert_array_equal(layer(*inputs), twin(*inputs))

    @parameterized.parameters(*KINDS)
    @pytest.mark.slow
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

    @parameterized.parameters(*KINDS)
    @pytest.mark.one_in(2, start=1)
    def test_equals_the_reference(self, kind):
        self._check_equals_the_reference(kind, _FORMATS)

    @parameterized.parameters(*KINDS)
    @pytest.mark.slow
    def test_equals_the_reference_at_every_format(self, kind):
        self._check_equals_the_reference(kind, _ALL_FORMATS)

    def _check_equals_the_reference(self, kind, formats):
        for name in formats:
            layer, twin, inputs = make(
                kind, formats=name, input_range="dynamic"
            )
            np.testing.assert_allclose(
                layer(*inputs),
                reference(kind, twin, inputs, name),
                rtol=1e-4,
                atol=1e-5,
                err_msg=name,
            )

    @parameterized.parameters(*((kind, {}) for kind in KINDS), *VARIANTS)
    @pytest.mark.one_in(3)
    def test_gradient_is_that_of_the_reference(self, kind, keywords):
        for name in ("int4", "e4m3", "bf16"):
            layer, twin, inputs = make(
                kind, keywords, formats=name, input_range="dynamic"
            )
            found, outputs = self._gradients(
                layer, lambda *x, layer=layer: layer(*x), inputs
            )
            expected, rounded = self._gradients(
                twin,
                lambda *x, twin=twin, name=name: reference(kind, twin, x, name),
                inputs,
            )
            np.testing.assert_allclose(outputs, rounded, rtol=1e-4, atol=1e-5)
            self.assertLen(found, len(expected))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)

    def _gradients(self, layer, call, inputs):
        inputs = [tf.convert_to_tensor(x) for x in inputs]
        watched = [x for x in inputs if x.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch(watched)
            outputs = call(*inputs)
            weights = tf.reshape(
                tf.cos(tf.range(float(tf.size(outputs)))), outputs.shape
            )
            total = tf.reduce_sum(outputs * weights)
        gradients = tape.gradient(total, [*watched, *layer.trainable_weights])
        return [
            tf.convert_to_tensor(g) for g in gradients if g is not None
        ], outputs

    @parameterized.parameters(*VARIANTS)
    def test_variants_are_bit_identical_at_fp32(self, kind, keywords):
        for formats in ("fp32", ("int4", "fp32")):
            layer, twin, inputs = make(kind, keywords, formats=formats)
            np.testing.assert_array_equal(layer(*inputs), twin(*inputs))

    @parameterized.parameters(*KINDS)
    @pytest.mark.one_in(2)
    def test_saved_and_loaded(self, kind):
        keywords, shape = KINDS[kind]
        layer = getattr(layers, kind)(**keywords, formats=("int4", "e4m3"))
        dtype = "int32" if kind == "Embedding" else "float32"
        given = keras.Input(shape[1:], dtype=dtype)
        count = len(arguments(kind))
        model = keras.Model(given, layer(*[given] * count))
        # What is called on tensors has the shape of the symbolic call.
        x = arguments(kind)[0].astype(dtype)
        outputs = model(x, training=True)
        self.assertEqual(tuple(outputs.shape[1:]), model.output_shape[1:])
        for variable in model.weights:
            if variable.name.endswith("_choice"):
                variable.assign(0)
        expected = tf.function(
            lambda x: model(x), [tf.TensorSpec((None, *shape[1:]), dtype)]
        )(x)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.keras")
            model.save(path)
            loaded = keras.models.load_model(path)
            self.assertIsInstance(loaded.layers[-1], getattr(layers, kind))
            np.testing.assert_array_equal(loaded(x), model(x))
            model.export(os.path.join(folder, "saved"), verbose=False)
            served = tf.saved_model.load(os.path.join(folder, "saved"))
            np.testing.assert_array_equal(served.serve(x), expected)

    @parameterized.parameters(*KINDS)
    @pytest.mark.one_in(2)
    def test_regularizer_and_constraint_see_the_kernels(self, kind):
        names = {
            "Embedding": ("embeddings",),
            "SeparableConv1D": ("depthwise", "pointwise"),
            "SeparableConv2D": ("depthwise", "pointwise"),
            "LSTM": ("kernel", "recurrent"),
            "GRU": ("kernel", "recurrent"),
            "SimpleRNN": ("kernel", "recurrent"),
        }.get(kind, ("kernel",))
        keywords = {
            f"{name}_{what}": thing
            for name in names
            for what, thing in (
                ("regularizer", keras.regularizers.L2(0.5)),
                ("constraint", keras.constraints.NonNeg()),
            )
        }
        layer, _, inputs = make(kind, keywords, formats="int4")
        layer(*inputs)
        kernels = [w for w in layer.trainable_weights if "bias" not in w.name]
        self.assertLen(kernels, 4 if "Attention" in kind else len(names))
        np.testing.assert_allclose(
            sorted(ops.convert_to_numpy(loss) for loss in layer.losses),
            sorted(0.5 * np.sum(np.square(w)) for w in kernels),
            rtol=1e-5,
        )
        optimizer = keras.optimizers.SGD(0.1)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(layer(*inputs) ** 2) + sum(layer.losses)
        weights = layer.trainable_weights
        optimizer.apply(tape.gradient(loss, weights), weights)
        for kernel in kernels:
            self.assertGreaterEqual(ops.convert_to_numpy(kernel).min(), 0)

    @parameterized.parameters(*KINDS)
    @pytest.mark.one_in(2)
    def test_choice_is_data(self, kind):
        layer, _, inputs = make(kind, formats=("int4", "e2m1", "fp32"))
        traces = []

        @tf.function
        def call(*x):
            traces.append(x)
            return layer(*x)

        found = []
        for number in range(3):
            for inner in layer._flatten_layers():
                if isinstance(inner, layers.SearchableLayer):
                    for _, variables in inner.choices().values():
                        for variable in variables:
                            variable.assign(number)
            found.append(ops.convert_to_numpy(call(*inputs)))
        self.assertLen(traces, 1)
        self.assertGreater(np.abs(found[0] - found[1]).max(), 1e-4)
        self.assertGreater(np.abs(found[1] - found[2]).max(), 1e-4)

    @parameterized.parameters("SeparableConv1D", "LSTM", "GRU", "SimpleRNN")
    @pytest.mark.one_in(2)
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

    def test_embedding_gives_rows_of_the_rounded_table(self):
        layer, _, (x,) = make("Embedding", formats="int4")
        codes, scale = layer.quantized_kernel()
        np.testing.assert_allclose(layer(x), (codes * scale)[x], rtol=1e-6)
        self.assertEqual(list(layer.choices()), ["weight_format"])
        table = np.arange(12.0).reshape(4, 3)
        given = layers.Embedding(4, 3, weights=[table], formats="fp32")
        np.testing.assert_array_equal(given(np.arange(4)), table)

    def test_embedding_rounds_at_random_in_training(self):
        layer, _, (x,) = make(
            "Embedding", formats="int2", rounding="stochastic"
        )
        rows = [ops.convert_to_numpy(layer(x, training=True)) for _ in "ab"]
        self.assertGreater(np.abs(rows[0] - rows[1]).max(), 0.0)
        np.testing.assert_array_equal(layer(x), layer(x))

    @parameterized.parameters("SeparableConv1D", "SeparableConv2D")
    def test_unsigned_inputs_leave_signs_between_kernels(self, kind):
        layer, plain, (x,) = make(kind, input_signedness="unsigned")
        x = ops.abs(x)
        layer(x, training=True)
        expected = ops.convert_to_numpy(plain(x))
        error = np.linalg.norm(layer(x) - expected) / np.linalg.norm(expected)
        self.assertLess(error, 0.03)

    def test_cudnn_is_refused(self):
        with self.assertRaisesRegex(ValueError, "use_cudnn=True"):
            layers.LSTM(3, use_cudnn=True)


if __name__ == "__main__":
    absltest.main()
