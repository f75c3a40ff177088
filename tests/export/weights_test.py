import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import litert
from fliqs_tf.export import twin
from fliqs_tf.export import weights
from fliqs_tf.export.slots import Slots
from fliqs_tf.formats import get_format
from tests.export import small_models


class FactorTest(parameterized.TestCase):
    def test_signs_and_zeros(self):
        codes = np.array([[1, -7, 3], [2, 0, 5], [0, 0, 0]], np.float32)
        expected = np.array([0.1, -0.3, 0.0], np.float32)
        constant = codes * expected[:, None]
        factor = weights._factor(constant, codes, 0)
        np.testing.assert_allclose(factor, expected, rtol=1e-6)

    def test_few_values_do_not_mislead(self):
        # The smallest gap between values is 2 steps, the scale one step.
        codes = np.array([[0, 2, 5]], np.float32)
        factor = weights._factor(codes * np.float32(0.3), codes, 0)
        np.testing.assert_allclose(factor, [0.3], rtol=1e-6)

    @parameterized.parameters(1.001, -1.0)
    def test_other_weights_do_not_match(self, change):
        codes = np.array([[1, -7, 3], [2, 0, 5]], np.float32)
        constant = codes.copy()
        constant[1, 2] *= change
        self.assertIsNone(weights._factor(constant, codes, 0))

    def test_a_channel_of_zero_codes_matches_only_zeros(self):
        codes = np.zeros((1, 3), np.float32)
        self.assertIsNotNone(weights._factor(codes, codes, 0))
        self.assertIsNone(weights._factor(codes + 1, codes, 0))


class StoreTest(parameterized.TestCase):
    def test_kernels_of_one_shape_are_told_apart(self):
        layers = keras.layers
        model = keras.Sequential(
            [keras.Input((8, 8, 3))]
            + [layers.Conv2D(3, 1, name=f"c{i}") for i in (1, 10, 11, 2)]
        )
        names = {"c1": "int3", "c10": "int8", "c11": "e2m1", "c2": "int2"}
        model = small_models.fixed(model, names)
        graph = _stored(model)
        for name, fmt in names.items():
            codes, _ = model.get_layer(name).quantized_kernel()
            raw = graph.raw(graph.find(f"{name}/kernel"))
            if fmt == "int8":
                np.testing.assert_array_equal(
                    raw.view(np.int8).reshape(3, 3), codes[0, 0].T
                )
            self.assertLen(weights.stored_tensors(graph, name), 1)

    def test_kernels_that_are_all_zero_keep_their_names(self):
        layers = keras.layers
        inputs = keras.Input((8, 8, 3))
        x = inputs
        for name in ("a", "b"):
            x = layers.Conv2D(3, 1, use_bias=False, name=name)(x)
            x = layers.BatchNormalization(
                gamma_initializer="zeros", name=f"{name}_bn"
            )(x)
        model = small_models.fixed(
            keras.Model(inputs, x), {"a": "int4", "b": "int8"}
        )
        graph = _stored(model)
        self.assertEqual(graph.size(graph.find("a/kernel")), 5)
        self.assertEqual(graph.size(graph.find("b/kernel")), 9)

    def test_strangers_are_left_alone(self):
        model = small_models.fixed(small_models.residual(), "int4")
        graph = litert.convert(twin.float_twin(model), Slots(), model)
        codes = np.ones((3, 3, 3, 8), np.float32)
        before = len(graph.tensors)
        weights.store(graph, [weights.Kernel("x", get_format("int4"), codes)])
        self.assertLen(graph.tensors, before)


def _stored(model):
    model = twin.uncompiled(model)
    graph = litert.convert(twin.float_twin(model), Slots(), model)
    kernels = [
        weights.Kernel(
            name, get_format(layer.formats[0]), twin.normalized_codes(layer)[0]
        )
        for name, layer in twin.fixed_layers(model).items()
    ]
    weights.store(graph, kernels)
    return graph


if __name__ == "__main__":
    absltest.main()
