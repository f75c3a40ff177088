import keras
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.codebooks import register_format
from fliqs_tf.export import containers
from fliqs_tf.export import export_tflite
from fliqs_tf.export import litert
from fliqs_tf.export import twin
from fliqs_tf.export import weights
from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.graph import type_name
from fliqs_tf.export.runner import Runner
from fliqs_tf.export.slots import Slots
from fliqs_tf.formats import get_format
from tests.export import small_models


class PackTest(parameterized.TestCase):
    @parameterized.parameters(
        (2, [1, -1, 0, 1], [0b01_00_11_01]),
        (2, [1], [0b01]),
        (4, [1, -7, 3], [0x91, 0x03]),
        (8, [-1, 127], [255, 127]),
    )
    def test_first_code_lies_in_the_lowest_bits(self, bits, codes, expected):
        packed = containers.pack(np.array(codes), bits)
        self.assertEqual(packed.tolist(), expected)
        self.assertEqual(packed.dtype, np.uint8)

    def test_sixteen_bits(self):
        packed = containers.pack(np.array([[-32767], [5]]), 16)
        self.assertEqual(packed.tolist(), [-32767, 5])


class StoredTest(parameterized.TestCase):
    @parameterized.parameters(
        # Format, type and bits that hold it, bytes for the 3 x 3 x 8 weights
        # of the depthwise convolution.
        ("int2", "INT2", 18),
        ("int3", "INT4", 36),
        ("int4", "INT4", 36),
        ("int5", "INT8", 72),
        ("int8", "INT8", 72),
        ("int16", "INT16", 144),
        ("e1m2", "INT4", 36),
        ("e2m1", "UINT8", 36),
        ("e2m4", "INT8", 72),
        ("e4m3", "UINT8", 72),
        ("e4m4", "FLOAT16", 144),
        ("e8m7", "BFLOAT16", 144),
        ("bf16", "BFLOAT16", 144),
        ("fp16", "FLOAT16", 144),
        ("fp32", "FLOAT32", 288),
    )
    @pytest.mark.one_in(3)
    def test_type_and_bytes(self, fmt, tensor_type, size):
        graph = self._export(fmt)
        tensor = graph.find("depthwise/kernel")
        stored = type_name(graph.tensors[tensor].type)
        if fmt == "e8m7":
            # Whether float16 holds the values depends on the values.
            self.assertIn(stored, ("FLOAT16", tensor_type))
        else:
            self.assertEqual(stored, tensor_type)
        self.assertEqual(graph.size(tensor), size)

    @parameterized.parameters("int4", "int8")
    def test_integers_are_the_codes(self, fmt):
        model = small_models.fixed(small_models.residual(), fmt)
        codes, _ = model.get_layer("pointwise").quantized_kernel()
        graph = self._export(fmt, model)
        raw = graph.raw(graph.find("pointwise/kernel"))
        if fmt == "int4":
            raw = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)
            raw = np.where(raw > 7, raw.astype(int) - 16, raw)
        stored = raw.astype(np.int8).reshape(8, 8).T
        gamma = np.sign(model.get_layer("pointwise_bn").gamma.numpy())
        np.testing.assert_array_equal(stored, codes[0, 0] * gamma)
        self.assertIn(-1, gamma)
        self.assertIn(0, gamma)

    def test_one_table_serves_all_layers(self):
        graph = self._export("e4m3")
        table = graph.constant(graph.find("e4m3/values"))
        fmt = get_format("e4m3")
        self.assertEqual(table.shape, (255,))
        np.testing.assert_array_equal(table * fmt.unit, fmt.values())
        names = [graph.name(n) for n in range(len(graph.tensors))]
        self.assertEqual(sum("values" in name for name in names), 1)

    @parameterized.parameters(
        ("int4", "INT8"),
        ("e2m1", "INT8"),
        ("e4m3", "FLOAT16"),
        # All of FLOAT16's exponents, down to its smallest subnormal value.
        ("e5m2", "FLOAT16"),
        ("mxfp4", "FLOAT16"),
        ("fp16", "FLOAT16"),
        # One bit of mantissa too many, and weights that are not rounded.
        ("int16", "FLOAT32"),
        ("fp32", "FLOAT32"),
    )
    @pytest.mark.one_in(3)
    def test_fast_types(self, fmt, tensor_type):
        graph = self._export(fmt, containers="fast")
        for path in ("stem", "depthwise", "pointwise", "down", "logits"):
            (tensor,) = weights.stored_tensors(graph, path)
            stored = type_name(graph.tensors[tensor].type)
            self.assertEqual(stored, tensor_type)
        decoders = {Builtin.DEQUANTIZE} if tensor_type != "FLOAT32" else set()
        used = {graph.builtin(operator) for operator in graph.operators}
        # Nothing is computed at each call but by what the fast kernels fuse.
        self.assertEqual(
            used.intersection(
                (Builtin.CAST, Builtin.GATHER, Builtin.DEQUANTIZE)
            ),
            decoders,
        )

    def test_small_formats_make_small_files(self):
        sizes = [
            len(self._export(fmt).to_bytes())
            for fmt in ("int2", "int4", "int8", "fp16", "fp32")
        ]
        self.assertEqual(sizes, sorted(sizes))

    @parameterized.parameters("int4", "e4m3", "fp16")
    def test_plain_values(self, fmt):
        graph = self._export(fmt, containers="float32")
        for path in ("stem", "depthwise", "pointwise", "down", "logits"):
            (tensor,) = weights.stored_tensors(graph, path)
            self.assertEqual(type_name(graph.tensors[tensor].type), "FLOAT32")
            # Nothing stands between them and their operator.
            operator = weights.reader(graph, tensor)
            self.assertIn(tensor, operator.inputs)

    def _export(self, fmt, model=None, containers="small"):
        path = self.create_tempfile().full_path
        model = model or small_models.fixed(small_models.residual(), fmt)
        report = export_tflite(model, path, containers=containers)
        self.assertLess(report.max_relative_error, 2e-6)
        with open(path, "rb") as file:
            return Graph(file.read())


