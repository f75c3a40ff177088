"""Tests of `fliqs_tf.augmentations` against crops made by NumPy."""

import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import augmentations


class AugmentationsTest(parameterized.TestCase):
    def test_pad_crop_flip_is_one_of_the_162_possible(self):
        image = np.arange(1, 8 * 8 * 3 + 1, dtype=np.uint8).reshape(8, 8, 3)
        padded = np.pad(image, [(4, 4), (4, 4), (0, 0)])
        crops = [
            padded[row : row + 8, column : column + 8]
            for row in range(9)
            for column in range(9)
        ]
        possible = {crop.tobytes() for crop in crops}
        possible |= {crop[:, ::-1].tobytes() for crop in crops}
        found = {
            augmentations.pad_crop_flip(image, (8, 8, 3), tf.constant([7, i]))
            .numpy()
            .tobytes()
            for i in range(200)
        }
        self.assertLessEqual(found, possible)
        # 200 draws of 162 leave 162 * exp(-200 / 162) = 47 unseen on average.
        self.assertBetween(len(found), 95, 135)

    def test_centre_crop_takes_the_middle(self):
        # 64 x 32: the square has 28 = 0.875 * 32 pixels a side, from row 18.
        image = np.zeros((64, 32, 3), np.uint8)
        image[18:46, 2:30] = 200
        result = augmentations.centre_crop(tf.constant(image), 14)
        np.testing.assert_allclose(result, np.full((14, 14, 3), 200.0), 1e-6)

    @parameterized.parameters((40, 100), (100, 40), (300, 300), (5, 5))
    def test_inception_crop_has_the_asked_size(self, height, width):
        image = tf.fill((height, width, 3), tf.constant(9, tf.uint8))
        first = augmentations.inception_crop_flip(
            image, 32, tf.constant([0, 1])
        )
        self.assertEqual(first.shape, (32, 32, 3))
        np.testing.assert_allclose(first, 9.0, rtol=1e-6)

    def test_inception_crop_follows_from_the_seed(self):
        image = tf.random.stateless_uniform((48, 48, 3), [0, 0], maxval=255.0)
        first, again, other = (
            augmentations.inception_crop_flip(image, 16, tf.constant([0, i]))
            for i in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, again)
        self.assertGreater(float(tf.reduce_max(tf.abs(first - other))), 1.0)

    def test_rand_augment_follows_from_the_seed_alone(self):
        vary = augmentations.RandAugment(0.5)
        image = tf.random.stateless_uniform((16, 16, 3), [0, 0], maxval=255.0)

        def images(threads):
            data = tf.data.Dataset.range(16).map(
                lambda i: vary(image, tf.stack([3, i])),
                num_parallel_calls=threads,
            )
            return np.stack(list(data.as_numpy_iterator()))

        first = images(1)
        np.testing.assert_array_equal(first, images(4))
        self.assertBetween(first.min(), 0.0, 255.0)
        self.assertBetween(first.max(), 0.0, 255.0)
        self.assertGreater(len(np.unique(first.mean((1, 2, 3)))), 8)

    def test_mixup_mixes_images_as_labels(self):
        images = tf.reshape(tf.range(8.0), (8, 1, 1, 1)) * tf.ones((8, 4, 4, 3))
        mixed, labels = augmentations.Mixup(1.0)(
            images, tf.eye(8), tf.constant([5, 0])
        )
        expected = tf.linalg.matvec(labels, tf.range(8.0))
        np.testing.assert_allclose(mixed[:, 0, 0, 0], expected, rtol=1e-5)
        np.testing.assert_allclose(tf.reduce_sum(labels, 1), 1.0, rtol=1e-6)


if __name__ == "__main__":
    absltest.main()
