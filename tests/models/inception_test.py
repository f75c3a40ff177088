from absl.testing import absltest

import fliqs_tf as fliqs


class InceptionV3Test(absltest.TestCase):
    def test_grids_of_the_paper(self):
        model = fliqs.models.get("inception_v3", width=0.25)
        for module, size, channels in (
            ("mixed5d", 35, 288),
            ("mixed6e", 17, 768),
            ("mixed7c", 8, 2048),
        ):
            self.assertEqual(
                model.get_layer(module).output.shape,
                (None, size, size, channels // 4),
            )

    def test_too_small_an_image(self):
        with self.assertRaisesRegex(ValueError, "at least 75"):
            fliqs.models.get("inception_v3", input_shape=(74, 75, 3))


if __name__ == "__main__":
    absltest.main()
