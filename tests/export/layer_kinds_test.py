"""Every kind of layer that has a searchable form, in every mode."""

import os
from unittest import mock

import keras
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import convert
from fliqs_tf.attention_products import with_attention_products
from fliqs_tf.export import export_tflite
from fliqs_tf.export import inspect
from fliqs_tf.export import integer
from tests.export import small_models

_IMAGE = (8, 8, 4)
_SEQUENCE = (6, 8)
_VOLUME = (6, 6, 6, 3)


def _attended(layer):
    inputs = keras.Input(_SEQUENCE)
    return keras.Model(inputs, layer(inputs, inputs))


def _single(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


def _embedded():
    indices = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(11, 8, name="table")(indices)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(indices, keras.layers.Dense(3)(x))


_L = keras.layers
_EXACT = {
    "dense": lambda: _single(_L.Dense(5), _SEQUENCE),
    "einsum": lambda: _single(
        _L.EinsumDense("abc,cd->abd", (None, 5)), _SEQUENCE
    ),
    "conv1d": lambda: _single(_L.Conv1D(5, 3), _SEQUENCE),
    "conv2d": lambda: _single(_L.Conv2D(5, 3), _IMAGE),
    "conv3d": lambda: _single(_L.Conv3D(5, 3), _VOLUME),
    "transpose1d": lambda: _single(_L.Conv1DTranspose(5, 3), _SEQUENCE),
    "transpose2d": lambda: _single(_L.Conv2DTranspose(6, 3, strides=2), _IMAGE),
    "transpose3d": lambda: _single(_L.Conv3DTranspose(5, 3), _VOLUME),
    "depthwise1d": lambda: _single(_L.DepthwiseConv1D(3), _SEQUENCE),
    "depthwise2d": lambda: _single(
        _L.DepthwiseConv2D(3, depth_multiplier=2), _IMAGE
    ),
    "separable1d": lambda: _single(_L.SeparableConv1D(5, 3), _SEQUENCE),
    "separable2d": lambda: _single(_L.SeparableConv2D(6, 3), _IMAGE),
    "attention": lambda: _attended(_L.MultiHeadAttention(2, 4)),
    "grouped_query": lambda: _attended(_L.GroupQueryAttention(4, 4, 2)),
    "embedding": _embedded,
    "time_distributed": lambda: _single(
        _L.TimeDistributed(_L.Dense(5)), _SEQUENCE
    ),
}
_RECURRENT = {
    "rnn": lambda: _single(_L.SimpleRNN(5), _SEQUENCE),
    "lstm": lambda: _single(_L.LSTM(5), _SEQUENCE),
    "lstm_unrolled": lambda: _single(
        _L.LSTM(5, unroll=True, return_sequences=True), _SEQUENCE
    ),
    "gru": lambda: _single(_L.GRU(5), _SEQUENCE),
    "bidirectional": lambda: _single(_L.Bidirectional(_L.LSTM(5)), _SEQUENCE),
    # Their state is not bounded: each step has a range of its own.
    "unbounded": lambda: _single(_L.GRU(5, activation="relu"), _SEQUENCE),
}
_KINDS = _EXACT | _RECURRENT
# Their operators have float32 inputs in every mode.
_IN_FLOAT = ("conv3d", "transpose1d", "transpose2d", "transpose3d")


class LayerKindsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = self.create_tempfile().full_path
        keras.utils.set_random_seed(0)

    def _export(self, kind, activations, fmt="int4", signedness="symmetric"):
        model = convert.to_searchable(
            _KINDS[kind](), fmt, input_signedness=signedness
        )
        random = np.random.default_rng(0)
        shape = (20, *model.inputs[0].shape[1:])
        if model.inputs[0].dtype == "int32":
            data = random.integers(0, 11, shape).astype("int32")
        else:
            data = random.standard_normal(shape).astype("float32")
        model = small_models.fixed(model, fmt, data)
        report = export_tflite(model, self.path, activations, data)
        # The file says of itself what the report says.
        names = {row.name for row in inspect(self.path).rows}
        self.assertContainsSubset({row.path for row in report.layers}, names)
        return report

    @parameterized.parameters(*_KINDS)
    @pytest.mark.one_in(4)
    def test_float(self, kind):
        report = self._export(kind, "float")
        self.assertLess(report.max_relative_error, 2e-6)
        for row in report.layers:
            self.assertEqual(row.stored_type, "INT4 packed")
            self.assertEqual(row.weight_bytes, row.theoretical_bytes)

    @parameterized.parameters(
        "attention", "conv3d", "depthwise1d", "embedding", "gru", "transpose1d"
    )
    def test_float_formats(self, kind):
        report = self._export(kind, "float", "e2m1")
        self.assertLess(report.max_relative_error, 2e-6)
        for row in report.layers:
            self.assertEqual(row.stored_type, "UINT8 table of 4-bit codes")

    @parameterized.parameters(*_EXACT)
    @pytest.mark.one_in(4, start=1)
    def test_training_arithmetic(self, kind):
        report = self._export(kind, "fake_quant")
        self.assertEqual(report.max_relative_error, 0.0)
        for row in report.layers:
            self.assertEqual(row.stored_type, "INT4 packed")

    @parameterized.product(kind=list(_RECURRENT), fmt=("int4", "e4m3"))
    @pytest.mark.one_in(4, start=1)
    def test_training_arithmetic_of_states(self, kind, fmt):
        report = self._export(kind, "fake_quant", fmt)
        # Sums over values that are scaled back are not exact.
        self.assertLess(report.max_relative_error, 2e-6)

    @parameterized.parameters(*_KINDS)
    @pytest.mark.one_in(4, start=1)
    def test_int8(self, kind):
        report = self._export(kind, "int8")
        self.assertLess(report.verification.rms_error, 0.04)

    def test_products_of_attention(self):
        model = with_attention_products(
            _attended(_L.MultiHeadAttention(2, 4, name="layer"))
        )
        random = np.random.default_rng(0)
        data = random.standard_normal((20, *_SEQUENCE)).astype("float32")
        model = small_models.fixed(model, "int4", data)
        for activations in ("float", "fake_quant"):
            report = export_tflite(model, self.path, activations, data)
            self.assertLess(report.max_relative_error, 2e-6)
            rows = {row.path: row for row in report.layers}
            row = rows["layer/scores"]
            self.assertEqual(row.stored_type, "none")
            expected = "rounded to int4"
            if activations == "float":
                expected = "not rounded"
            self.assertIn(expected, row.stored_input)
        for activations in ("int8", "int16", "dynamic"):
            with self.assertRaisesRegex(ValueError, "float and fake_quant"):
                export_tflite(model, self.path, activations, data)

    @parameterized.parameters(*_KINDS)
    @pytest.mark.one_in(4, start=2)
    def test_int16(self, kind):
        report = self._export(kind, "int16")
        self.assertLess(report.verification.rms_error, 3e-4)
        self._check_inputs(kind, report, "INT16, scale")

    @parameterized.parameters(*_KINDS)
    @pytest.mark.one_in(4, start=3)
    def test_dynamic(self, kind):
        report = self._export(kind, "dynamic")
        self.assertLess(report.verification.rms_error, 0.015)
        self._check_inputs(kind, report, "FLOAT32 quantized to INT8")

    def _check_inputs(self, kind, report, expected):
        """Layers compute in integers, or the report says that they do not."""
        for row in report.layers:
            if kind in _IN_FLOAT:
                self.assertEqual(row.stored_input, "FLOAT32 not rounded")
            elif row.kind == "Embedding":
                self.assertEqual(row.stored_input, "INT32 indices")
            else:
                self.assertStartsWith(row.stored_input, expected)

    @parameterized.product(
        activations=("int16", "dynamic"), kind=("conv2d", "lstm")
    )
    def test_wrong_integers_leave_no_file(self, activations, kind):
        scale = integer._scale

        def doubled(*arguments):
            return 2 * scale(*arguments)

        path = os.path.join(self.create_tempdir().full_path, "model.tflite")
        with (
            mock.patch.object(integer, "_scale", doubled),
            mock.patch.object(self, "path", path),
            self.assertRaisesRegex(
                RuntimeError, rf"must agree.*{activations}.*was not written"
            ),
        ):
            self._export(kind, activations)
        self.assertEmpty(os.listdir(os.path.dirname(path)))

    @parameterized.parameters("int16", "dynamic")
    def test_operators_that_litert_refuses_leave_no_file(self, activations):
        quantize = integer.quantize

        def newer(*arguments):
            graph = quantize(*arguments)
            for code in graph._model.operatorCodes:
                code.version = 99
            return graph

        path = os.path.join(self.create_tempdir().full_path, "model.tflite")
        with (
            mock.patch.object(integer, "quantize", newer),
            mock.patch.object(self, "path", path),
            self.assertRaisesRegex(
                RuntimeError, "able to read.*CONV_2D.*another `activations`"
            ),
        ):
            self._export("conv2d", activations)
        self.assertEmpty(os.listdir(os.path.dirname(path)))

    @parameterized.parameters("int8", "int16", "dynamic")
    def test_activation_between_layers(self, activations):
        """LiteRT has no kernel of 16 bits for some, so they stay in float."""
        for name in ("hard_swish", "sigmoid", "tanh", "softmax"):
            layers = keras.layers
            inputs = keras.Input(_IMAGE)
            x = layers.Conv2D(8, 3, activation=name)(inputs)
            model = keras.Model(inputs, layers.Dense(4)(x))
            random = np.random.default_rng(0)
            data = random.standard_normal((20, *_IMAGE)).astype("float32")
            model = small_models.fixed(model, "int8", data)
            report = export_tflite(model, self.path, activations, data)
            self.assertLess(
                report.verification.rms_error,
                3e-4 if activations == "int16" else 0.04,
            )

    @parameterized.product(
        kind=("conv2d", "separable2d"), signedness=("unsigned", "affine")
    )
    def test_grids_with_a_zero_point(self, kind, signedness):
        report = self._export(kind, "fake_quant", "int4", signedness)
        self.assertEqual(report.max_relative_error, 0.0)
        report = self._export(kind, "int8", "int4", signedness)
        self.assertLess(report.verification.rms_error, 0.03)

    def test_ranges_of_several_tensors(self):
        """Each kernel's input has its own range, not that of the first."""
        report = self._export("separable2d", "int8", "int8")
        rows = inspect(self.path).rows
        scales = [row.input_scale for row in rows]
        self.assertLen(set(scales), 2)
        self.assertLess(report.verification.rms_error, 0.02)
        report = self._export("lstm", "int8", "int8")
        self.assertIn(
            np.float32(1 / 127),
            [row.input_scale for row in inspect(self.path).rows],
        )

    def test_steps_share_their_weights(self):
        self._export("lstm", "float")
        rows = inspect(self.path).rows
        # The kernels of the input and of the state, both read at each step.
        self.assertEqual([row.uses for row in rows], [6, 6])
        sizes = {row.stored_bytes for row in rows}
        self.assertEqual(sizes, {8 * 20 // 2, 5 * 20 // 2})

    def test_open_number_of_steps(self):
        model = _single(_L.LSTM(5, name="memory"), (None, 8))
        data = np.ones((2, 6, 8), "float32")
        model = small_models.fixed(model, "int4", data)
        with self.assertRaisesRegex(
            ValueError, "fixed number of steps.*LSTM 'memory'"
        ):
            export_tflite(model, self.path, verify_data=data)


class InputsTest(absltest.TestCase):
    def test_strings_are_refused(self):
        inputs = keras.Input((1,), dtype="string")
        outputs = keras.layers.Lambda(
            lambda x: keras.ops.ones((1, 2)), output_shape=(2,)
        )(inputs)
        model = keras.Model(inputs, outputs)
        path = self.create_tempfile().full_path
        with self.assertRaisesRegex(ValueError, "dtype='string'"):
            export_tflite(model, path)


if __name__ == "__main__":
    absltest.main()
