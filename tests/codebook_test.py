"""Formats of one's own: registered, rounded, searched, saved."""

import hypothesis
import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import strategies

import fliqs_tf as fliqs
from fliqs_tf import codebooks
from fliqs_tf import costs
from fliqs_tf import formats
from fliqs_tf.formats import get_format

_NF4 = (
    *(-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0),
    *(0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0),
)
_PROPERTY = hypothesis.settings(
    max_examples=40, deadline=None, derandomize=True, database=None
)


class CodebookCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        # Names of one test must not be taken in the next.
        known = dict(formats._REGISTERED)
        self.addCleanup(formats._REGISTERED.update, known)
        self.addCleanup(formats._REGISTERED.clear)


def nearest(levels, y):
    """Nearest level in float64, at a tie the lower one."""
    levels = np.sort(np.asarray(levels, np.float32)).astype(np.float64)
    distance = np.abs(np.asarray(y, np.float64)[..., None] - levels)
    return levels[distance.argmin(-1)]


class RegisterTest(CodebookCase):
    def test_is_a_format(self):
        fmt = fliqs.register_format("nf4", _NF4)
        self.assertIs(get_format("nf4"), fmt)
        self.assertEqual((fmt.name, fmt.bits, fmt.max_value), ("nf4", 4, 1.0))
        np.testing.assert_array_equal(
            fmt.values(), np.float32(_NF4).astype(np.float64)
        )
        self.assertEqual(fmt.storage_bits, 4.0)

    def test_the_documented_example(self):
        text = fliqs.register_format.__doc__
        example = text[text.index(">>> nf4") : text.index(">>> nf4.bits")]
        lines = [line.strip()[4:] for line in example.strip().splitlines()]
        self.assertLess(len(lines), 10)
        found = {"fliqs": fliqs}
        exec("\n".join(lines), found)  # noqa: S102
        self.assertEqual(found["nf4"].bits, 4)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
        search = fliqs.SearchModel(model, space=("nf4", "int8"))
        self.assertEqual(search.decisions[0].options, ("nf4", "int8"))

    def test_order_does_not_matter_and_bits_can_be_wider(self):
        fmt = fliqs.register_format("three", [2, -1, 0.5], bits=4)
        np.testing.assert_array_equal(fmt.values(), [-1, 0.5, 2])
        self.assertEqual(fmt.bits, 4)

    @parameterized.parameters(
        "int4", "e4m3", "e4m3fn", "fp32", "mxfp4", "e2m9", "bf16"
    )
    def test_taken_name_is_refused(self, name):
        with self.assertRaisesRegex(ValueError, f"Received: name='{name}'"):
            fliqs.register_format(name, _NF4)

    def test_second_registration_is_refused(self):
        fliqs.register_format("mine", _NF4)
        with self.assertRaisesRegex(ValueError, "Received: name='mine'"):
            fliqs.register_format("mine", _NF4)

    @parameterized.parameters("", "NF4", "4nf", "a b", "a,b", None, 3)
    def test_bad_name_is_refused(self, name):
        with self.assertRaisesRegex(ValueError, "Received: name="):
            fliqs.register_format(name, _NF4)

    @parameterized.parameters(
        ((),), ((1.0,),), ((1.0, 1.0),), ((0.0, np.inf),), ((0.0, np.nan),),
        (np.arange(257),), (np.ones((2, 2)),), ((1.0, 1.0 + 1e-12),),
    )  # fmt: skip
    def test_bad_values_are_refused(self, values):
        with self.assertRaisesRegex(ValueError, "Received: values="):
            fliqs.register_format("mine", values)

    @parameterized.parameters(3, 0, 4.5)
    def test_bad_bits_are_refused(self, bits):
        with self.assertRaisesRegex(ValueError, "Received: bits="):
            fliqs.register_format("mine", _NF4, bits=bits)

    def test_unknown_name_lists_it(self):
        fliqs.register_format("nf4", _NF4)
        with self.assertRaisesRegex(ValueError, "nf4"):
            get_format("nf5")


