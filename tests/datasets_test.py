"""Tests of `fliqs_tf.datasets`: the pipeline, `digits`, and the errors."""

import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from absl.testing import absltest
from absl.testing import parameterized
from sklearn import datasets as sklearn_datasets

from fliqs_tf import datasets

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def _real_data(name):
    """Returns the folder of prepared real sets, or skips the test."""
    folder = pathlib.Path(
        os.environ.get("FLIQS_TFDS_DIR", _ROOT.parent / "shared" / "tfds")
    )
    if not (folder / name).is_dir():
        raise absltest.SkipTest(f"{name} is not in FLIQS_TFDS_DIR ({folder})")
    return folder


def _images(dataset):
    return np.concatenate([image.numpy() for image, _ in dataset])


def _labels(dataset):
    return np.concatenate([label.numpy() for _, label in dataset])


class DigitsTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.data_dir = temporary.name
        datasets.load("digits", data_dir=cls.data_dir)

    def test_info_before_and_after_preparation(self):
        empty = datasets.info("digits", self.create_tempdir().full_path)
        full = datasets.info("digits", self.data_dir)
        self.assertEqual(empty.num_examples, {})
        self.assertEqual(full.num_examples, {"train": 1437, "test": 360})
        self.assertEqual(full.num_classes, 10)
        self.assertEqual(full.image_shape, (8, 8, 1))

    def test_holds_every_image_of_scikit_learn_once(self):
        info = datasets.info("digits", self.data_dir)
        found = {}
        for split in ("train", "test"):
            dataset = datasets.load(
                "digits", split, 100, self.data_dir, training=False
            )
            grey = _images(dataset) * info.std[0] + info.mean[0]
            for image, label in zip(grey, _labels(dataset), strict=True):
                key = (tuple(np.rint(image.ravel() * 16).astype(int)), label)
                found[key] = found.get(key, 0) + 1
        source = sklearn_datasets.load_digits()
        expected = {}
        for image, label in zip(source.images, source.target, strict=True):
            key = (tuple(image.ravel().astype(int)), label)
            expected[key] = expected.get(key, 0) + 1
        self.assertEqual(found, expected)

    def test_split_is_stratified(self):
        train = _labels(
            datasets.load("digits", "train", 1, self.data_dir, training=False)
        )
        test = _labels(datasets.load("digits", "test", 1, self.data_dir))
        sizes = np.bincount(np.concatenate([train, test]))
        np.testing.assert_allclose(np.bincount(test), sizes / 5, atol=1)
        self.assertLen(test, 360)

    def test_train_split_is_normalised(self):
        images = _images(
            datasets.load("digits", "train", 1437, self.data_dir, seed=1)
        )
        self.assertAlmostEqual(float(images.mean()), 0.0, delta=1e-3)
        self.assertAlmostEqual(float(images.std()), 1.0, delta=1e-3)

    def test_pixels_as_they_are(self):
        raw, normal = (
            _images(
                datasets.load(
                    *("digits", "test", 360, self.data_dir), normalize=normalize
                )
            )
            for normalize in (False, True)
        )
        info = datasets.info("digits")
        self.assertEqual(float(np.max(raw)), 255.0)
        np.testing.assert_allclose(
            normal, (raw / 255.0 - info.mean) / info.std, atol=1e-6
        )

    def test_types_and_shapes(self):
        train = datasets.load("digits", "train", 128, self.data_dir)
        test = datasets.load("digits", "test", 128, self.data_dir)
        self.assertEqual(
            train.element_spec,
            (
                tf.TensorSpec((128, 8, 8, 1), tf.float32),
                tf.TensorSpec((128,), tf.int64),
            ),
        )
        self.assertLen(train, 1437 // 128)
        self.assertLen(test, 3)
        self.assertLen(_labels(test), 360)

    def test_order_follows_from_seed_and_epoch(self):
        first = datasets.load("digits", data_dir=self.data_dir, seed=3)
        again = datasets.load("digits", data_dir=self.data_dir, seed=3)
        other = datasets.load("digits", data_dir=self.data_dir, seed=4)
        resumed = datasets.load(
            "digits", data_dir=self.data_dir, seed=3, first_epoch=2
        )
        epochs = [_images(first) for _ in range(3)]
        np.testing.assert_array_equal(_images(again), epochs[0])
        np.testing.assert_array_equal(_images(again), epochs[1])
        np.testing.assert_array_equal(_images(resumed), epochs[2])
        self.assertFalse(np.array_equal(epochs[0], epochs[1]))
        self.assertFalse(np.array_equal(epochs[0], _images(other)))

    def test_streamed_as_in_memory(self):
        """What is too large for memory: the same examples and promises."""

        def epochs(first, last, **arguments):
            data = datasets.load(
                "digits",
                "train",
                479,  # A third of the split: nothing is dropped.
                self.data_dir,
                seed=3,
                first_epoch=first,
                mixup=0.2,
                augment=arguments.pop("augment", False),
                **arguments,
            )
            return [_images(data) for _ in range(first, last)]

        def keys(images):
            return sorted(image.tobytes() for image in images)

        kept, read = epochs(0, 3), epochs(0, 3, cache=False)
        for one, other in zip(kept, read, strict=True):
            self.assertEqual(keys(one), keys(other))
        for arguments in ({}, {"cache": False}, {"cache": True}):
            arguments["augment"] = True
            whole = epochs(0, 3, **arguments)
            resumed = epochs(2, 3, **arguments)
            np.testing.assert_array_equal(resumed[0], whole[2])
            self.assertFalse(np.array_equal(whole[0], whole[1]))

    def test_order_follows_from_seed_without_a_global_seed(self):
        tf.random.set_seed(None)
        first, again = (
            _images(datasets.load("digits", data_dir=self.data_dir, seed=3))
            for _ in range(2)
        )
        np.testing.assert_array_equal(first, again)

    def test_test_split_keeps_its_order(self):
        dataset = datasets.load("digits", "test", 7, self.data_dir)
        np.testing.assert_array_equal(_images(dataset), _images(dataset))

    @parameterized.parameters(True, False)
    def test_shards_are_disjoint_and_together_the_split(self, training):
        def keys(**arguments):
            data = datasets.load(
                "digits",
                "train",
                10,
                self.data_dir,
                training=training,
                **arguments,
            )
            return [image.tobytes() for image in _images(data)]

        shards = [keys(shard=(i, 4)) for i in range(4)]
        everything = keys() if not training else None
        if everything:
            self.assertCountEqual(sum(shards, []), everything)
        else:
            # Every worker has as many steps: 1437 / 4 = 359, 35 batches.
            self.assertEqual([len(keys) for keys in shards], [350] * 4)
            self.assertLen({*sum(shards, [])}, 1400)

    @parameterized.parameters((4, 4), (-1, 4), (0, 0))
    def test_bad_shard(self, index, count):
        with self.assertRaisesRegex(ValueError, "Received: shard="):
            datasets.load(
                "digits", data_dir=self.data_dir, shard=(index, count)
            )

    def test_grey_images_and_strong_augmentation(self):
        def load(**arguments):
            return next(
                iter(
                    datasets.load(
                        "digits", "train", 64, self.data_dir, **arguments
                    )
                )
            )

        plain, varied = load(), load(rand_augment=0.3, mixup=0.2)
        self.assertEqual(varied[0].shape, (64, 8, 8, 1))
        self.assertEqual(varied[1].shape, (64, 10))
        self.assertGreater(np.abs(varied[0] - plain[0]).mean(), 0.05)
        for name, bad in (
            ("rand_augment", 1.5),
            ("random_erasing", -0.1),
            ("mixup", -1.0),
            ("cutmix", float("nan")),
        ):
            with self.assertRaisesRegex(ValueError, f"Received: {name}={bad}"):
                load(**{name: bad})

    def test_coin_chooses_between_mixup_and_cutmix(self):
        """CutMix only pastes; mixup changes nearly every pixel it mixes."""
        plain = datasets.load("digits", "train", 64, self.data_dir)
        mixed = datasets.load(
            "digits", "train", 64, self.data_dir, mixup=0.8, cutmix=1.0
        )
        pixels = {tuple(np.unique(images)) for images, _ in plain}
        levels = len(set().union(*pixels))
        self.assertLessEqual(levels, 17)
        pasted = []
        for images, labels in mixed:
            np.testing.assert_allclose(np.sum(labels, 1), 1.0, rtol=1e-6)
            self.assertLess(np.max(labels, 1).min(), 0.9)
            pasted.append(len(np.unique(images)) <= levels)
        self.assertLen(pasted, 22)
        # Of 22 fair coins 3 or fewer, or 19 or more: one in 3,000.
        self.assertBetween(sum(pasted), 4, 18)

    def test_part_held_out_of_train(self):
        held_out = datasets.load(
            "digits", "train[90%:]", 50, self.data_dir, training=False
        )
        kept = datasets.load("digits", "train[:90%]", 50, self.data_dir)
        self.assertLen(_labels(held_out), 144)
        self.assertLen(_labels(kept), (1437 - 144) // 50 * 50)

    def test_distribution_keeps_the_order(self):
        strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
        dataset = datasets.load("digits", data_dir=self.data_dir)
        plain = datasets.load("digits", data_dir=self.data_dir)
        distributed = strategy.experimental_distribute_dataset(dataset)
        labels = np.concatenate([label.numpy() for _, label in distributed])
        np.testing.assert_array_equal(labels, _labels(plain))

    def test_without_scikit_learn(self):
        hidden = {"sklearn": None, "sklearn.datasets": None}
        with mock.patch.dict(sys.modules, hidden):
            with self.assertRaisesRegex(
                ImportError, r"pip install fliqs_tf\[demo\]"
            ):
                datasets.load(
                    "digits", data_dir=self.create_tempdir().full_path
                )
            # A prepared set needs it no more.
            datasets.load("digits", data_dir=self.data_dir)

    @pytest.mark.slow
    def test_writes_below_data_dir_only(self):
        folder = self.create_tempdir().full_path
        home = self.create_tempdir().full_path
        code = (
            "from fliqs_tf import datasets;"
            f"datasets.load('digits', data_dir={folder!r})"
        )
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            cwd=home,
            env={**os.environ, "HOME": home, "PYTHONPATH": str(_ROOT)},
        )
        # Keras and Matplotlib make their own folders on import.
        self.assertContainsSubset(
            os.listdir(home), [".cache", ".config", ".keras"]
        )
        self.assertCountEqual(os.listdir(folder), ["digits", "downloads"])


class ErrorsTest(parameterized.TestCase):
    def test_unknown_name_lists_close_names(self):
        with self.assertRaisesRegex(
            ValueError, "Received: name='cifarr10'. Close names: cifar10,"
        ):
            datasets.load("cifarr10")
        with self.assertRaisesRegex(ValueError, "Close names: digits"):
            datasets.info("digit")

    def test_set_without_labelled_images(self):
        with self.assertRaisesRegex(ValueError, "features `image` and `label`"):
            datasets.info("glue")

    def test_unknown_split(self):
        folder = self.create_tempdir().full_path
        with self.assertRaisesRegex(
            ValueError, "split='valid'. Splits of 'digits': train, test"
        ):
            datasets.load("digits", "valid", data_dir=folder)

    def test_training_split_smaller_than_a_batch(self):
        folder = self.create_tempdir().full_path
        with self.assertRaisesRegex(ValueError, "batch_size=128.* 14 examples"):
            datasets.load("digits", "train[:1%]", data_dir=folder)

    def test_missing_data_says_how_to_get_it(self):
        folder = self.create_tempdir().full_path
        failure = mock.patch.object(
            tfds.core.DatasetBuilder,
            "download_and_prepare",
            side_effect=ConnectionError("no route to host"),
        )
        with failure, self.assertRaises(RuntimeError) as raised:
            datasets.load("mnist", data_dir=folder)
        message = str(raised.exception)
        self.assertIn("Received: name='mnist'", message)
        self.assertIn("no route to host", message)
        self.assertIn("python -m tensorflow_datasets build mnist", message)
        self.assertIn("`data_dir`", message)

    def test_download_without_network_fails_in_seconds(self):
        from tensorflow_datasets.core.download import downloader

        seen = []

        def record(*arguments, **keywords):
            seen.append(downloader.MAX_RETRIES)
            raise ConnectionError

        usual = downloader.MAX_RETRIES
        with mock.patch.object(
            tfds.core.DatasetBuilder, "download_and_prepare", record
        ):
            with self.assertRaises(RuntimeError):
                datasets.load("mnist", data_dir=self.create_tempdir().full_path)
        # Pauses of 0.2 * 2^n seconds, none before the first.
        self.assertLess(sum(0.2 * 2**n for n in range(1, seen[0])), 10)
        self.assertEqual(downloader.MAX_RETRIES, usual)


class NamesTest(parameterized.TestCase):
    @parameterized.parameters(
        ("mnist", 10, (28, 28, 1)),
        ("fashion_mnist", 10, (28, 28, 1)),
        ("cifar10", 10, (32, 32, 3)),
        ("cifar100", 100, (32, 32, 3)),
        ("imagenette", 10, (224, 224, 3)),
        ("imagenet2012", 1000, (224, 224, 3)),
        ("svhn_cropped", 10, (32, 32, 3)),
    )
    def test_info_without_data(self, name, num_classes, image_shape):
        info = datasets.info(name, self.create_tempdir().full_path)
        self.assertEqual(info.num_classes, num_classes)
        self.assertEqual(info.image_shape, image_shape)
        self.assertLen(info.mean, image_shape[-1])
        self.assertLen(info.std, image_shape[-1])


class VaryingSizesTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.data_dir = temporary.name
        tfds.dataset_builders.store_as_tfds_dataset(
            name="of_many_sizes",
            version="1.0.0",
            data_dir=cls.data_dir,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(num_classes=2),
                }
            ),
            split_datasets={
                split: [
                    (
                        i,
                        {
                            "image": np.full(
                                (20 + i, 70 - i, 3), 10 * i, np.uint8
                            ),
                            "label": i % 2,
                        },
                    )
                    for i in range(12)
                ]
                for split in ("train", "validation")
            },
        )

    def test_become_one_size(self):
        train = datasets.load(
            "of_many_sizes", "train", 6, self.data_dir, image_size=24
        )
        validation = datasets.load(
            "of_many_sizes", "validation", 8, self.data_dir, image_size=24
        )
        info = datasets.info("of_many_sizes", self.data_dir, image_size=24)
        self.assertEqual(info.image_shape, (24, 24, 3))
        self.assertEqual(train.element_spec[0].shape, (6, 24, 24, 3))
        # Each image has one grey level; 0..255 becomes -1..1.
        expected = np.array([20 * i / 255 - 1 for i in range(12)])
        for dataset in (train, validation):
            images = _images(dataset)
            self.assertEqual(images.shape, (12, 24, 24, 3))
            levels = np.sort(images.mean((1, 2, 3)))
            np.testing.assert_allclose(levels, expected, atol=1e-5)
            np.testing.assert_allclose(images.std((1, 2, 3)), 0, atol=1e-5)


