"""OCP MX block formats: elements, shared scales, blocks, layers, search."""

import keras
import ml_dtypes
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf import costs
from fliqs_tf import numerics
from fliqs_tf.formats import get_format
from fliqs_tf.quantizers import InputQuantizer
from fliqs_tf.quantizers import WeightQuantizer

# Element type, its largest exponent (MX v1.0, tables 1 to 5), largest value.
_ELEMENTS = {
    "mxfp8_e4m3": (ml_dtypes.float8_e4m3fn, 8, 448.0),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 15, 57344.0),
    "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 4, 28.0),
    "mxfp6_e2m3": (ml_dtypes.float6_e2m3fn, 2, 7.5),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 2, 6.0),
    "mxint8": (None, 0, 127 / 64),
}


def reference(block, name):
    """One block by the specification, in float64."""
    block = np.asarray(block, np.float64)
    dtype, top_exponent, largest = _ELEMENTS[name]
    absmax = np.abs(block).max()
    if absmax == 0:
        return block
    scale = 2.0 ** (np.floor(np.log2(absmax)) - top_exponent)
    scaled = np.clip(block / scale, -largest, largest)
    if dtype is None:
        return np.round(scaled * 64) / 64 * scale
    return scaled.astype(dtype).astype(np.float64) * scale


def reference_rows(x, name, size=32):
    """Blocks along the last axis, the last one short."""
    rows = x.reshape(-1, x.shape[-1])
    found = [
        np.concatenate(
            [
                reference(row[start : start + size], name)
                for start in range(0, len(row), size)
            ]
        )
        for row in rows
    ]
    return np.stack(found).reshape(x.shape).astype("float32")


class ElementTest(parameterized.TestCase):
    @parameterized.parameters(*_ELEMENTS)
    def test_numbers_of_the_specification(self, name):
        fmt = get_format(name)
        dtype, exponent, largest = _ELEMENTS[name]
        self.assertEqual(fmt.max_value, largest)
        self.assertEqual(fmt.unit, 2.0**exponent)
        self.assertEqual(fmt.block_size, 32)
        self.assertEqual(fmt.storage_bits, fmt.bits + 0.25)
        if dtype is not None:
            codes = np.arange(2**fmt.bits).astype(np.uint8).view(dtype)
            values = np.unique(codes.astype(np.float64))
            values = values[np.isfinite(values)]
            np.testing.assert_array_equal(fmt.values(), values)
        else:
            np.testing.assert_array_equal(
                fmt.values(), np.arange(-127, 128) / 64
            )

    def test_bits(self):
        bits = {name: get_format(name).bits for name in _ELEMENTS}
        self.assertEqual(list(bits.values()), [8, 8, 6, 6, 4, 8])
        self.assertEqual(get_format("int4").storage_bits, 4.0)


class FakeQuantTest(parameterized.TestCase):
    @parameterized.product(name=list(_ELEMENTS), width=(32, 64, 5, 70))
    def test_equals_the_specification(self, name, width):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((7, 3, width))
        x = (x * 2.0 ** rng.integers(-20, 20, (7, 3, 1))).astype("float32")
        np.testing.assert_array_equal(
            fliqs.fake_quant(x, name), reference_rows(x, name)
        )

    def test_by_hand(self):
        # absmax 7: shared exponent 2 - 2 = 0. 7 saturates at 6; 2.5 is a tie
        # between 2 and 3, and 2 has the even mantissa.
        x = np.float32([7, -7, 2.5, 0.2, 0.3])
        np.testing.assert_array_equal(
            fliqs.fake_quant(x, "mxfp4"), [6, -6, 2, 0, 0.5]
        )

    def test_blocks_run_along_all_but_the_kept_axis(self):
        x = np.random.default_rng(1).standard_normal((3, 3, 20, 5))
        x = x.astype("float32")
        found = np.asarray(fliqs.fake_quant(x, "mxfp4", axis=-1))
        columns = x.reshape(180, 5).T
        np.testing.assert_array_equal(
            found.reshape(180, 5).T, reference_rows(columns, "mxfp4")
        )
        # Kept axes in front and in the middle, too.
        for axis in (0, 1, 2):
            moved = np.moveaxis(x, axis, 0)
            rows = moved.reshape(len(moved), -1)
            expected = reference_rows(rows, "mxfp4").reshape(moved.shape)
            np.testing.assert_array_equal(
                fliqs.fake_quant(x, "mxfp4", axis=axis),
                np.moveaxis(expected, 0, axis),
            )

    @parameterized.parameters("mxfp4", "mxint8")
    def test_hazards_stay_within_their_block(self, name):
        x = np.ones((1, 96), "float32")
        x[0, :32] = 0.0
        x[0, 40], x[0, 70] = np.nan, np.inf
        found = np.asarray(fliqs.fake_quant(x, name))
        np.testing.assert_array_equal(found[0, :32], 0.0)
        self.assertTrue(np.isnan(found[0, 40]))
        self.assertTrue(np.isnan(found[0, 64:]).all())

    def test_given_scale_is_refused(self):
        with self.assertRaisesRegex(ValueError, "Received: fmt=mxfp4"):
            fliqs.fake_quant(np.ones(3, "float32"), "mxfp4", scale=1.0)


