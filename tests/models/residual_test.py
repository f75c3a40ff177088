from absl.testing import absltest

import fliqs_tf as fliqs


class ResidualSmallTest(absltest.TestCase):
    def test_has_every_kind_of_kernel(self):
        model = fliqs.models.get("residual_small")
        self.assertEqual(
            list(fliqs.costs.profile(model)),
            [
                "stem",
                "block1_conv1",
                "block1_depthwise",
                "block1_pointwise",
                "block2_conv1",
                "block2_depthwise",
                "block2_projection",
                "block2_pointwise",
                "logits",
            ],
        )
        self.assertEqual(model.count_params(), 22_090)

    def test_takes_fashion_mnist(self):
        model = fliqs.models.get("residual_small", input_shape=(28, 28, 1))
        self.assertEqual(
            model.get_layer("block2_act").output.shape, (None, 14, 14, 48)
        )


if __name__ == "__main__":
    absltest.main()