class DecodedTest(parameterized.TestCase):
    """Formats whose values are no multiples of one step."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        register_format("export_two_bits", [-1.0, -0.25, 0.3, 0.9])
        register_format("export_odd", [-1.0, -0.5, 0.01, 0.2, 0.7])

    @parameterized.parameters(
        # Format, bytes of 3 x 3 x 5 x 8, of 3 x 3 x 8 and of 8 x 3 weights.
        # Blocks of 32 are filled up: 45, 9 and 8 weights a channel.
        ("mxfp4", 8 * 32, 8 * 16, 3 * 16),
        ("mxfp6_e3m2", 8 * 64, 8 * 32, 3 * 32),
        ("mxfp8_e4m3", 8 * 64, 8 * 32, 3 * 32),
        ("mxfp8_e5m2", 8 * 64, 8 * 32, 3 * 32),
        ("mxint8", 8 * 64, 8 * 32, 3 * 32),
        ("export_two_bits", 90, 18, 6),
        ("export_odd", 180, 36, 12),
    )
    def test_exact(self, fmt, *sizes):
        graph, kernels = self._stored(fmt, "small")
        for kernel, size in zip(kernels, sizes, strict=True):
            (stored,) = weights.stored_tensors(graph, kernel.path)
            self.assertEqual(graph.size(stored), size)

    @parameterized.parameters(
        "mxfp8_e5m2", "export_two_bits", "export_odd", "e4m3", "fp16"
    )
    def test_scales_behind_the_operators(self, fmt):
        """Of either sign, behind and before biases and activations."""
        self._stored(fmt, "fast")

    def _stored(self, fmt, kind):
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((8, 8, 5), name="x"),
                layers.Conv2D(8, 3, name="conv", activation="relu6"),
                layers.DepthwiseConv2D(3, name="depthwise"),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3, name="dense", activation="relu"),
            ]
        )
        random = np.random.default_rng(2)
        kernels = []
        for layer in model.layers:
            if not layer.weights:
                continue
            axis = 2 if layer.name == "depthwise" else layer.kernel.ndim - 1
            codes = _rounded(layer.kernel.numpy(), get_format(fmt), axis)
            kernels.append(weights.Kernel(layer.name, get_format(fmt), codes))
            # Any factor may stand beside, of either sign.
            layer.kernel.assign(codes * np.float32(-0.3))
            layer.bias.assign(random.uniform(0.0, 1.0, layer.bias.shape))
        model = twin.uncompiled(model)
        graph = litert.convert(model, Slots(), model)
        weights.store(graph, kernels, kind)
        graph = Graph(graph.to_bytes())
        x = np.random.default_rng(1).standard_normal((4, 8, 8, 5))
        x = x.astype("float32")
        (received,) = Runner(graph.to_bytes())([x])
        expected = np.asarray(model(x))
        error = np.abs(received - expected).max() / np.abs(expected).max()
        self.assertLess(error, 2e-6)
        return graph, kernels


def _rounded(kernel, fmt, axis):
    """Codes in normalised units, by the definition of the formats."""
    levels = fmt.values() / fmt.unit
    moved = np.moveaxis(kernel, axis, 0)
    rows = moved.reshape(len(moved), -1).astype(np.float64)
    if fmt.block_size:
        for row in rows:
            for start in range(0, len(row), fmt.block_size):
                part = row[start : start + fmt.block_size]
                power = 2.0 ** np.floor(np.log2(np.abs(part).max()))
                part[:] = power * _nearest(part / power, levels)
    else:
        rows = _nearest(rows / np.abs(rows).max(), levels)
    rows = rows.reshape(moved.shape).astype(np.float32)
    return np.moveaxis(rows, 0, axis)


def _nearest(x, levels):
    return levels[np.abs(x[..., None] - levels).argmin(axis=-1)]


if __name__ == "__main__":
    absltest.main()
