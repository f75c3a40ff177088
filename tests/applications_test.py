"""The networks of `keras.applications` convert, to the bit."""

import keras
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs

_FAST = (
    ("MobileNet", 32),
    ("MobileNetV2", 32),
    ("MobileNetV3Small", 32),
)
_SLOW = (
    ("ConvNeXtTiny", 32),
    ("DenseNet121", 32),
    ("DenseNet169", 32),
    ("DenseNet201", 32),
    ("EfficientNetB0", 32),
    ("EfficientNetB1", 32),
    ("EfficientNetB2", 32),
    ("EfficientNetV2B0", 32),
    ("EfficientNetV2B1", 32),
    ("EfficientNetV2S", 32),
    ("InceptionResNetV2", 75),
    ("InceptionV3", 75),
    ("MobileNetV3Large", 32),
    ("NASNetMobile", 32),
    ("ResNet50", 32),
    ("ResNet50V2", 32),
    ("ResNet101", 32),
    ("ResNet152V2", 32),
    ("VGG16", 32),
    ("VGG19", 32),
    ("Xception", 71),
)


def kernels(model):
    """Number of layers that hold a kernel, counted by Keras's own means."""
    return sum(
        any(weight.name.endswith("kernel") for weight in layer.weights)
        for layer in model._flatten_layers(include_self=False)
        if not layer._layers
    )


class ApplicationsTest(parameterized.TestCase):
    def _check(self, name, size):
        # Without its top: classes of our own on a pooled feature.
        features = getattr(keras.applications, name)(
            weights=None,
            include_top=False,
            input_shape=(size, size, 3),
            pooling="avg",
        )
        outputs = keras.layers.Dense(3, name="head")(features.output)
        model = keras.Model(features.input, outputs)
        model.trainable = False
        x = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3))
        expected = model(x)

        searchable = fliqs.to_searchable(model, ("int4", "fp32"))
        report = searchable.conversion_report
        self.assertLen(report.converted, kernels(model))
        self.assertEmpty(report.left_alone)
        self.assertEqual(
            [layer.name for layer in searchable.layers],
            [layer.name for layer in model.layers],
        )
        # It starts at the widest format of the two.
        np.testing.assert_array_equal(searchable(x), expected)

    @parameterized.parameters(*_FAST)
    def test_bit_identical_at_fp32(self, name, size):
        self._check(name, size)

    @parameterized.parameters(*_SLOW)
    @pytest.mark.slow
    def test_large_are_bit_identical_at_fp32(self, name, size):
        self._check(name, size)


if __name__ == "__main__":
    absltest.main()
