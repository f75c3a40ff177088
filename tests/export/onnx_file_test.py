import json
import os
import pathlib
from unittest import mock

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import layers
from fliqs_tf.attention_products import with_attention_products
from fliqs_tf.codebooks import register_format
from fliqs_tf.export import export_onnx
from fliqs_tf.export import onnx_graph
from fliqs_tf.export import weights
from tests.export import small_models

# Float rounding; where a value crosses a rounding boundary the error is that
# of a code, 1e-2 and more.
_EXACT = 2e-6


class _OnnxTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.path = self.folder / "model.onnx"

    def graph(self):
        return onnx_graph.OnnxGraph(onnx.load(self.path))


class FormatsTest(_OnnxTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        register_format("onnx_levels", [-1.0, -0.3, 0.0, 0.3, 1.0])

    @parameterized.parameters(
        # Format, type, bytes of the 3 x 3 x 8 weights of the depthwise
        # convolution, set of operators; without one ONNX rounds no inputs so.
        ("int2", "INT4", 36, 21),
        ("int3", "INT4", 36, 21),
        ("int4", "INT4", 36, 21),
        ("int5", "INT8", 72, 18),
        ("int6", "INT8", 72, 18),
        ("int7", "INT8", 72, 18),
        ("int8", "INT8", 72, 18),
        ("int16", "INT16", 144, 21),
        ("e4m3fn", "FLOAT8E4M3FN", 72, 19),
        ("e5m2_ocp", "FLOAT8E5M2", 72, 19),
        ("bf16", "FLOAT16|BFLOAT16", 144, 18),
        ("fp16", "FLOAT16", 144, 18),
        ("fp32", "FLOAT", 288, 18),
        ("e2m1", "INT8", 72, None),
        ("e1m2", "INT4", 36, None),
        ("e3m4", "FLOAT16", 144, None),
        ("e4m3", "FLOAT8E4M3FN|FLOAT16", None, None),
        ("e5m2", "FLOAT8E5M2|FLOAT16", None, None),
        ("e8m7", "FLOAT16|BFLOAT16", 144, None),
        ("mxfp4", "FLOAT8E4M3FN|FLOAT8E5M2|FLOAT16", None, None),
        ("mxfp8_e5m2", "FLOAT8E5M2|FLOAT16|BFLOAT16", None, None),
        ("mxint8", "FLOAT16|BFLOAT16", 144, None),
        ("onnx_levels", "FLOAT", 288, None),
    )
    @pytest.mark.one_in(4)
    def test_type_bytes_and_arithmetic(self, fmt, stored, size, opset):
        model = small_models.fixed(small_models.residual(), fmt)
        images = small_models.images()
        activations, limit = "fake_quant", _EXACT
        if opset is None:
            activations = "float"
            with self.assertRaisesRegex(ValueError, f"'{fmt}' of layer 'stem'"):
                export_onnx(model, self.path, "fake_quant", images)
        if fmt in ("int16", "bf16", "fp16"):
            # Sums of 16-bit codes are not exact in either.
            limit = 1e-3
        report = export_onnx(model, self.path, activations, images)
        self.assertLess(report.max_relative_error, limit)
        row = next(r for r in report.layers if r.path == "depthwise")
        self.assertRegex(row.stored_type, f"^({stored})$")
        if size is not None:
            self.assertEqual(row.weight_bytes, size)
        self.assertEqual(report.file_bytes, os.path.getsize(self.path))
        if opset is not None:
            self.assertEqual(self.graph().opset, opset)
        self.assertEqual(os.listdir(self.folder), ["model.onnx"])


class GraphTest(_OnnxTestCase):
    def test_codes_and_scales_of_a_convolution(self):
        inputs = keras.Input((5, 5, 2), name="x")
        outputs = keras.layers.Conv2D(3, 2, use_bias=False, name="conv")(inputs)
        plain = keras.Model(inputs, outputs)
        random = np.random.default_rng(0)
        data = random.standard_normal((4, 5, 5, 2)).astype("float32")
        model = small_models.fixed(plain, "int4", data)
        export_onnx(model, self.path, "fake_quant", data)
        graph = self.graph()
        kernel = plain.get_layer("conv").kernel.numpy()
        absmax = np.abs(kernel).max(axis=(0, 1, 2))
        codes = np.round(kernel / (absmax / 7))
        # ONNX has output channels in front, then input channels.
        stored = graph.constant("conv/kernel").astype(np.int8)
        np.testing.assert_array_equal(stored, codes.transpose(3, 2, 0, 1))
        np.testing.assert_allclose(
            graph.constant("conv/kernel/scale"), absmax / 7, rtol=1e-6
        )
        (decoder,) = [n for n in graph.nodes if "conv/kernel" in n.input]
        self.assertEqual(decoder.op_type, "DequantizeLinear")
        self.assertEqual(decoder.attribute[0].i, 0)
        # One batch was seen: its absmax is the range.
        bound = np.abs(data).max()
        self.assertAlmostEqual(
            float(graph.constant("conv/input/scale")), bound / 7, places=6
        )
        ends = [graph.constant(f"conv/input/{end}") for end in ("low", "high")]
        np.testing.assert_allclose(ends, [-bound, bound], rtol=1e-6)
        kinds = [node.op_type for node in graph.nodes]
        order = ["Clip", "QuantizeLinear", "DequantizeLinear", "Conv"]
        places = [kinds.index(kind) for kind in order[:3]]
        self.assertEqual(places, sorted(places))
        (convolution,) = [n for n in graph.nodes if n.op_type == "Conv"]
        producers = {n.output[0]: n.op_type for n in graph.nodes}
        for name in convolution.input:
            self.assertEqual(producers[name], "DequantizeLinear")

    def test_bias_is_not_rounded_by_the_runtime(self):
        # A runtime that stores biases as integers of scale_x * scale_w turns
        # this one, a third of that unit, into 0.
        inputs = keras.Input((4, 4, 1), name="x")
        x = keras.layers.Conv2D(1, 1, name="first")(inputs)
        x = keras.layers.Conv2D(1, 1, name="second")(keras.layers.ReLU()(x))
        plain = keras.Model(inputs, x)
        unit = (7.0 / 7) * (7.0 / 7)
        plain.get_layer("first").set_weights(
            [np.full((1, 1, 1, 1), 7.0), np.array([unit / 3])]
        )
        plain.get_layer("second").set_weights(
            [np.full((1, 1, 1, 1), 7.0), np.zeros(1)]
        )
        data = np.zeros((2, 4, 4, 1), np.float32)
        data[:, 0, 0] = 7.0
        model = small_models.fixed(plain, "int4", data)
        # The range of the second layer: its codes are steps of 1 / 21.
        state = model.get_layer("second")._input_state
        state["range"].assign(unit / 3)
        report = export_onnx(model, self.path, "fake_quant", data)
        self.assertLess(report.max_relative_error, 1e-6)
        session = onnxruntime.InferenceSession(self.path)
        zeros = np.zeros((1, 4, 4, 1), np.float32)
        (outputs,) = session.run(None, {"x": zeros})
        np.testing.assert_allclose(outputs, 7.0 * unit / 3, rtol=1e-6)

    def test_names_of_inputs_and_outputs(self):
        left = keras.Input((4,), name="left")
        right = keras.Input((4,), name="right")
        shared = keras.layers.Dense(3, name="shared")
        z = shared(left) + shared(right)
        model = keras.Model(
            {"left": left, "right": right},
            {"u": keras.layers.Dense(2)(z), "v": keras.layers.Dense(1)(z)},
        )
        random = np.random.default_rng(0)
        data = {
            name: random.standard_normal((9, 4)).astype("float32")
            for name in ("right", "left")
        }
        model = small_models.fixed(model, "int8", data)
        report = export_onnx(model, self.path, "fake_quant", data)
        self.assertLess(report.max_relative_error, _EXACT)
        session = onnxruntime.InferenceSession(self.path)
        names = [tensor.name for tensor in session.get_outputs()]
        self.assertEqual(names, ["u", "v"])
        u, v = session.run(names, data)
        self.assertEqual((u.shape, v.shape), ((9, 2), (9, 1)))
        expected = model(data, training=False)
        np.testing.assert_allclose(u, expected["u"], rtol=1e-5, atol=1e-6)

    def test_metadata(self):
        model = small_models.fixed(small_models.residual(), "int8")
        export_onnx(model, self.path, "fake_quant", small_models.images())
        (entry,) = onnx.load(self.path).metadata_props
        self.assertEqual(entry.key, "fliqs_tf")
        found = json.loads(entry.value)
        self.assertEqual(found["assignment"]["stem"], ["int8", "int8"])
        self.assertTrue(found["passed"])
        self.assertIn("onnxruntime", found["versions"])
        self.assertEqual(found["agreements"]["verification"]["samples"], 40)

    @parameterized.parameters(
        # Codes 0..15 of a UINT8 that is clipped, 0..255 of one that is not.
        ("int4", "unsigned", "UINT8", True),
        ("int8", "unsigned", "UINT8", False),
        ("int8", "affine", "UINT8", False),
        ("int8", "symmetric", "INT8", True),
        ("int16", "symmetric", "INT16", True),
    )
    def test_grid_of_inputs(self, fmt, signedness, stored, clipped):
        inputs = keras.Input((8,), name="x")
        layer = layers.Dense(
            3, formats=fmt, input_signedness=signedness, name="dense"
        )
        model = keras.Model(inputs, layer(inputs))
        random = np.random.default_rng(0)
        data = random.uniform(-0.3, 1.0, (50, 8)).astype("float32")
        model(data, training=True)
        # Beyond the range, where the grids end.
        far = 3 * data
        report = export_onnx(model, self.path, "fake_quant", far)
        self.assertLess(report.max_relative_error, 1e-5)
        self.assertStartsWith(report.layers[0].stored_input, stored)
        kinds = {node.op_type for node in self.graph().nodes}
        self.assertEqual("Clip" in kinds, clipped)

    # Weights that stand directly behind DequantizeLinear may be multiplied in
    # integers: of a product if its input is rounded, of a convolution without
    # bias if its output is, too.
    @parameterized.product(
        fmt=(("int7", "DequantizeLinear"), ("int8", "Mul")),
        kind=("Dense", "Conv1D", "Conv2D"),
        signedness=("symmetric", "unsigned"),
    )
    @pytest.mark.one_in(3)
    def test_no_runtime_saturates_sums_of_the_largest_codes(
        self, fmt, kind, signedness
    ):
        fmt, decoder = fmt
        shape = {"Dense": (64,), "Conv1D": (4, 64), "Conv2D": (4, 4, 64)}[kind]
        size = () if kind == "Dense" else (3,)
        options = {
            "kernel_initializer": "ones",
            "use_bias": kind == "Dense",
            "name": "layer",
        }
        inputs = keras.Input(shape, name="x")
        layer = getattr(keras.layers, kind)(3, *size, **options)
        outputs = keras.layers.Dense(2, name="head")(layer(inputs))
        ones = np.ones((4, *shape), np.float32)
        model = small_models.fixed(
            keras.Model(inputs, outputs),
            fmt,
            ones,
            input_signedness=signedness,
        )
        report = export_onnx(model, self.path, "fake_quant", ones)
        self.assertLess(report.max_relative_error, 1e-6)
        graph = self.graph()
        product = next(
            n for n in graph.nodes if n.op_type in ("Conv", "Gemm", "MatMul")
        )
        (producer,) = [n for n in graph.nodes if product.input[1] in n.output]
        self.assertEqual(producer.op_type, decoder)

    @parameterized.parameters("int4", "int8", "e4m3fn")
    def test_range_of_the_tensor_at_hand(self, fmt):
        model = small_models.fixed(
            small_models.residual(), fmt, input_range="dynamic"
        )
        report = export_onnx(
            model, self.path, "fake_quant", small_models.images()
        )
        self.assertLess(report.max_relative_error, _EXACT)
        self.assertIn("at hand", report.layers[0].stored_input)


_IMAGE = (8, 8, 4)
_SEQUENCE = (6, 8)
_LAYERS = {
    "bidirectional": (
        lambda: keras.layers.Bidirectional(keras.layers.GRU(5, unroll=True)),
        _SEQUENCE,
    ),
    "causal": (lambda: keras.layers.Conv1D(5, 3, padding="causal"), _SEQUENCE),
    "conv1d_transpose": (
        lambda: keras.layers.Conv1DTranspose(6, 3, strides=2),
        _SEQUENCE,
    ),
    "conv2d_dilated": (
        lambda: keras.layers.Conv2D(6, 3, dilation_rate=2, padding="same"),
        _IMAGE,
    ),
    "conv2d_groups": (lambda: keras.layers.Conv2D(8, 3, groups=2), _IMAGE),
    "conv2d_strided": (
        lambda: keras.layers.Conv2D(6, 3, strides=2, padding="same"),
        _IMAGE,
    ),
    "conv2d_to_one": (lambda: keras.layers.Conv2D(1, 3), _IMAGE),
    "conv2d_transpose": (
        lambda: keras.layers.Conv2DTranspose(6, 3, strides=2),
        _IMAGE,
    ),
    "conv3d": (lambda: keras.layers.Conv3D(5, 2), (4, 4, 4, 3)),
    "dense_of_sequence": (lambda: keras.layers.Dense(5), _SEQUENCE),
    "depthwise": (
        lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
        _IMAGE,
    ),
    "depthwise1d": (lambda: keras.layers.DepthwiseConv1D(3), _SEQUENCE),
    "einsum": (
        lambda: keras.layers.EinsumDense("abc,cde->abde", (None, 2, 5)),
        _SEQUENCE,
    ),
    "gru": (lambda: keras.layers.GRU(5), _SEQUENCE),
    # Its state is not bounded: each step has a range of its own.
    "gru_unbounded": (
        lambda: keras.layers.GRU(5, activation="relu"),
        _SEQUENCE,
    ),
    "lstm": (lambda: keras.layers.LSTM(5), _SEQUENCE),
    "lstm_of_all_steps": (
        lambda: keras.layers.LSTM(5, return_sequences=True),
        _SEQUENCE,
    ),
    "rnn": (lambda: keras.layers.SimpleRNN(5), _SEQUENCE),
    "separable": (lambda: keras.layers.SeparableConv2D(6, 3), _IMAGE),
    "time_distributed": (
        lambda: keras.layers.TimeDistributed(keras.layers.Dense(5)),
        _SEQUENCE,
    ),
}


class LayerKindsTest(_OnnxTestCase):
    @parameterized.parameters(*_LAYERS)
    @pytest.mark.one_in(3)
    def test_float(self, kind):
        layer, shape = _LAYERS[kind]
        report = self._export(layer(), shape, "float")
        self.assertLess(report.max_relative_error, _EXACT)
        for row in report.layers:
            self.assertEqual(row.stored_type, "INT4")
            self.assertEqual(row.weight_bytes, row.theoretical_bytes)

    @parameterized.parameters(*_LAYERS)
    @pytest.mark.one_in(3, start=1)
    def test_rounded_inputs(self, kind):
        layer, shape = _LAYERS[kind]
        report = self._export(layer(), shape, "fake_quant")
        self.assertLess(report.max_relative_error, _EXACT)

    @parameterized.parameters("int8", "e4m3fn")
    def test_states_are_rounded_at_each_step(self, fmt):
        report = self._export(
            keras.layers.LSTM(5), _SEQUENCE, "fake_quant", fmt
        )
        self.assertLess(report.max_relative_error, _EXACT)
        kinds = [node.op_type for node in self.graph().nodes]
        # The sequence as a whole, and the state of each of 6 steps.
        self.assertEqual(kinds.count("QuantizeLinear"), 1 + 6)
        self.assertNotIn("Loop", kinds)

    def test_open_number_of_steps(self):
        with self.assertRaisesRegex(
            ValueError, "fixed number of steps.*LSTM 'memory'"
        ):
            memory = keras.layers.LSTM(5, name="memory")
            self._export(memory, (None, 8), "fake_quant")
        self.assertEmpty(os.listdir(self.folder))

    @parameterized.parameters("float", "fake_quant")
    def test_attention_and_embedding(self, activations):
        indices = keras.Input((6,), dtype="int32")
        x = keras.layers.Embedding(11, 8, name="table")(indices)
        x = keras.layers.MultiHeadAttention(2, 4)(x, x)
        x = keras.layers.LayerNormalization()(x)
        outputs = keras.layers.Dense(3)(keras.layers.Flatten()(x))
        data = np.random.default_rng(0).integers(0, 11, (20, 6))
        model = small_models.fixed(keras.Model(indices, outputs), "int4", data)
        report = export_onnx(model, self.path, activations, data)
        self.assertLess(report.max_relative_error, _EXACT)
        stored = {row.path: row for row in report.layers}
        self.assertEqual(stored["table"].stored_type, "INT4")
        self.assertEqual(stored["table"].weight_bytes, 11 * 8 // 2)

    @parameterized.parameters("float", "fake_quant")
    def test_products_of_attention(self, activations):
        inputs = keras.Input(_SEQUENCE)
        attention = keras.layers.MultiHeadAttention(2, 4)
        model = keras.Model(inputs, attention(inputs, inputs))
        model = with_attention_products(model)
        random = np.random.default_rng(0)
        data = random.standard_normal((20, *_SEQUENCE)).astype("float32")
        model = small_models.fixed(model, "int8", data)
        model(1.137 * data, training=True)
        report = export_onnx(model, self.path, activations, data)
        self.assertLess(report.verification.rms_error, 1e-3)
        kinds = [node.op_type for node in self.graph().nodes]
        # Four projections, and the two operands of two products.
        rounded = 8 if activations == "fake_quant" else 0
        self.assertEqual(kinds.count("QuantizeLinear"), rounded)

    def _export(self, layer, shape, activations, fmt="int4"):
        inputs = keras.Input(shape)
        model = keras.Model(inputs, layer(inputs))
        random = np.random.default_rng(0)
        # A size that the model leaves open is 6.
        sizes = [size or 6 for size in shape]
        data = random.standard_normal((20, *sizes)).astype("float32")
        model = small_models.fixed(model, fmt, data)
        # The range of one batch is a ratio of codes, at which values lie on
        # the boundary between two codes; that of several batches is not.
        model(1.137 * data, training=True)
        return export_onnx(model, self.path, activations, data)


class ProofTest(_OnnxTestCase):
    def setUp(self):
        super().setUp()
        self.model = small_models.fixed(small_models.residual(), "int5")
        positive = weights.positive

        def wrong(codes, axis, factor):
            codes, scale = positive(codes, axis, factor)
            # Of the layer 'down' alone.
            share = 1.2 if codes.shape == (16, 8, 3, 3) else 1.0
            return codes, scale * np.float32(share)

        self.corruption = mock.patch.object(weights, "positive", wrong)

    @parameterized.parameters("float", "fake_quant")
    def test_corruption_leaves_no_file(self, activations):
        self.path.write_bytes(b"older")
        with (
            self.corruption,
            self.assertRaisesRegex(
                RuntimeError, "in front of layer 'logits'.*was not written"
            ),
        ):
            export_onnx(
                self.model, self.path, activations, small_models.images()
            )
        self.assertEqual(os.listdir(self.folder), ["model.onnx"])
        self.assertEqual(self.path.read_bytes(), b"older")

    def test_allowed_mismatch_is_recorded(self):
        with self.corruption:
            report = export_onnx(self.model, self.path, allow_mismatch=True)
        self.assertFalse(report.verification.passed)
        (entry,) = onnx.load(self.path).metadata_props
        found = json.loads(entry.value)
        self.assertEqual(
            (found["passed"], found["mismatch_allowed"]), (False, True)
        )

    def test_accuracy_decides_too(self):
        images = small_models.images()
        labels = self.model(images, training=False).numpy().argmax(-1)
        data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
        report = export_onnx(self.model, self.path, "fake_quant", data)
        self.assertEqual(report.verification.accuracy, 1.0)

    def test_fixed_model_is_not_changed(self):
        before = self.model.get_config(), self.model.get_weights()
        export_onnx(self.model, self.path, "fake_quant")
        self.assertEqual(self.model.get_config(), before[0])
        for old, new in zip(before[1], self.model.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


class ArgumentsTest(_OnnxTestCase):
    def test_activations(self):
        with self.assertRaisesRegex(ValueError, "float, fake_quant.*'int8'"):
            export_onnx(small_models.residual(), self.path, "int8")

    def test_ranges_without_data(self):
        fixed = small_models.fixed(small_models.residual(), "int8")
        for variable in fixed.get_layer("down")._input_state.values():
            variable.assign(0.0)
        with self.assertRaisesRegex(ValueError, r"without data in \['down'\]"):
            export_onnx(fixed, self.path, "fake_quant")
        export_onnx(fixed, self.path)

    def test_missing_packages(self):
        with (
            mock.patch("importlib.import_module", side_effect=ImportError),
            self.assertRaisesRegex(ImportError, r"pip install .*\[onnx\]"),
        ):
            export_onnx(small_models.residual(), self.path)

    def test_layer_that_onnx_lacks(self):
        model = keras.Sequential([keras.Input((4,)), _Digamma(name="odd")])
        with self.assertRaisesRegex(ValueError, "tf.Digamma of layer 'odd'"):
            export_onnx(model, self.path)
        self.assertEmpty(os.listdir(self.folder))


class _Digamma(keras.layers.Layer):
    def call(self, inputs):
        return tf.math.digamma(inputs)


if __name__ == "__main__":
    absltest.main()
