"""Image-classification sets as `tf.data` pipelines, all through TFDS.

One pipeline for every set: read, keep in memory when small, shuffle, augment
the 8-bit images, then `(x / 255 - mean) / std` with the set's own `mean` and
`std` per channel. Training and evaluation normalise alike. The shift makes the
input roughly symmetric about zero, so that a symmetric number format spends its
codes on both signs; `info(name)` gives the constants to whoever deploys.

Everything random in an epoch follows from one number, drawn from `seed` when
the epoch starts. So the order and the crops are the same in every process, and
a resumed run gets those of its epoch (`first_epoch`) at no cost.

TensorFlow Datasets is imported on first use: its import defines an absl flag.
"""

import contextlib
import dataclasses
import difflib
import os
import re
from typing import Any

import tensorflow as tf

from fliqs_tf import batches
from fliqs_tf.preprocessing import Preprocessing
from fliqs_tf.preprocessing import Strengths

_CACHE_BYTES = 1 << 30
_SHUFFLE_EXAMPLES = 1 << 16
# TFDS has 10, with pauses that double each time: 204 seconds; this makes 6.
_DOWNLOAD_RETRIES = 5


class DatasetError(RuntimeError):
    """A data set is not there, and could not be prepared."""


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """What a set needs beyond what TFDS knows; tuples have one value a channel.

    `augmentation` is "none", "pad_crop_flip" or "inception".
    """

    augmentation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


