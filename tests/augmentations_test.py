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
        images = np.stack([image] * 200)
        cut, again = (
            augmentations.pad_crop_flip(images, tf.constant([7, 0])).numpy()
            for _ in range(2)
        )
        np.testing.assert_array_equal(cut, again)
        found = {image.tobytes() for image in cut}
        self.assertTrue(found <= possible)
        # 200 draws of 162 leave 162 * exp(-200 / 162) = 47 unseen on average.
        self.assertBetween(len(found), 95, 135)

    def test_pad_crop_flip_keeps_images_apart_and_other_sides(self):
        # Every image has its own level, so that none can show in another.
        images = np.full((5, 6, 10, 1), 1, np.uint8)
        images *= np.arange(10, 60, 10, dtype=np.uint8)[:, None, None, None]
        cut = augmentations.pad_crop_flip(images, tf.constant([1, 2])).numpy()
        self.assertEqual(cut.shape, (5, 6, 10, 1))
        for image, level in zip(cut, range(10, 60, 10), strict=True):
            self.assertContainsSubset(np.unique(image), {0, level})

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
        batch = tf.stack([image] * 4)

        def images(threads):
            data = tf.data.Dataset.range(4).map(
                lambda i: vary(batch, tf.stack([3, i])),
                num_parallel_calls=threads,
            )
            return np.concatenate(list(data.as_numpy_iterator()))

        first = images(1)
        np.testing.assert_array_equal(first, images(4))
        self.assertBetween(first.min(), 0.0, 255.0)
        self.assertBetween(first.max(), 0.0, 255.0)
        self.assertGreater(len(np.unique(first.mean((1, 2, 3)))), 8)

    def test_mixup_mixes_images_as_labels(self):
        images = tf.reshape(tf.range(8.0), (8, 1, 1, 1)) * tf.ones((8, 4, 4, 3))
        mixed, labels = augmentations.mixup(1.0)(
            images, tf.eye(8), tf.constant([5, 0])
        )
        expected = tf.linalg.matvec(labels, tf.range(8.0))
        np.testing.assert_allclose(mixed[:, 0, 0, 0], expected, rtol=1e-5)
        np.testing.assert_allclose(tf.reduce_sum(labels, 1), 1.0, rtol=1e-6)

    def test_cutmix_pastes_boxes_of_one_other_image(self):
        size = 40
        images = tf.reshape(tf.range(8.0), (8, 1, 1, 1)) * tf.ones(
            (8, size, size, 3)
        )
        mix = augmentations.cutmix(1.0)
        mixed, labels = mix(images, tf.eye(8), tf.constant([5, 0]))
        again, _ = mix(images, tf.eye(8), tf.constant([5, 0]))
        np.testing.assert_array_equal(mixed, again)
        shares = []
        for number, (image, label) in enumerate(
            zip(mixed.numpy(), labels.numpy(), strict=True)
        ):
            self.assertAlmostEqual(label.sum(), 1.0, places=5)
            others = set(np.flatnonzero(label)) - {number}
            self.assertLessEqual(len(others), 1)
            for other in others:
                pasted = image[..., 0] == other
                rows, columns = np.any(pasted, 1), np.any(pasted, 0)
                # A box: every pixel of its rows and columns, no other.
                np.testing.assert_array_equal(
                    pasted, rows[:, None] & columns[None, :]
                )
                # Sides are whole pixels, the label's share is not.
                self.assertAlmostEqual(
                    pasted.mean(), label[other], delta=2.5 / size
                )
                shares.append(pasted.mean())
        self.assertGreater(max(shares) - min(shares), 0.1)

    def test_random_erasing(self):
        images = tf.fill((400, 20, 20, 1), 7.0)
        erase = augmentations.RandomErasing(0.25)
        erased = erase(images, tf.constant([3, 0])).numpy()
        np.testing.assert_array_equal(
            erased, erase(images, tf.constant([3, 0]))
        )
        boxes = erased != 7.0
        hit = np.any(boxes, (1, 2, 3))
        # Four standard deviations of a binomial of 400 and 0.25.
        self.assertBetween(hit.sum(), 100 - 35, 100 + 35)
        noise = []
        for image, box in zip(erased[hit], boxes[hit], strict=True):
            rows, columns = np.any(box, (1, 2)), np.any(box, (0, 2))
            np.testing.assert_array_equal(
                box[..., 0], rows[:, None] & columns[None, :]
            )
            # Sides: sqrt(0.02) to sqrt(0.33) of 20 pixels, 2.8 to 11.5.
            self.assertBetween(rows.sum(), 2, 12)
            self.assertBetween(columns.sum(), 2, 12)
            noise.append(image[box])
        noise = np.concatenate(noise)
        # Four of the mean's standard deviations.
        self.assertLess(abs(noise.mean()), 4 / np.sqrt(noise.size))
        self.assertAlmostEqual(noise.std(), 1.0, delta=0.1)


if __name__ == "__main__":
    absltest.main()
