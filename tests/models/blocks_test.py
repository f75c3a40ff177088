import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.models import blocks


class BlocksTest(parameterized.TestCase):
    def test_scale_channels(self):
        for channels, width, divisor, expected in (
            (64, 1.0, 1, 64),
            (48, 0.25, 1, 12),
            (3, 0.5, 1, 2),
            (10, 0.01, 1, 1),
            (24, 0.5, 8, 16),
            (32, 1.4, 8, 48),
            (16, 1.1, 8, 16),
            # The nearest multiple is 8, but that loses more than a tenth.
            (12, 0.99, 8, 16),
            (8, 0.1, 8, 8),
        ):
            with self.subTest(channels=channels, width=width, divisor=divisor):
                self.assertEqual(
                    blocks.scale_channels(channels, width, divisor), expected
                )

    @parameterized.parameters(
        ({}, ["a", "a_bn", "a_act"]),
        ({"activation": None}, ["a", "a_bn"]),
    )
    def test_conv_bn_names(self, options, expected):
        inputs = keras.Input((5, 5, 2))
        outputs = blocks.conv_bn(
            inputs, 4, 3, strides=2, name="a", use_bias=True, **options
        )
        layers = keras.Model(inputs, outputs).layers[1:]
        self.assertEqual([layer.name for layer in layers], expected)
        self.assertEqual(outputs.shape, (None, 3, 3, 4))
        self.assertTrue(layers[0].use_bias)

    def test_depthwise_kernel_starts_at_the_scale_of_one_channel(self):
        inputs = keras.Input((5, 5, 4096))
        model = keras.Model(inputs, blocks.depthwise_bn(inputs, 3, name="a"))
        kernel = keras.ops.convert_to_numpy(model.get_layer("a").kernel)
        self.assertAlmostEqual(kernel.std(), np.sqrt(2 / 9), delta=0.02)

    def test_drop_residual_drops_whole_images(self):
        inputs = keras.Input((3, 4))
        model = keras.Model(inputs, blocks.drop_residual(inputs, 0.5, "a"))
        ones = np.ones((256, 3, 4), "float32")
        dropped = keras.ops.convert_to_numpy(model(ones, training=True))
        per_image = dropped.reshape(256, -1)
        np.testing.assert_array_equal(
            per_image.min(axis=1), per_image.max(axis=1)
        )
        self.assertEqual(set(per_image[:, 0]), {0.0, 2.0})
        np.testing.assert_array_equal(model(ones, training=False), ones)

    def test_drop_residual_at_zero_adds_no_layer(self):
        inputs = keras.Input((3, 4))
        self.assertIs(blocks.drop_residual(inputs, 0.0, "a"), inputs)

    def test_classify(self):
        inputs = keras.Input((5, 5, 2))
        model = keras.Model(inputs, blocks.classify(inputs, 7, dropout=0.1))
        self.assertEqual(
            [layer.name for layer in model.layers[1:]],
            ["pool", "dropout", "logits"],
        )
        self.assertEqual(model.output_shape, (None, 7))


if __name__ == "__main__":
    absltest.main()
