import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import exact_layers
from fliqs_tf.export import litert
from fliqs_tf.export import verify
from fliqs_tf.export.agreement import Bounds
from fliqs_tf.export.runner import Runner
from fliqs_tf.export.slots import Slots


class ExactLayersTest(parameterized.TestCase):
    @parameterized.parameters(
        ({}, -1), ({"center": False}, -1), ({"scale": False}, 1)
    )
    def test_batch_norm(self, options, axis):
        source = keras.layers.BatchNormalization(axis=axis, **options)
        source.build((None, 6, 5, 16))
        random = np.random.default_rng(0)
        shapes = [weight.shape for weight in source.weights]
        source.set_weights([random.uniform(-2, 2, s) ** 2 for s in shapes])
        self._check(source, exact_layers.Affine, (6, 5, 16))

    @parameterized.parameters(
        ((2, 2, 8), False),
        ((4, 4, 16), True),
        ((5, 5, 8), False),
        ((7, 7, 64), True),
        ((3, 5, 7), False),
        ((7, 7, 33), False),
    )
    def test_global_average(self, shape, keepdims):
        source = keras.layers.GlobalAveragePooling2D(keepdims=keepdims)
        slots = Slots()
        layer = exact_layers.Mean(keepdims, slots)
        # Where channels do not fill Eigen's packets, its order depends on the
        # batch: the ordinary operator stays.
        limit = 0.0 if shape[2] % 8 == 0 else 1e-6
        self._compare(source, layer, slots, shape, limit)
        self.assertTrue(layer._is_exact or shape[2] % 8)

    @parameterized.parameters(
        ((8, 8, 16), 3, 1, "same"),
        ((9, 7, 5), 3, 2, "same"),
        ((8, 8, 16), 8, None, "valid"),
        ((9, 9, 3), (2, 3), 2, "valid"),
    )
    def test_average(self, shape, window, strides, padding):
        source = keras.layers.AveragePooling2D(window, strides, padding)
        self._check(source, exact_layers.AveragePooling, shape)

    def test_average_of_open_sizes_stays(self):
        source = keras.layers.AveragePooling2D(2)
        layer = exact_layers.AveragePooling(source, Slots())
        images = np.ones((2, 4, 6, 1), np.float32)
        inputs = keras.Input((None, None, 1))
        model = keras.Model(inputs, layer(inputs))
        np.testing.assert_array_equal(model(images), source(images))

    def _check(self, source, twin, shape):
        slots = Slots()
        self._compare(source, twin(source, slots), slots, shape, 0.0)

    def _compare(self, source, layer, slots, shape, limit):
        inputs = keras.Input(shape)
        reference = keras.Model(inputs, source(inputs))
        inputs = keras.Input(shape)
        model = keras.Model(inputs, layer(inputs))
        graph = litert.convert(model, slots, reference)
        x = np.random.default_rng(1).standard_normal((9, *shape))
        result = verify.compare(
            Runner(graph.to_bytes()),
            {"reference": (reference, Bounds(1e-4))},
            iter([verify.Batch([x.astype("float32")])]),
            "given",
        )
        self.assertLessEqual(result["reference"].max_relative_error, limit)


if __name__ == "__main__":
    absltest.main()
