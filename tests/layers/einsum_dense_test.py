"""The contract, for dense layers of any equation."""

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import layers
from fliqs_tf.numerics import fake_quant
from tests.layers import layer_contract


class EinsumDenseTest(layer_contract.LayerContract, parameterized.TestCase):
    layer_class = layers.EinsumDense
    keras_class = keras.layers.EinsumDense
    kernel_axes = (0,)
    cases = [
        (dict(equation="ab,bc->ac", output_shape=5, bias_axes="c"), (7, 6)),
        (
            dict(equation="...x,xy->...y", output_shape=5, activation="relu"),
            (2, 3, 6),
        ),
    ]

    def product(self, layer, x, kernel):
        return x @ kernel

    def make(self, case=0, **kwargs):
        # The bias is asked for by its axes.
        if not kwargs.pop("use_bias", True):
            kwargs["bias_axes"] = None
        keywords, shape = self.cases[case]
        keywords = {**keywords, **kwargs}
        plain = {
            k: v
            for k, v in keywords.items()
            if k not in ("formats", "input_formats", "input_range")
        }
        layer = self.layer_class(**keywords)
        twin = self.keras_class(**plain)
        layer.build(shape)
        twin.build(shape)
        layer.kernel.assign(twin.kernel)
        return layer, twin, self.inputs(shape)

    # Equation, shape of the inputs, output shape, axes that share a scale,
    # MACs of a sample.
    @parameterized.parameters(
        ("btd,dhk->bthk", (2, 5, 4), (None, 2, 3), (0,), 5 * 4 * 6),
        ("bthk,hkd->btd", (2, 5, 2, 3), (None, 4), (0, 1), 5 * 4 * 6),
        ("bhx,hxy->bhy", (2, 3, 4), (3, 5), (1,), 3 * 4 * 5),
        ("bth,hdk->bkdt", (2, 5, 6), (3, 4, 5), (0,), 5 * 6 * 12),
        ("ab...,bc->ac...", (2, 4, 3), (5, None), (0,), 3 * 4 * 5),
    )
    def test_equations(self, equation, shape, output_shape, axes, macs):
        keywords = dict(equation=equation, output_shape=output_shape)
        layer = layers.EinsumDense(
            **keywords, formats="int4", input_range="dynamic"
        )
        twin = keras.layers.EinsumDense(**keywords)
        x = self.inputs(shape)
        layer.build(shape)
        twin.build(shape)
        self.kernel_axes = axes
        twin.kernel.assign(self.rounded_kernel(layer.kernel, "int4"))
        np.testing.assert_allclose(
            layer(x), twin(fake_quant(x, "int4")), rtol=1e-5, atol=2e-6
        )
        self.assertEqual(layers.EinsumDense.macs(twin, shape), macs)


if __name__ == "__main__":
    absltest.main()
