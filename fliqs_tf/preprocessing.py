"""What happens to decoded images on their way into a network."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from fliqs_tf import augmentations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strengths:
    """How strongly training images are varied, beyond crop and flip.

    Args:
        rand_augment: `factor` of Keras's RandAugment (Cubuk et al., 2020; 2
            operations an image), in [0, 1]; 0 for none.
        random_erasing: Probability that an image loses a box to noise (Zhong
            et al., 2020), in [0, 1]; 0 for none.
        mixup: Parameter of mixup's beta distribution (Zhang et al., 2018); 0
            for none.
        cutmix: Parameter of CutMix's (Yun et al., 2019), in [0, 1]; 0 for
            none. With mixup as well, a coin decides for every batch.
    """

    rand_augment: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            limit = np.inf if name == "mixup" else 1.0
            if not 0.0 <= value <= limit:
                raise ValueError(
                    f"`{name}` must be "
                    + ("at least 0" if name == "mixup" else "in [0, 1]")
                    + f". Received: {name}={value}."
                )


class Preprocessing:
    """Crops, augments and normalises.

    Args:
        crop: `"none"`, `"pad_crop_flip"` or `"inception"`, of augmentation.
        shape: Of the images, `None` where it varies.
        size: Side that images of varying size get.
        mean: Per channel, of images in [0, 1].
        std: Per channel.
        classes: Number of classes.
        augment: Whether to augment.
        strengths: How strongly, beyond the crop.
    """

    def __init__(
        self,
        *,
        crop: str,
        shape: Sequence[int | None],
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        classes: int,
        augment: bool,
        strengths: Strengths,
    ):
        self._crop = crop if augment else "none"
        self._varies = None in shape
        self._size = size
        self._classes = classes
        # Arrays of an image's shape: TensorFlow spreads a batch's worth of
        # them several times faster than three numbers.
        whole = [side or size for side in shape]
        self._offset, self._factor = (
            np.broadcast_to(np.array(value, np.float32), whole)
            for value in (255.0 * np.array(mean), 1 / (255.0 * np.array(std)))
        )
        self._vary = self._erase = None
        if augment and strengths.rand_augment:
            self._vary = augmentations.RandAugment(strengths.rand_augment)
        if augment and strengths.random_erasing:
            self._erase = augmentations.RandomErasing(strengths.random_erasing)
        self._mixes = []
        if augment and strengths.mixup:
            self._mixes.append(augmentations.mixup(strengths.mixup))
        if augment and strengths.cutmix:
            self._mixes.append(augmentations.cutmix(strengths.cutmix))

    def image(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Brings an image to the size that all images of a batch have."""
        if not self._varies:
            return image
        if self._crop == "inception":
            return augmentations.inception_crop_flip(image, self._size, seed)
        return augmentations.centre_crop(image, self._size)

    def batch(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Augments and normalises a batch; mixed labels become shares."""
        seeds = tf.unstack(tf.random.split(seed, 5))
        if self._crop == "pad_crop_flip":
            images = augmentations.pad_crop_flip(images, seeds[0])
        if self._vary is not None:
            images = self._vary(images, seeds[1])
        images = tf.cast(images, tf.float32)
        images = (images - self._offset) * self._factor
        if self._erase is not None:
            images = self._erase(images, seeds[2])
        if self._mixes:
            labels = tf.one_hot(labels, self._classes)
            coin = tf.random.stateless_uniform((), seeds[3])
            first, last = self._mixes[0], self._mixes[-1]
            images, labels = tf.cond(
                coin * len(self._mixes) < 1.0,
                lambda: first(images, labels, seeds[4]),
                lambda: last(images, labels, seeds[4]),
            )
        return images, labels
