from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs


def _get(name, **arguments):
    return fliqs.models.get(
        name, **{"input_shape": (32, 32, 3), "width": 0.25, **arguments}
    )


class ResNetTest(parameterized.TestCase):
    @parameterized.parameters(
        ("resnet18", 4, 18),
        ("resnet34", 4, 34),
        ("resnet50", 4, 50),
        ("resnet20", 2, 20),
        ("resnet56", 2, 56),
    )
    def test_depth_without_projections(self, name, projections, depth):
        kernels = list(fliqs.costs.profile(_get(name)))
        found = [path for path in kernels if "projection" in path]
        self.assertLen(found, projections)
        self.assertLen(kernels, depth + projections)

    def test_resnet18_projects_in_its_first_group(self):
        layer = _get("resnet18").get_layer("group1_block1_projection")
        self.assertEqual(layer.strides, (1, 1))

    def test_resnet50_strides_in_the_3x3(self):
        model = _get("resnet50")
        self.assertEqual(model.get_layer("group2_block1_conv1").strides, (1, 1))
        self.assertEqual(model.get_layer("group2_block1_conv2").strides, (2, 2))


if __name__ == "__main__":
    absltest.main()
