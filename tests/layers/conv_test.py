"""The contract, for convolutions."""

import keras
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import layers
from tests.layers import layer_contract
from tests.layers.numpy_convolution import convolve


class Conv2DTest(layer_contract.LayerContract, parameterized.TestCase):
    layer_class = layers.Conv2D
    keras_class = keras.layers.Conv2D
    kernel_axes = (0, 1, 2)
    cases = [
        (dict(filters=5, kernel_size=3), (2, 7, 8, 4)),
        (
            dict(filters=6, kernel_size=(3, 2), strides=(2, 1), padding="same"),
            (3, 7, 8, 2),
        ),
        (
            dict(filters=4, kernel_size=3, dilation_rate=2, use_bias=False),
            (2, 9, 8, 3),
        ),
        (
            dict(filters=6, kernel_size=3, groups=2, activation="relu"),
            (2, 6, 6, 4),
        ),
        (dict(filters=3, kernel_size=1, activation="tanh"), (2, 4, 5, 6)),
        # As many filters as columns would show a fault of TensorFlow: in graph
        # mode on CPUs Keras's own layer then adds its bias along the width.
        (
            dict(filters=6, kernel_size=3, data_format="channels_first"),
            (2, 4, 6, 5),
        ),
    ]

    def product(self, layer, x, kernel):
        first = layer.data_format == "channels_first"
        outputs = convolve(
            x.transpose(0, 2, 3, 1) if first else x,
            kernel,
            layer.strides,
            layer.padding,
            layer.dilation_rate,
            layer.groups,
        )
        return outputs.transpose(0, 3, 1, 2) if first else outputs


if __name__ == "__main__":
    absltest.main()