class RealImagesTest(parameterized.TestCase):
    @parameterized.parameters("fashion_mnist", "cifar10")
    def test_test_split(self, name):
        folder = _real_data(name)
        info = datasets.info(name, folder)
        dataset = datasets.load(name, "test", 500, folder)
        self.assertEqual(info.num_examples["test"], 10_000)
        np.testing.assert_array_equal(
            np.bincount(_labels(dataset)), [1000] * 10
        )
        # The constants are those of the train split.
        images = _images(dataset)
        np.testing.assert_allclose(images.mean((0, 1, 2)), 0, atol=0.03)
        np.testing.assert_allclose(images.std((0, 1, 2)), 1, atol=0.03)

    def test_cifar10_is_cropped_and_flipped_by_seed(self):
        folder = _real_data("cifar10")
        split = "train[:256]"
        plain = datasets.load("cifar10", split, 256, folder, augment=False)
        varied = datasets.load("cifar10", split, 256, folder)
        again = datasets.load("cifar10", split, 256, folder)
        before, after = _images(plain), _images(varied)
        np.testing.assert_array_equal(_images(again), after)
        # Shuffling is the same with and without augmentation; of 162 equally
        # likely crops and flips one changes nothing.
        unchanged = np.all(before == after, axis=(1, 2, 3)).sum()
        self.assertLess(unchanged, 10)

    def test_fashion_mnist_is_not_augmented(self):
        folder = _real_data("fashion_mnist")
        split = "train[:256]"
        plain = datasets.load(
            "fashion_mnist", split, 256, folder, augment=False
        )
        varied = datasets.load("fashion_mnist", split, 256, folder)
        np.testing.assert_array_equal(_images(plain), _images(varied))


if __name__ == "__main__":
    absltest.main()