# Mean and standard deviation of the train split, after division by 255.
_IMAGENET = _Recipe("inception", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_RECIPES = {
    "digits": _Recipe("none", (0.3058,), (0.3761,)),
    "mnist": _Recipe("none", (0.1307,), (0.3081,)),
    "fashion_mnist": _Recipe("none", (0.2860,), (0.3530,)),
    "cifar10": _Recipe(
        "pad_crop_flip", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
    "cifar100": _Recipe(
        "pad_crop_flip", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    ),
    "imagenette": _IMAGENET,
    "imagenet2012": _IMAGENET,
}


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a model and a report need to know of a set.

    Attributes:
        name: The name given to `info`.
        num_classes: Number of labels.
        image_shape: `(height, width, channels)` of what `load` yields.
        num_examples: Split name -> number of examples. Empty while the set is
            not prepared and TFDS has no record of it.
        mean: Per channel, subtracted from the image in [0, 1].
        std: Per channel, what the difference is divided by.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]
    num_examples: dict[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def info(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_size: int = 224,
) -> DatasetInfo:
    """Describes a set; downloads, prepares and reads no data.

    Args:
        name: See `load`.
        data_dir: See `load`.
        image_size: See `load`.

    Returns:
        A `DatasetInfo`.

    Raises:
        ValueError: If TFDS has no such set, or it is not one of images with
            one label each.
    """
    builder = _builder(name, data_dir)
    recipe = _recipe(builder)
    height, width, channels = builder.info.features["image"].shape
    return DatasetInfo(
        name=name,
        num_classes=builder.info.features["label"].num_classes,
        image_shape=(height or image_size, width or image_size, channels),
        num_examples={
            split: value.num_examples
            for split, value in builder.info.splits.items()
        },
        mean=recipe.mean,
        std=recipe.std,
    )


def load(
    name: str,
    split: str = "train",
    batch_size: int = 128,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    seed: int = 0,
    first_epoch: int = 0,
    training: bool | None = None,
    augment: bool | None = None,
    cache: bool | None = None,
    image_size: int = 224,
    normalize: bool = True,
    rand_augment: float = 0.0,
    random_erasing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    shard: tuple[int, int] | None = None,
) -> tf.data.Dataset:
    """Loads one split, and prepares (downloads) the set if need be.

    Augmentation in training: random crop after a padding of 4 pixels, and
    horizontal flip, for small colour images; a random crop of 8 % to 100 % of
    the area ("Inception"), resized, and flip where image sizes vary; none for
    grey sets. In evaluation, images of varying sizes are cut to the central
    square of 0.875 of the shorter side and resized.

    Args:
        name: Any image-classification set of TFDS (`cifar10`, `mnist`,
            `imagenette/320px-v2`, ...), or `digits`.
        split: A TFDS split, slices included: `"train"`, `"train[90%:]"`,
            `"test"`, `"validation"`.
        batch_size: Images a batch.
        data_dir: Where prepared sets lie, and the only place that is written
            to. Defaults to the folder of TFDS (`~/tensorflow_datasets`).
        seed: Decides shuffling and augmentation, together with TensorFlow's
            global seed where one is set.
        first_epoch: The epoch that the first pass over the result stands for;
            give a resumed run the number of epochs behind it.
        training: Shuffle, augment and drop the last, incomplete batch.
            Defaults to whether `split` reads from `train`; give `False` for a
            part of `train` held out for validation.
        augment: Overrides `training` for the augmentation alone.
        cache: Keep decoded images in memory. Defaults to whether they take
            1 GiB or less.
        image_size: Side of the images, in pixels, of sets whose images vary in
            size. Others keep theirs.
        normalize: `False` leaves pixels in [0, 255], for models that bring
            their own preprocessing.
        rand_augment: Further augmentation; see `Strengths`.
        random_erasing: See there.
        mixup: See there.
        cutmix: See there.
        shard: `(index, count)`: one of `count` equal shares of the split, for
            a program that gives every worker its own. Not for
            `tf.distribute`, which shares out what one pipeline yields.

    Returns:
        A `tf.data.Dataset` of `(image, label)`: float32
        `(batch, height, width, channels)`, normalised as the module says
        unless `normalize` is `False`, and int64 `(batch,)`; with mixup or
        CutMix in augmentation, float32 `(batch, classes)`, the share of each
        class.

    Raises:
        ValueError: If TFDS has no such set or split, the set is not one of
            images with one label each, a training split is smaller than a
            batch, or an argument is out of range.
        ImportError: If `digits` must be prepared without scikit-learn.
        DatasetError: If the set is not there and could not be prepared.
    """
    builder = _builder(name, data_dir)
    strengths = Strengths(
        rand_augment=rand_augment,
        random_erasing=random_erasing,
        mixup=mixup,
        cutmix=cutmix,
    )
    index, count = shard or (0, 1)
    if not 0 <= index < count:
        raise ValueError(
            "`shard` must be (index, count), the index from 0 on. Received: "
            f"shard={shard}."
        )
    _prepare(builder, name)
    if training is None:
        training = re.match(r"train\b", split) is not None
    examples, num_examples = _read(builder, split, seed, training, index, count)
    if training and num_examples < batch_size:
        raise ValueError(
            "A training split must hold at least one batch. Received: "
            f"batch_size={batch_size}, split={split!r} with {num_examples} "
            "examples"
            + (f" in each of {count} shards" if count > 1 else "")
            + ". Take a smaller batch or a larger split."
        )
    recipe = _recipe(builder)
    shape = builder.info.features["image"].shape
    preprocessing = Preprocessing(
        crop=recipe.augmentation,
        shape=shape,
        size=image_size,
        # Without: what leaves pixels as they are.
        mean=recipe.mean if normalize else (0.0,) * shape[-1],
        std=recipe.std if normalize else (1 / 255,) * shape[-1],
        classes=builder.info.features["label"].num_classes,
        augment=training if augment is None else augment,
        strengths=strengths,
    )
    varies = None in shape
    if cache is None:
        # Varying sizes are not cached: their total is unknown.
        cache = not varies and (
            num_examples * shape[0] * shape[1] * shape[2] <= _CACHE_BYTES
        )

    def seed_of(number: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        # Of an example or a batch. No two shards draw the same.
        return tf.stack([seed, number * count + index])

    if cache and not varies:
        decoded = batches.in_memory(
            examples, num_examples, batch_size, training
        )
    else:
        decoded = batches.streamed(
            examples.cache() if cache else examples,
            min(num_examples, _SHUFFLE_EXAMPLES) if training else 0,
            batch_size,
            lambda image, number, seed: preprocessing.image(
                image, seed_of(number, seed)
            ),
        )

    def one_epoch(seed: tf.Tensor) -> tf.data.Dataset:
        def finish(number, batch):
            images, labels = batch
            return preprocessing.batch(images, labels, seed_of(number, seed))

        return (
            decoded(seed)
            .enumerate()
            .map(finish, num_parallel_calls=tf.data.AUTOTUNE)
        )

    # `rerandomize`: each pass draws the next number of the sequence of `seed`.
    epoch_seeds = tf.data.Dataset.random(
        seed=seed, rerandomize_each_iteration=True
    ).take(1)
    for _ in range(first_epoch):
        next(iter(epoch_seeds))
    dataset = epoch_seeds.flat_map(one_epoch)
    steps = num_examples // batch_size
    if not training and num_examples % batch_size:
        steps += 1
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
    options = tf.data.Options()
    # One file may hold a whole set: several workers must share its examples.
    policy = tf.data.experimental.AutoShardPolicy
    options.experimental_distribute.auto_shard_policy = (
        policy.DATA if count == 1 else policy.OFF
    )
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def _builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """Returns the TFDS builder of a set of labelled images."""
    import tensorflow_datasets as tfds

    from fliqs_tf import digits  # noqa: F401  Importing registers the builder.

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, [*known, *_RECIPES], n=5)
        raise ValueError(
            "`name` must be a data set of TensorFlow Datasets, or 'digits'. "
            f"Received: name={name!r}. Close names: "
            f"{', '.join(dict.fromkeys(close)) or 'none'}. The full list: "
            "tensorflow_datasets.list_builders()."
        ) from error
    features = dict(builder.info.features.items())
    if not (
        isinstance(features.get("image"), tfds.features.Image)
        and isinstance(features.get("label"), tfds.features.ClassLabel)
    ):
        raise ValueError(
            "The data set must have the features `image` and `label`, one "
            f"class each. Received: name={name!r} with {features}. Choose "
            "another set, or build your own tf.data.Dataset of (image, label)."
        )
    return builder


def _recipe(builder: Any) -> _Recipe:
    """Returns the recipe of a known set, or one that fits any set."""
    if builder.name in _RECIPES:
        return _RECIPES[builder.name]
    height, width, channels = builder.info.features["image"].shape
    if height is None or width is None:
        augmentation = "inception"
    elif channels == 3 and max(height, width) <= 96:
        augmentation = "pad_crop_flip"
    else:
        augmentation = "none"
    # No statistics at hand: [0, 255] becomes [-1, 1].
    return _Recipe(augmentation, (0.5,) * channels, (0.5,) * channels)


def _prepare(builder: Any, name: str) -> None:
    """Writes the set below the builder's data_dir, unless it is there."""
    if builder.is_prepared():
        return
    try:
        with _fewer_retries():
            builder.download_and_prepare()
    except ImportError:
        raise  # Says itself what to install.
    # TFDS lets through whatever fails below it: connections, checksums,
    # missing manual downloads (an AssertionError), full disks.
    except Exception as error:
        raise DatasetError(
            "The data set must be prepared or downloadable. Received: "
            f"name={name!r}, not found in {builder.data_dir}, and preparing it "
            f"failed with {type(error).__name__}: {error}\nRun\n"
            f"    python -m tensorflow_datasets build {name}\n"
            "on a machine with network access, copy the resulting folder "
            f"{builder.name}/ here and pass the folder around it as "
            "`data_dir`; or use name='digits', which needs no network."
        ) from error


@contextlib.contextmanager
def _fewer_retries():
    """Makes a download without a network fail in seconds, not minutes."""
    # TFDS has no option for it.
    from tensorflow_datasets.core.download import downloader

    usual = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = min(usual, _DOWNLOAD_RETRIES)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = usual


def _read(
    builder: Any, split: str, seed: int, shuffle: bool, index: int, count: int
) -> tuple[tf.data.Dataset, int]:
    """Returns the decoded examples of a share of a split, and their number."""
    import tensorflow_datasets as tfds

    try:
        share: Any = split
        if count > 1:
            share = tfds.even_splits(split, count, drop_remainder=shuffle)
            share = share[index]
        num_examples = builder.info.splits[share].num_examples
    except (KeyError, ValueError) as error:
        raise ValueError(
            "`split` must name splits of the data set. Received: "
            f"split={split!r}. Splits of {builder.name!r}: "
            f"{', '.join(builder.info.splits)}. Slices read 'train[:90%]'."
        ) from error
    examples = builder.as_dataset(
        split=share,
        # What else an example has is not even decoded.
        decoders=tfds.decode.PartialDecoding({"image": True, "label": True}),
        shuffle_files=shuffle,
        # The file order is drawn once: what changes per epoch is ours.
        read_config=tfds.ReadConfig(
            shuffle_seed=seed,
            shuffle_reshuffle_each_iteration=False,
            try_autocache=False,
        ),
    )
    images = examples.map(lambda example: (example["image"], example["label"]))
    return images, num_examples
