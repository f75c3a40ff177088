"""What every searchable layer promises, whatever its kind.

A layer's test is a class of `LayerContract` and `parameterized.TestCase` that
says its class and cases.
"""

import functools
import inspect
import os
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from fliqs_tf.layers import SearchableLayer
from fliqs_tf.numerics import fake_quant
from fliqs_tf.space import SPACES

_FORMATS = ("int4", "int8", "e4m3", "e2m1", "bf16")
# Every kind of grid, for the first case of a layer. (Block formats, whose
# codes are the values, have tests of their own.)
_ALL_FORMATS = (
    *("int2", "int3", "int4", "int5", "int6", "int7", "int8", "int16"),
    *SPACES["fp_l"],
    *("e1m2", "e8m10", "e4m3fn", "e5m2_ocp", "bf16", "fp16"),
)


def absmax(x, axes=None):
    return np.abs(x).max(axis=axes, keepdims=axes is not None)


def each_case(check):
    """Runs a test method, which takes the number of a case, for every case."""

    @functools.wraps(check)
    def run(self):
        for number, (keywords, shape) in enumerate(self.cases):
            with self.subTest(**keywords, input_shape=shape):
                if not _tensorflow_can(self.keras_class, keywords, shape):
                    self.skipTest("TensorFlow cannot on this CPU.")
                check(self, number)

    return run


def _tensorflow_can(keras_class, keywords, shape):
    """Whether the Keras layer itself runs on this machine.

    On some CPUs TensorFlow has no convolution of images whose channels come
    first.
    """
    if keywords.get("data_format") != "channels_first":
        return True
    try:
        keras_class(**keywords)(np.zeros(shape, "float32"))
    except tf.errors.UnimplementedError:
        return False
    return True


