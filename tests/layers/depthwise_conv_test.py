"""The contract, for depthwise convolutions."""

import keras
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import layers
from tests.layers import layer_contract
from tests.layers.numpy_convolution import convolve


class DepthwiseConv2DTest(layer_contract.LayerContract, parameterized.TestCase):
    layer_class = layers.DepthwiseConv2D
    keras_class = keras.layers.DepthwiseConv2D
    kernel_axes = (0, 1)
    cases = [
        (dict(kernel_size=3), (2, 7, 8, 4)),
        (dict(kernel_size=3, strides=2, padding="same"), (2, 7, 8, 3)),
        (
            dict(kernel_size=(2, 3), depth_multiplier=3, activation="relu"),
            (2, 6, 6, 2),
        ),
        (
            dict(kernel_size=3, dilation_rate=2, use_bias=False),
            (2, 8, 9, 2),
        ),
        (
            dict(kernel_size=3, data_format="channels_first"),
            (2, 4, 6, 5),
        ),
    ]

    def product(self, layer, x, kernel):
        # A group for each channel; its outputs stand side by side.
        height, width, channels, multiplier = kernel.shape
        first = layer.data_format == "channels_first"
        outputs = convolve(
            x.transpose(0, 2, 3, 1) if first else x,
            kernel.reshape(height, width, 1, channels * multiplier),
            layer.strides,
            layer.padding,
            layer.dilation_rate,
            channels,
        )
        return outputs.transpose(0, 3, 1, 2) if first else outputs


if __name__ == "__main__":
    absltest.main()
