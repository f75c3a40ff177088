"""Tests of ImageNet's path: mocked data, and real pictures."""

import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl.testing import parameterized
from sklearn import datasets as sklearn_datasets

from fliqs_tf import datasets

_COUNT = 12


def _pictures(builder, **arguments):
    """What `as_dataset` would yield if ImageNet were two photographs."""
    del builder, arguments
    pictures = sklearn_datasets.load_sample_images().images

    def generate():
        for number in range(_COUNT):
            yield {"image": pictures[number % 2], "label": number % 2}

    return tf.data.Dataset.from_generator(
        generate,
        output_signature={
            "image": tf.TensorSpec((None, None, 3), tf.uint8),
            "label": tf.TensorSpec((), tf.int64),
        },
    )


class ImageNetTest(parameterized.TestCase):
    def _described(self, name):
        """A folder with a description of the set, as TFDS leaves it."""
        folder = self.create_tempdir().full_path
        builder = tfds.builder(name, data_dir=folder)
        splits = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[_COUNT],
                num_bytes=1,
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=builder.data_path,
                    dataset_name=builder.name,
                    split=split,
                    filetype_suffix="tfrecord",
                ),
            )
            for split in ("train", "validation")
        ]
        builder.info.set_splits(tfds.core.SplitDict(splits))
        os.makedirs(builder.data_dir)
        builder.info.write_to_directory(builder.data_dir)
        return folder

    @parameterized.parameters("imagenet2012", "imagenette")
    def test_mocked(self, name):
        folder = self._described(name)
        with tfds.testing.mock_data(_COUNT, data_dir=folder):
            train = datasets.load(name, "train", 4, folder, image_size=64)
            test = datasets.load(name, "validation", 5, folder, image_size=64)
            for dataset, sizes in ((train, [4, 4, 4]), (test, [5, 5, 2])):
                self.assertLen(dataset, 3)
                batches = list(dataset.as_numpy_iterator())
                self.assertEqual([len(label) for _, label in batches], sizes)
                images = np.concatenate([image for image, _ in batches])
                self.assertEqual(images.shape, (_COUNT, 64, 64, 3))
                # 0..255 after the subtraction of the mean, in deviations.
                self.assertBetween(images.min(), -2.2, -1.0)
                self.assertBetween(images.max(), 1.0, 2.7)

    @pytest.mark.slow
    def test_strong_augmentation(self):
        folder = self._described("imagenet2012")
        arguments = {"image_size": 32, "rand_augment": 0.5, "mixup": 0.2}
        with tfds.testing.mock_data(_COUNT, data_dir=folder):
            first, again, other = (
                list(
                    datasets.load(
                        "imagenet2012",
                        "train",
                        4,
                        folder,
                        seed=seed,
                        **arguments,
                    ).as_numpy_iterator()
                )
                for seed in (0, 0, 1)
            )
            test = datasets.load(
                "imagenet2012",
                "validation",
                4,
                folder,
                image_size=32,
                mixup=0.2,
            )
            self.assertEqual(test.element_spec[1].dtype, tf.int64)
        for (x, y), (same, label) in zip(first, again, strict=True):
            np.testing.assert_array_equal(x, same)
            np.testing.assert_array_equal(y, label)
            self.assertEqual(y.shape, (4, 1000))
            np.testing.assert_allclose(y.sum(axis=1), 1.0, rtol=1e-6)
        self.assertFalse(np.array_equal(first[0][0], other[0][0]))

    def test_real_pictures(self):
        folder = self._described("imagenet2012")
        pictures = sklearn_datasets.load_sample_images().images
        mock = tfds.testing.mock_data(
            _COUNT, data_dir=folder, as_dataset_fn=_pictures
        )
        mean, std = np.array([0.485, 0.456, 0.406]), [0.229, 0.224, 0.225]
        with mock:
            test = datasets.load("imagenet2012", "validation", 2, folder)
            train = datasets.load("imagenet2012", "train", 6, folder)
            images, labels = next(iter(test))
            crops = np.concatenate([x for x, _ in train.as_numpy_iterator()])
        np.testing.assert_array_equal(labels, [0, 1])
        self.assertEqual(images.shape, (2, 224, 224, 3))
        for image, picture in zip(images, pictures, strict=True):
            # 427 x 640: the square has 373 pixels a side, about the middle.
            square = picture[27:400, 133:506].astype(np.float32)
            resized = tf.image.resize(square, (224, 224), antialias=True)
            expected = (resized.numpy() / 255 - mean) / std
            np.testing.assert_allclose(image, expected, atol=1e-4)
        self.assertEqual(crops.shape, (_COUNT, 224, 224, 3))
        # Every crop is of its own place and size.
        means = {tuple(crop.mean((0, 1)).round(4)) for crop in crops}
        self.assertLen(means, _COUNT)