class QuantizerTest(parameterized.TestCase):
    def test_sampled_beside_scalar_formats(self):
        space = ("int4", "mxfp4", "e4m3", "mxint8")
        x = np.random.default_rng(2).standard_normal((4, 6, 40))
        x = x.astype("float32")
        quantizers = (
            WeightQuantizer(space, axis=-1),
            InputQuantizer(space, "dynamic"),
        )
        for quantizer, axis in zip(quantizers, (-1, None), strict=True):
            state = quantizer.build(x.shape, "x", keras.layers.Layer())
            for number, name in enumerate(space):
                state["choice"].assign(number)
                codes, scale = quantizer.codes(x, False, state)
                np.testing.assert_array_equal(
                    codes * scale, fliqs.fake_quant(x, name, axis=axis)
                )
        state["choice"].assign(len(space))
        codes, scale = quantizer.codes(x, False, state)
        np.testing.assert_array_equal(codes * scale, x)

    def test_channels_first(self):
        x = np.random.default_rng(3).standard_normal((2, 40, 3, 3))
        x = x.astype("float32")
        quantizer = InputQuantizer("mxfp4", "dynamic", axis=1)
        codes, _ = quantizer.codes(x, False, {})
        expected = reference_rows(np.moveaxis(x, 1, -1).copy(), "mxfp4")
        np.testing.assert_array_equal(codes, np.moveaxis(expected, -1, 1))

    def test_groups_have_the_size_of_blocks(self):
        with self.assertRaisesRegex(ValueError, "Received: granularity=64"):
            WeightQuantizer(("int4", "mxfp4"), granularity=64)

    def test_row_says_how_it_is_scaled(self):
        table = numerics.format_table(["fp32", "int4", "mxfp4"])
        np.testing.assert_array_equal(table[:, 3], [0, 1, 2])


class ModelTest(parameterized.TestCase):
    def model(self):
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Conv2D(40, 3, activation="relu")(inputs)
        x = keras.layers.DepthwiseConv2D(3)(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(4)(x))

    def test_layer_computes_with_the_rounded_operands(self):
        rng = np.random.default_rng(4)
        x = rng.standard_normal((5, 70)).astype("float32")
        layer = fliqs.layers.Dense(6, formats="mxfp4", input_range="dynamic")
        outputs = layer(x)
        kernel = fliqs.fake_quant(layer.kernel, "mxfp4", axis=-1)
        expected = np.asarray(fliqs.fake_quant(x, "mxfp4")) @ kernel
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)

    def test_search_and_save(self):
        rng = np.random.default_rng(5)
        x = rng.standard_normal((32, 8, 8, 3)).astype("float32")
        y = rng.integers(0, 4, 32)
        search = fliqs.SearchModel(
            self.model(), ("int4", "mxfp4", "mxfp8_e4m3"), cost_target="2xint4"
        )
        search.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
        search.fit(x, y, batch_size=16, epochs=3, verbose=0)
        assignment = dict.fromkeys(search.assignment(), "mxfp4")
        fixed = fliqs.to_fixed(search, assignment)
        path = self.create_tempdir().full_path + "/model.keras"
        fixed.save(path)
        loaded = keras.models.load_model(path)
        np.testing.assert_array_equal(
            loaded.predict(x, verbose=0), fixed.predict(x, verbose=0)
        )

    def test_size_counts_the_shared_scales(self):
        inputs = keras.Input((64,))
        model = keras.Model(inputs, keras.layers.Dense(10)(inputs))
        for name, bits in (("mxfp4", 4.25), ("mxint8", 8.25)):
            # 640 weights with a byte for each 32, and 10 float32 biases.
            self.assertAlmostEqual(
                costs.get("size")(model, name) * 2**20, 80 * bits + 40
            )

    def test_bitops_count_the_elements(self):
        model = self.model()
        self.assertEqual(
            costs.get("bitops")(model, "mxfp4"),
            costs.get("bitops")(model, "int4"),
        )


if __name__ == "__main__":
    absltest.main()