class LayerContract:
    """Inherit together with `parameterized.TestCase`.

    Class attributes:
        layer_class: The searchable layer.
        keras_class: Its Keras parent.
        cases: `(keywords, input shape)` of layers, the first the plainest.
        kernel_axes: Axes of the kernel that share a scale.
    """

    # Methods that the subclass gives.
    def product(self, layer, x, kernel):
        """NumPy `op(x, kernel)` of a layer, without bias and activation."""
        raise NotImplementedError

    def setUp(self):
        super().setUp()
        self.rng = np.random.default_rng(0)

    def inputs(self, shape):
        return self.rng.standard_normal(shape).astype("float32")

    def make(self, case=0, **kwargs):
        """Returns a layer and its Keras twin, of equal weights, and inputs."""
        keywords, shape = self.cases[case]
        keywords = {
            "kernel_initializer" if "depth_multiplier" not in
            inspect.signature(self.keras_class).parameters
            else "depthwise_initializer": "glorot_normal",
            "bias_initializer": "random_normal",
            **keywords,
        }  # fmt: skip
        dtype = {k: kwargs[k] for k in ("dtype",) if k in kwargs}
        layer = self.layer_class(**{**keywords, **kwargs})
        twin = self.keras_class(**{**keywords, **dtype})
        layer.build(shape)
        twin.build(shape)
        layer.kernel.assign(twin.kernel)
        if layer.bias is not None:
            layer.bias.assign(twin.bias)
        return layer, twin, self.inputs(shape)

    def rounded_kernel(self, kernel, name):
        """The kernel with one scale a channel, through one scale each."""
        kernel = ops.convert_to_numpy(kernel)
        if name in ("bf16", "fp16"):
            return ops.convert_to_numpy(fake_quant(kernel, name))
        kept = [a for a in range(kernel.ndim) if a not in self.kernel_axes]
        found = np.empty_like(kernel)
        for index in np.ndindex(*(kernel.shape[a] for a in kept)):
            place = [slice(None)] * kernel.ndim
            for axis, number in zip(kept, index, strict=True):
                place[axis] = number
            place = tuple(place)
            found[place] = fake_quant(kernel[place], name)
        return found

    # The promises.

    def test_signature_is_the_keras_layers_own_and_formats(self):
        found = inspect.signature(self.layer_class).parameters
        parent = inspect.signature(self.keras_class).parameters
        own = {
            "formats": "int8",
            "input_formats": "tied",
            "input_range": "ema",
            "input_signedness": "symmetric",
            "weight_granularity": "channel",
            "rounding": "nearest",
            "tie": None,
        }
        self.assertEqual(
            {n: p.default for n, p in found.items()},
            {**{n: p.default for n, p in parent.items()}, **own},
        )
        # In the same order, so that positional arguments mean the same.
        kept = [name for name in found if name not in own]
        self.assertEqual(kept, list(parent))
        for name in own:
            self.assertEqual(found[name].kind, inspect.Parameter.KEYWORD_ONLY)

    @each_case
    def test_bit_identical_at_fp32(self, case):
        for formats in ("fp32", ("int4", "fp32")):
            layer, twin, x = self.make(case, formats=formats)
            np.testing.assert_array_equal(layer(x), twin(x))
            np.testing.assert_array_equal(
                layer(x, training=True), twin(x, training=True)
            )

    @each_case
    def test_equals_the_keras_layer_of_rounded_operands(self, case):
        for name in _FORMATS if case else _ALL_FORMATS:
            layer, twin, x = self.make(
                case, formats=name, input_range="dynamic"
            )
            twin.kernel.assign(self.rounded_kernel(twin.kernel, name))
            np.testing.assert_allclose(
                layer(x),
                twin(fake_quant(x, name)),
                rtol=1e-5,
                atol=2e-6,
                err_msg=name,
            )

    @each_case
    def test_gradient_is_that_of_the_rounded_operands(self, case):
        for name in ("int4", "e4m3", "bf16"):
            layer, twin, x = self.make(
                case, formats=name, input_range="dynamic"
            )
            twin.kernel.assign(self.rounded_kernel(twin.kernel, name))
            found = self._gradients(layer, x)
            rounded = fake_quant(x, name)
            expected = self._gradients(twin, rounded)
            self.assertLen(found, len(expected))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)

    def _gradients(self, layer, x):
        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x)
            weights = tf.reshape(
                tf.cos(tf.range(float(tf.size(outputs)))), outputs.shape
            )
            total = tf.reduce_sum(outputs * weights)
        return tape.gradient(total, [x, *layer.trainable_weights])

    @each_case
    def test_sums_of_integer_codes_are_exact(self, case):
        layer, _, x = self.make(
            case, formats="int4", input_range="dynamic", use_bias=False,
            activation=None,
        )  # fmt: skip
        kernel = ops.convert_to_numpy(layer.kernel)
        # Values of INT4 in units of 4: the largest, 7, is 1.75.
        scale_x = absmax(x) / np.float32(1.75)
        scale_k = absmax(kernel, self.kernel_axes) / np.float32(1.75)
        codes_x = np.round(x / scale_x * 4).astype(np.int64)
        codes_k = np.round(kernel / scale_k * 4).astype(np.int64)
        self.assertEqual(np.abs(codes_x).max(), 7)
        self.assertTrue(np.all(absmax(codes_k, self.kernel_axes) == 7))
        sums = self.product(layer, codes_x, codes_k)
        scale = (scale_k * scale_x).reshape(-1)
        if getattr(layer, "data_format", "") == "channels_first":
            scale = scale.reshape(-1, *[1] * (len(x.shape) - 2))
        expected = (sums / 16).astype(np.float32) * scale
        np.testing.assert_array_equal(layer(x), expected)

        compiled = tf.function(lambda x: layer(x), jit_compile=True)
        np.testing.assert_array_equal(compiled(x), expected)

    @each_case
    def test_keras_file_round_trip(self, case):
        keywords, shape = self.cases[case]
        for formats, inputs in (
            ("int4", "tied"),
            (("int4", "e4m3"), "tied"),
            (("int4", "int8"), "e2m1"),
            ("int8", None),
        ):
            layer = self.layer_class(
                **keywords, formats=formats, input_formats=inputs
            )
            model = keras.Sequential([keras.Input(shape[1:]), layer])
            x = self.inputs(shape)
            model(x, training=True)  # Gives the range a value.
            if "choice" in layer._kernel_state:
                layer._kernel_state["choice"].assign(0)
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "model.keras")
                model.save(path)
                loaded = keras.models.load_model(path)
            (twin,) = loaded.layers
            self.assertIsInstance(twin, self.layer_class)
            self.assertEqual(twin.get_config(), layer.get_config())
            self.assertEqual(twin.formats, layer.formats)
            for one, other in zip(model.weights, loaded.weights, strict=True):
                self.assertEqual(one.name, other.name)
                np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(loaded(x), model(x))

    def test_saved_model_round_trip(self):
        self._check_saved_model_round_trip(0)

    @pytest.mark.slow
    @each_case
    def test_saved_model_round_trip_of_every_case(self, case):
        self._check_saved_model_round_trip(case)

    def _check_saved_model_round_trip(self, case):
        keywords, shape = self.cases[case]
        layer = self.layer_class(**keywords, formats=("int4", "e4m3"))
        model = keras.Sequential([keras.Input(shape[1:]), layer])
        x = self.inputs(shape)
        model(x, training=True)  # Gives the range a value.
        for state in (layer._kernel_state, layer._input_state):
            state["choice"].assign(0)
        # As graphs compute it, on the shapes of the signature.
        expected = tf.function(
            lambda x: model(x), [tf.TensorSpec((None, *shape[1:]))]
        )(x)
        with tempfile.TemporaryDirectory() as folder:
            model.export(folder, verbose=False)
            loaded = tf.saved_model.load(folder)
            np.testing.assert_array_equal(loaded.serve(x), expected)

    @each_case
    def test_symbolic_call_and_output_shape(self, case):
        layer, twin, x = self.make(case, formats=("int4", "int8"))
        expected = tuple(twin(x).shape)
        symbolic = layer(keras.Input(x.shape[1:]))
        self.assertEqual(symbolic.shape, (None, *expected[1:]))
        self.assertEqual(tuple(layer.compute_output_shape(x.shape)), expected)
        self.assertEqual(tuple(layer(x).shape), expected)

    def test_choice_is_data(self):
        options = ("int4", "e2m1", "e4m3", "fp32")
        layer, _, x = self.make(formats=options, input_range="dynamic")
        traces = []

        @tf.function
        def call(x):
            traces.append(x)
            return layer(x)

        ((kind, (found, variables)),) = layer.choices().items()
        self.assertEqual((kind, found), ("format", options))
        self.assertLen(variables, 2)
        for number, name in enumerate(options):
            for variable in variables:
                variable.assign(number)
            fixed, _, _ = self.make(formats=name, input_range="dynamic")
            fixed.kernel.assign(layer.kernel)
            if layer.bias is not None:
                fixed.bias.assign(layer.bias)
            # To the bit, though one is compiled and gathers its row.
            np.testing.assert_array_equal(call(x), fixed(x))
        self.assertLen(traces, 1)

    def test_searched_layer_starts_at_its_widest_format(self):
        layer, _, x = self.make(
            formats=("int4", "int8", "int5"), input_range="dynamic"
        )
        fixed, _, _ = self.make(formats="int8", input_range="dynamic")
        fixed.kernel.assign(layer.kernel)
        if layer.bias is not None:
            fixed.bias.assign(layer.bias)
        np.testing.assert_array_equal(layer(x), fixed(x))

    def test_compiled_equals_eager(self):
        self._check_compiled_equals_eager(0)

    @pytest.mark.slow
    @each_case
    def test_compiled_equals_eager_in_every_case(self, case):
        self._check_compiled_equals_eager(case)

    def _check_compiled_equals_eager(self, case):
        for name in ("int4", "e4m3", "fp32"):
            layer, _, x = self.make(case, formats=name)
            layer(x, training=True)
            for jit_compile in (False, True):
                compiled = tf.function(
                    lambda x: layer(x), jit_compile=jit_compile
                )
                np.testing.assert_allclose(
                    compiled(x), layer(x), rtol=1e-5, atol=1e-6
                )

    def test_policies(self):
        for policy, tolerance in (
            ("float32", 1e-6),
            ("mixed_bfloat16", 0.03),
            ("mixed_float16", 0.004),
        ):
            for name in ("int4", "e4m3", "fp32"):
                keras.utils.set_random_seed(1)
                layer, _, x = self.make(formats=name, dtype=policy)
                # Exact in 16 bits, so that all see the same inputs.
                x = np.round(x * 16) / 16
                plain, _, _ = self.make(formats=name)
                plain.kernel.assign(layer.kernel)
                if layer.bias is not None:
                    plain.bias.assign(layer.bias)
                expected = ops.convert_to_numpy(plain(x, training=True))
                outputs = layer(x, training=True)
                self.assertEqual(
                    keras.backend.standardize_dtype(outputs.dtype),
                    layer.compute_dtype,
                )
                self.assertEqual(layer.kernel.dtype, "float32")
                np.testing.assert_allclose(
                    ops.cast(outputs, "float32"),
                    expected,
                    atol=tolerance * np.abs(expected).max(),
                    rtol=tolerance,
                )

    def test_regularizer_and_constraint_see_the_kernel(self):
        prefix = "kernel"
        if "depthwise_regularizer" in (
            inspect.signature(self.keras_class).parameters
        ):
            prefix = "depthwise"
        layer, _, x = self.make(
            formats="int4",
            **{
                f"{prefix}_regularizer": keras.regularizers.L2(0.5),
                f"{prefix}_constraint": keras.constraints.NonNeg(),
            },
        )
        layer(x)
        kernel = ops.convert_to_numpy(layer.kernel)
        np.testing.assert_allclose(
            layer.losses, [0.5 * np.sum(kernel**2)], rtol=1e-5
        )
        optimizer = keras.optimizers.SGD(0.1)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(layer(x) ** 2) + sum(layer.losses)
        gradients = tape.gradient(loss, layer.trainable_weights)
        optimizer.apply(gradients, layer.trainable_weights)
        self.assertGreaterEqual(ops.convert_to_numpy(layer.kernel).min(), 0)

    @each_case
    def test_quantized_kernel_is_the_effective_one(self, case):
        for name in ("int4", "int8", "e4m3", "bf16", "fp32"):
            layer, twin, _ = self.make(case, formats=name)
            codes, scale = layer.quantized_kernel()
            self.assertEqual(codes.shape, tuple(layer.kernel.shape))
            self.assertEqual(codes.dtype, np.float32)
            expected = ops.convert_to_numpy(twin.kernel)
            if name != "fp32":
                expected = self.rounded_kernel(twin.kernel, name)
            np.testing.assert_allclose(
                codes * scale, expected, rtol=3e-7, atol=0
            )
            if name.startswith("int"):
                top = 2 ** (int(name[3:]) - 1) - 1
                np.testing.assert_array_equal(codes, np.round(codes))
                self.assertTrue(np.all(absmax(codes, self.kernel_axes) == top))

    def test_untied_inputs(self):
        layer, twin, x = self.make(
            formats="int4", input_formats="e4m3", input_range="dynamic"
        )
        twin.kernel.assign(self.rounded_kernel(twin.kernel, "int4"))
        np.testing.assert_allclose(
            layer(x), twin(fake_quant(x, "e4m3")), rtol=1e-5, atol=1e-6
        )
        self.assertTrue(layer.is_fixed)

        searched, _, _ = self.make(
            formats=("int4", "int8"), input_formats=("e4m3", "e5m2", "int8")
        )
        self.assertFalse(searched.is_fixed)
        found = searched.choices()
        self.assertEqual(
            {kind: options for kind, (options, _) in found.items()},
            {
                "weight_format": ("int4", "int8"),
                "input_format": ("e4m3", "e5m2", "int8"),
            },
        )
        self.assertEqual(
            [len(variables) for _, variables in found.values()], [1, 1]
        )

    def test_unquantized_inputs(self):
        layer, twin, x = self.make(formats="int4", input_formats=None)
        twin.kernel.assign(self.rounded_kernel(twin.kernel, "int4"))
        np.testing.assert_allclose(layer(x), twin(x), rtol=1e-5, atol=1e-6)
        self.assertIsNone(layer.input_quantizer)
        self.assertEqual(list(layer.choices()), ["weight_format"])
        self.assertIsNone(layer.get_config()["input_formats"])

    def test_ranges(self):
        dynamic, _, x = self.make(formats="int4", input_range="dynamic")
        running, _, _ = self.make(formats="int4", input_range="ema")
        running.kernel.assign(dynamic.kernel)
        if dynamic.bias is not None:
            running.bias.assign(dynamic.bias)
        state = running._input_state
        # Before any training both take the tensor's own range.
        np.testing.assert_array_equal(running(x), dynamic(x))
        self.assertEqual(float(state["updates"]), 0)
        # The first batch is adopted at once.
        np.testing.assert_array_equal(running(x, training=True), dynamic(x))
        self.assertEqual(float(state["range"]), np.abs(x).max())
        # Inference neither updates nor looks at the tensor's own range.
        np.testing.assert_array_equal(running(x[:1]), running(x)[:1])
        self.assertEqual(float(state["updates"]), 1)
        running(3 * x, training=True)
        self.assertAlmostEqual(
            float(state["range"]), 2 * np.abs(x).max(), places=5
        )
        names = {w.name for w in dynamic.weights}
        self.assertEqual(
            {w.name for w in running.weights} - names,
            {"input_range", "input_updates"},
        )
        for weight in running.non_trainable_weights:
            self.assertFalse(weight.trainable)

    def test_only_kernel_and_bias_are_trained(self):
        layer, twin, _ = self.make(formats=("int4", "int8"))
        self.assertEqual(
            [w.name for w in layer.trainable_weights],
            [w.name for w in twin.trainable_weights],
        )

    def test_is_a_keras_layer_of_its_parent(self):
        layer, _, _ = self.make()
        self.assertIsInstance(layer, self.keras_class)
        self.assertIsInstance(layer, SearchableLayer)

    def test_bad_arguments(self):
        keywords, _ = self.cases[0]
        for bad in (
            {"formats": "int9"},
            {"formats": ()},
            {"formats": ("int4", "int4")},
            {"input_formats": "int9"},
            {"input_range": "static"},
        ):
            with self.subTest(**bad):
                with self.assertRaisesRegex(ValueError, "Received"):
                    self.layer_class(**keywords, **bad)
