"""The contract, for transposed convolutions.

On CPUs TensorFlow runs them neither dilated nor with channels first.
"""

import keras
import pytest
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import layers
from tests.layers import layer_contract
from tests.layers.float64_product import Float64Product


class Conv1DTransposeTest(
    Float64Product, layer_contract.LayerContract, parameterized.TestCase
):
    layer_class = layers.Conv1DTranspose
    keras_class = keras.layers.Conv1DTranspose
    kernel_axes = (0, 2)
    cases = [
        (dict(filters=5, kernel_size=3, strides=2), (2, 6, 4)),
        (
            dict(
                filters=5,
                kernel_size=3,
                padding="same",
                activation="tanh",
                use_bias=False,
            ),
            (2, 6, 4),
        ),
    ]


class Conv2DTransposeTest(
    Float64Product, layer_contract.LayerContract, parameterized.TestCase
):
    layer_class = layers.Conv2DTranspose
    keras_class = keras.layers.Conv2DTranspose
    kernel_axes = (0, 1, 3)
    cases = [
        (
            dict(filters=5, kernel_size=3, strides=2, padding="same"),
            (2, 4, 5, 4),
        ),
        (
            dict(
                filters=3,
                kernel_size=3,
                strides=2,
                output_padding=1,
                activation="tanh",
                use_bias=False,
            ),
            (2, 4, 5, 4),
        ),
    ]


@pytest.mark.slow
class Conv3DTransposeTest(
    Float64Product, layer_contract.LayerContract, parameterized.TestCase
):
    layer_class = layers.Conv3DTranspose
    keras_class = keras.layers.Conv3DTranspose
    kernel_axes = (0, 1, 2, 4)
    cases = [
        (dict(filters=3, kernel_size=2), (2, 3, 3, 4, 3)),
        (
            dict(
                filters=3,
                kernel_size=2,
                strides=2,
                padding="same",
                activation="tanh",
                use_bias=False,
            ),
            (2, 3, 3, 2, 3),
        ),
    ]


if __name__ == "__main__":
    absltest.main()
