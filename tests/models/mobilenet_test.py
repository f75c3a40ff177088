from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs


def _get(name, **arguments):
    return fliqs.models.get(
        name, **{"input_shape": (32, 32, 3), "width": 0.25, **arguments}
    )


class MobileNetV2Test(parameterized.TestCase):
    @parameterized.parameters((0.5, 1280), (1.0, 1280), (1.4, 1792))
    def test_last_convolution_never_shrinks(self, width, filters):
        model = _get("mobilenet_v2", width=width)
        self.assertEqual(model.get_layer("head").filters, filters)


if __name__ == "__main__":
    absltest.main()
