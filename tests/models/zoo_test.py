"""What holds for every network of the zoo."""

import keras
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs

_CLASSES = 5
_SMALL = {
    "deit": {"input_shape": (32, 48, 3), "hidden_size": 64, "depth": 2},
    "inception_v3": {"input_shape": (75, 80, 3), "width": 0.25},
    "resnet56": {"input_shape": (8, 9, 1), "width": 0.25},
}
# Networks that differ in numbers only from one that is tested always.
_REPEATED = ("efficientnet_b1", "efficientnet_b2", "efficientnet_b3")
_KERNEL_LAYERS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
)


def _small(name, /, **arguments):
    default = {"input_shape": (32, 33, 3), "width": 0.25}
    return fliqs.models.get(
        name, classes=_CLASSES, **_SMALL.get(name, default), **arguments
    )


class ZooTest(parameterized.TestCase):
    @parameterized.parameters(
        name for name in fliqs.models.names() if name not in _REPEATED
    )
    @pytest.mark.one_in(3)
    def test_network(self, name):
        self._check_network(name)

    # The mark stands inside: on the outside it marks none of the tests.
    @parameterized.parameters(*_REPEATED)
    @pytest.mark.slow
    def test_repeated_network(self, name):
        self._check_network(name)

    def _check_network(self, name):
        model = _small(name)
        self.assertEqual(model.name, name)
        self._check_logits(model)
        self._check_kernel_layers(model)

        again = keras.Model.from_config(model.get_config())
        self.assertEqual(again.get_config(), model.get_config())
        self.assertEqual(again.count_params(), model.count_params())

        layer_names = [layer.name for layer in model.layers]
        self.assertLen(set(layer_names), len(layer_names))
        # Given, not counted up by Keras as "conv2d_7" is: a second network of
        # the same process has them too.
        other = _small(name, name="teacher")
        self.assertEqual(other.name, "teacher")
        self.assertEqual([x.name for x in other.layers], layer_names)

    def _check_logits(self, model):
        images = np.random.default_rng(0).random((2, *model.input_shape[1:]))
        outputs = keras.ops.convert_to_numpy(model(images))
        self.assertEqual(outputs.shape, (2, _CLASSES))
        self.assertTrue(np.isfinite(outputs).all())
        last = model.layers[-1]
        self.assertEqual(last.name, "logits")
        self.assertIs(last.activation, keras.activations.linear)

    def _check_kernel_layers(self, model):
        layers = [x for x in model.layers if hasattr(x, "kernel")]
        self.assertNotEmpty(layers)
        for layer in layers:
            self.assertIn(type(layer), _KERNEL_LAYERS, layer.name)

    def test_wrong_arguments(self):
        for name in fliqs.models.names():
            size = "hidden_size" if name == "deit" else "width"
            for argument, value in (
                ("classes", 0),
                ("input_shape", (32, 32)),
                (size, 0),
                (size, -1),
            ):
                with (
                    self.subTest(name=name, argument=argument, value=value),
                    self.assertRaisesRegex(
                        ValueError, rf"must be .* Received: {argument}="
                    ),
                ):
                    fliqs.models.get(name, **{argument: value})


if __name__ == "__main__":
    absltest.main()
