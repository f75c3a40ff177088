"""What every quantizer promises."""

import json

import keras
import numpy as np
from keras import ops

SPACE = ("int4", "e2m1", "int8")


class Host(keras.layers.Layer):
    """A layer that holds a quantizer's state, the way TFMOT's wrapper does."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def build(self, shape):
        self.state = self.quantizer.build(shape, "x", self)

    def call(self, inputs, training=False):
        return self.quantizer(inputs, training, self.state)


class QuantizerContract:
    """Inherit together with `parameterized.TestCase`.

    Class attributes:
        quantizer_class: The quantizer.
        variants: Keywords of quantizers, besides the formats.
    """

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((6, 5, 4)).astype("float32")

    def each(self):
        return [
            self.quantizer_class(formats, **keywords)
            for formats in ("int4", SPACE)
            for keywords in self.variants
        ]

    def test_config_round_trip(self):
        for quantizer in self.each():
            config = json.loads(json.dumps(quantizer.get_config()))
            self.assertEqual(
                self.quantizer_class.from_config(config), quantizer
            )
            data = json.loads(
                json.dumps(keras.saving.serialize_keras_object(quantizer))
            )
            self.assertStartsWith(data["registered_name"], "fliqs_tf>")
            found = keras.saving.deserialize_keras_object(data)
            self.assertIsInstance(found, self.quantizer_class)
            self.assertEqual(found, quantizer)
            self.assertEqual(hash(found), hash(quantizer))
            self.assertEqual(found.get_config(), quantizer.get_config())

    def test_differ_by_their_config(self):
        found = self.each()
        for number, one in enumerate(found):
            for other in found[number + 1 :]:
                self.assertNotEqual(one, other)

    def test_shape_and_dtype_are_kept(self):
        for quantizer in self.each():
            for dtype in ("float32", "bfloat16", "float16"):
                host = Host(quantizer)
                outputs = host(ops.cast(self.x, dtype))
                self.assertEqual(tuple(outputs.shape), self.x.shape)

    def test_codes_times_scale_is_the_result(self):
        for quantizer in self.each():
            host = Host(quantizer)
            expected = host(self.x)
            codes, scale = quantizer.codes(self.x, False, host.state)
            np.testing.assert_array_equal(codes * scale, expected)

    def test_one_format_has_no_choice(self):
        for keywords in self.variants:
            host = Host(self.quantizer_class("int4", **keywords))
            host(self.x)
            self.assertNotIn("choice", host.state)
            host = Host(self.quantizer_class(SPACE, **keywords))
            host(self.x)
            self.assertIn("choice", host.state)
            # The widest one, until somebody chooses.
            self.assertEqual(int(host.state["choice"]), 2)
            self.assertEqual(host.state["choice"].dtype, "int32")
            # The layer saves it.
            self.assertIn("x_choice", [w.name for w in host.weights])
            self.assertEmpty(host.trainable_weights)

    def test_choice_selects_the_format(self):
        for keywords in self.variants:
            host = Host(self.quantizer_class(SPACE, **keywords))
            host(self.x)
            for number, name in enumerate(SPACE):
                host.state["choice"].assign(number)
                fixed = Host(self.quantizer_class(name, **keywords))
                np.testing.assert_array_equal(host(self.x), fixed(self.x))

    def test_bad_formats(self):
        for formats in ("int9", (), ("int4", "int4")):
            with self.assertRaisesRegex(ValueError, "Received"):
                self.quantizer_class(formats)
