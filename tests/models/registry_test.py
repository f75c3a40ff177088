import keras
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs


class RegistryTest(parameterized.TestCase):
    def test_names_are_those_of_the_contract(self):
        self.assertEqual(
            fliqs.models.names(),
            (
                "deit",
                "efficientnet_b0",
                "efficientnet_b1",
                "efficientnet_b2",
                "efficientnet_b3",
                "efficientnet_b4",
                "inception_v3",
                "mlperf_tiny_mobilenet_v1",
                "mlperf_tiny_resnet8",
                "mobilenet_v2",
                "residual_small",
                "resnet18",
                "resnet20",
                "resnet34",
                "resnet50",
                "resnet56",
            ),
        )

    def test_get_is_the_builder(self):
        by_name = fliqs.models.get("residual_small", width=0.5)
        directly = fliqs.models.residual_small(width=0.5)
        self.assertIsInstance(by_name, keras.Model)
        self.assertEqual(by_name.get_config(), directly.get_config())

    @parameterized.parameters(
        ("resnet80", "resnet8|resnet18|resnet50"),
        ("mobilenetv2", "mobilenet_v2"),
        ("ResNet18", "resnet18"),
        ("efficientnet", "efficientnet_b"),
    )
    def test_wrong_name_lists_all_and_the_nearest(self, name, nearest):
        with self.assertRaises(ValueError) as caught:
            fliqs.models.get(name)
        message = str(caught.exception)
        for known in fliqs.models.names():
            self.assertIn(known, message)
        self.assertRegex(message, f"Nearest: .*({nearest})")
        self.assertIn(f"Received: name={name!r}", message)

    @parameterized.parameters(None, 18, (["resnet18"],))
    def test_name_of_another_type(self, name):
        with self.assertRaisesRegex(ValueError, "Received: name="):
            fliqs.models.get(name)

    def test_unknown_argument(self):
        with self.assertRaisesRegex(TypeError, "hidden"):
            fliqs.models.get("resnet18", hidden=3)


if __name__ == "__main__":
    absltest.main()