class RoundingTest(CodebookCase):
    def test_by_hand(self):
        fliqs.register_format("mine", [-4, -1, 0, 2, 3])
        x = np.float32([-4, -2.6, -2.5, -0.5, 0.9, 1, 1.1, 2.5, 2.6, 4])
        # The scale is 1; ties go down.
        np.testing.assert_array_equal(
            fliqs.fake_quant(x, "mine"), [-4, -4, -4, -1, 0, 0, 2, 2, 3, 3]
        )
        np.testing.assert_array_equal(
            fliqs.fake_quant(2 * x, "mine", scale=2.0),
            [-8, -8, -8, -2, 0, 0, 4, 4, 6, 6],
        )

    @_PROPERTY
    @hypothesis.given(
        strategies.lists(
            strategies.floats(-1000, 1000, width=16), min_size=2, max_size=40,
            unique=True,
        ),
        strategies.integers(0, 2**32 - 1),
    )  # fmt: skip
    def test_nearest(self, levels, seed):
        levels = np.unique(np.float32(levels))
        # Numbers whose float32 scale and quotient are ordinary.
        hypothesis.assume(len(levels) > 1)
        hypothesis.assume(np.abs(levels).max() > 1e-3)
        fmt = formats.Format(
            "mine", 8, 0, 0, float(np.abs(levels).max()),
            codebook=tuple(levels.astype(float).tolist()),
        )  # fmt: skip
        rng = np.random.default_rng(seed)
        middles = (levels[1:] + levels[:-1]) / 2
        x = np.concatenate(
            [levels, middles, np.nextafter(middles, np.float32(np.inf)),
             np.nextafter(middles, np.float32(-np.inf)),
             rng.uniform(-1200, 1200, 50).astype("float32")]
        )  # fmt: skip
        x = np.where(np.abs(x) < 1e-30, 0, x)
        np.testing.assert_array_equal(
            fliqs.fake_quant(x, fmt, scale=1.0), nearest(levels, x)
        )

    def test_hazards(self):
        fliqs.register_format("nf4", _NF4)
        found = fliqs.fake_quant(
            np.float32([np.nan, np.inf, -np.inf, 0]), "nf4", scale=1.0
        )
        np.testing.assert_array_equal(found, [np.nan, 1, -1, 0])
        np.testing.assert_array_equal(
            fliqs.fake_quant(np.zeros(5, "float32"), "nf4"), np.zeros(5)
        )

    def test_large_tensors(self):
        fliqs.register_format("nf4", _NF4)
        x = np.random.default_rng(0).uniform(-1, 1, 2**20 + 5)
        x = x.astype("float32")
        np.testing.assert_array_equal(
            fliqs.fake_quant(x, "nf4", scale=1.0), nearest(_NF4, x)
        )

    def test_thresholds_decide_exactly(self):
        fmt = fliqs.register_format("mine", [0.1, 0.7, 0.2])
        table = codebooks.codebook_table(["int4", fmt], normalized=False)
        self.assertEqual(table.shape, (2, 2, 3))
        np.testing.assert_array_equal(table[0], 0.0)
        middles = (fmt.values()[1:] + fmt.values()[:-1]) / 2
        below = table[1, 0, :2]
        self.assertTrue(np.all(below <= middles))
        above = np.nextafter(below, np.float32(np.inf))
        self.assertTrue(np.all(above > middles))
        self.assertIsNone(codebooks.codebook_table(["int4", "e4m3"]))


class ModelTest(CodebookCase):
    def test_in_a_space_beside_others(self):
        nf4 = fliqs.register_format("nf4", _NF4)
        inputs = keras.Input((12,))
        x = keras.layers.Dense(20, activation="relu")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(3)(x))
        search = fliqs.SearchModel(
            model, ("nf4", "int8", "mxfp4"), cost_target="1.5xint4"
        )
        search.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
        rng = np.random.default_rng(1)
        data = rng.standard_normal((32, 12)).astype("float32")
        labels = rng.integers(0, 3, 32)
        search.fit(data, labels, batch_size=16, epochs=3, verbose=0)
        fixed = fliqs.to_fixed(
            search, dict.fromkeys(("dense", "dense_1"), "nf4")
        )
        for layer in fixed.layers[1:]:
            codes, scale = layer.quantized_kernel()
            # In the format's own units, and as near as may be.
            self.assertContainsSubset(
                np.unique(codes).tolist(), nf4.values().tolist()
            )
            np.testing.assert_array_equal(
                codes * scale, fliqs.fake_quant(layer.kernel, "nf4", axis=-1)
            )
        path = self.create_tempdir().full_path + "/model.keras"
        fixed.save(path)
        np.testing.assert_array_equal(
            keras.models.load_model(path)(data), fixed(data)
        )
        self.assertEqual(
            costs.get("bitops")(fixed, "nf4"),
            costs.get("bitops")(fixed, "int4"),
        )


if __name__ == "__main__":
    absltest.main()
