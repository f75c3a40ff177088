"""The contract, for convolutions of signals and volumes."""

import keras
import pytest
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import layers
from tests.layers import layer_contract
from tests.layers.float64_product import Float64Product


class Conv1DTest(
    Float64Product, layer_contract.LayerContract, parameterized.TestCase
):
    layer_class = layers.Conv1D
    keras_class = keras.layers.Conv1D
    kernel_axes = (0, 1)
    cases = [
        (dict(filters=5, kernel_size=3), (2, 7, 4)),
        (
            dict(
                filters=4,
                kernel_size=3,
                padding="causal",
                dilation_rate=2,
                use_bias=False,
            ),
            (2, 8, 3),
        ),
        (
            dict(filters=4, kernel_size=3, groups=2, activation="tanh"),
            (2, 7, 4),
        ),
        (
            dict(filters=6, kernel_size=2, data_format="channels_first"),
            (2, 4, 7),
        ),
    ]


@pytest.mark.slow
class Conv3DTest(
    Float64Product, layer_contract.LayerContract, parameterized.TestCase
):
    layer_class = layers.Conv3D
    keras_class = keras.layers.Conv3D
    kernel_axes = (0, 1, 2, 3)
    cases = [
        (dict(filters=3, kernel_size=2, strides=2), (2, 4, 4, 5, 3)),
        (
            dict(
                filters=4,
                kernel_size=2,
                groups=2,
                padding="same",
                activation="tanh",
                use_bias=False,
            ),
            (2, 3, 4, 3, 4),
        ),
        (
            dict(filters=3, kernel_size=2, data_format="channels_first"),
            (2, 3, 3, 4, 4),
        ),
    ]


class DepthwiseConv1DTest(
    Float64Product, layer_contract.LayerContract, parameterized.TestCase
):
    layer_class = layers.DepthwiseConv1D
    keras_class = keras.layers.DepthwiseConv1D
    kernel_axes = (0,)
    cases = [
        (dict(kernel_size=3, depth_multiplier=2), (2, 7, 4)),
        (
            dict(
                kernel_size=3,
                dilation_rate=2,
                padding="same",
                activation="tanh",
                use_bias=False,
            ),
            (2, 7, 4),
        ),
        (
            dict(kernel_size=3, data_format="channels_first"),
            (2, 4, 7),
        ),
    ]


if __name__ == "__main__":
    absltest.main()
