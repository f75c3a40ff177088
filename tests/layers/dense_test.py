"""The contract, for dense layers."""

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

from fliqs_tf import layers
from tests.layers import layer_contract


class DenseTest(layer_contract.LayerContract, parameterized.TestCase):
    layer_class = layers.Dense
    keras_class = keras.layers.Dense
    kernel_axes = (0,)
    cases = [
        (dict(units=5), (7, 6)),
        (dict(units=3, activation="softmax", use_bias=False), (4, 9)),
        (dict(units=4, activation="relu"), (2, 5, 6)),
    ]

    def product(self, layer, x, kernel):
        return x @ kernel

    @parameterized.parameters("mixed_bfloat16", "mixed_float16")
    def test_kernel_is_rounded_once_under_mixed_precision(self, policy):
        # At scale 1, INT2 rounds what is above 1/2 up. In 16 bits the number
        # would be 1/2, a tie, which goes to 0.
        layer = layers.Dense(
            1, formats="int2", input_formats=None, dtype=policy
        )
        layer.build((None, 2))
        layer.kernel.assign([[1.0], [0.5 + 2.0**-14]])
        np.testing.assert_array_equal(
            ops.cast(layer(np.array([[0.0, 1.0]])), "float32"), [[1.0]]
        )
        np.testing.assert_array_equal(layer.quantized_kernel()[0], [[1], [1]])

    @parameterized.parameters("mixed_bfloat16", "mixed_float16")
    def test_range_is_float32_under_mixed_precision(self, policy):
        layer = layers.Dense(1, formats="int8", dtype=policy)
        layer.build((None, 1))
        # The mean of 1 and 1 + 2^-7 has no bfloat16, that of 1 + 2^-10 no
        # float16.
        step = 2.0**-7 if policy == "mixed_bfloat16" else 2.0**-10
        for value in (1.0, 1.0 + step):
            layer(np.array([[value]], "float32"), training=True)
        self.assertEqual(float(layer._input_state["range"]), 1.0 + step / 2)


if __name__ == "__main__":
    absltest.main()
