import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import twin
from fliqs_tf.export.slots import Slots
from tests.export import small_models


class TwinTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.images = small_models.images()
        self.model = small_models.fixed(small_models.residual(), "int4")

    def _outputs(self, model):
        return np.asarray(model(self.images, training=False))

    def test_weight_only_reference(self):
        reference = twin.weight_only_reference(self.model)
        plain = small_models.residual()
        pairs = zip(plain.layers, self.model.layers, strict=True)
        for layer, source in pairs:
            if layer.name in twin.fixed_layers(self.model):
                codes, scale = source.quantized_kernel()
                bias = source.get_weights()[1:2] if source.use_bias else []
                layer.set_weights([codes * scale, *bias])
            else:
                layer.set_weights(source.get_weights())
        np.testing.assert_allclose(
            self._outputs(reference), self._outputs(plain), rtol=1e-4, atol=1e-5
        )

    def test_float_twin_equals_the_reference(self):
        np.testing.assert_allclose(
            self._outputs(twin.float_twin(self.model)),
            self._outputs(twin.weight_only_reference(self.model)),
            rtol=1e-4,
            atol=1e-5,
        )

    @parameterized.parameters("int4", "e4m3", "int8")
    def test_fake_quant_twin_has_the_bits_of_the_model(self, fmt):
        model = small_models.fixed(small_models.residual(), fmt)
        np.testing.assert_array_equal(
            self._outputs(twin.fake_quant_twin(model, Slots())),
            self._outputs(model),
        )

    def test_range_that_saw_no_data(self):
        plain = small_models.residual()
        model = small_models.fixed(plain, "int4")
        model.get_layer("stem").set_weights(
            [w * 0 if w.shape == () else w for w in _weights(model, "stem")]
        )
        np.testing.assert_array_equal(
            self._outputs(twin.fake_quant_twin(model, Slots())),
            self._outputs(model),
        )

    def test_float32_reference(self):
        self.assertIs(twin.float32_reference(self.model), self.model)

    def test_normalized_codes(self):
        layer = self.model.get_layer("down")
        codes, scale = twin.normalized_codes(layer)
        self.assertBetween(np.abs(codes).max(), 1.0, 2.0)
        own, own_scale = layer.quantized_kernel()
        np.testing.assert_array_equal(codes * scale, own * own_scale)

    def test_uncompiled_view_shares_layers(self):
        self.model.compile(loss="mse")
        view = twin.uncompiled(self.model)
        self.assertFalse(view.compiled)
        self.assertIs(view.get_layer("stem"), self.model.get_layer("stem"))
        sequential = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(2)]
        )
        self.assertLen(twin.uncompiled(sequential).outputs, 1)


def _weights(model, name):
    return model.get_layer(name).get_weights()


if __name__ == "__main__":
    absltest.main()
