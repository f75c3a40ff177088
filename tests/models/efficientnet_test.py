import keras
from absl.testing import absltest

import fliqs_tf as fliqs


def _get(name, **arguments):
    return fliqs.models.get(
        name, **{"input_shape": (32, 32, 3), "width": 0.25, **arguments}
    )


def _count(model, kind):
    return sum(isinstance(layer, kind) for layer in model.layers)


class EfficientNetTest(absltest.TestCase):
    def test_squeeze_excite(self):
        weighted = _get("efficientnet_b0")
        plain = _get("efficientnet_b0", squeeze_excite=False)
        self.assertEqual(_count(weighted, keras.layers.Multiply), 16)
        self.assertEqual(_count(plain, keras.layers.Multiply), 0)
        self.assertLen(fliqs.costs.profile(weighted), 82)
        self.assertLen(fliqs.costs.profile(plain), 50)

    def test_without_dropout(self):
        model = _get("efficientnet_b0", dropout=0.0, drop_connect=0.0)
        self.assertEqual(_count(model, keras.layers.Dropout), 0)


if __name__ == "__main__":
    absltest.main()
