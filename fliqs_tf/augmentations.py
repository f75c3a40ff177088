"""Augmentations as functions of an image, or a batch, and a seed.

Images are `(height, width, channels)`, uint8 or float32 in 0..255. A seed is an
integer tensor `(2,)`; the same seed always gives the same image.
"""

import keras
import tensorflow as tf

_CROP_PADDING = 4  # Pixels on each side: He et al. 2015, section 4.2.
_CENTRE_FRACTION = 0.875  # Of the shorter side: 224 of 256.


def pad_crop_flip(
    image: tf.Tensor, shape: tuple[int, int, int], seed: tf.Tensor
) -> tf.Tensor:
    """Pads with black by 4 pixels, cuts `shape` out at random, may flip."""
    margin = [_CROP_PADDING, _CROP_PADDING]
    image = tf.pad(image, [margin, margin, [0, 0]])
    image = tf.image.stateless_random_crop(image, shape, seed)
    # Another seed than the crop's: else side and position would be related.
    return tf.image.stateless_random_flip_left_right(image, seed + 1)


def inception_crop_flip(
    image: tf.Tensor, size: int, seed: tf.Tensor
) -> tf.Tensor:
    """Cuts a random box of 8 % to 100 % of the area, resizes, may flip."""
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        area_range=(0.08, 1.0),
        aspect_ratio_range=(3 / 4, 4 / 3),
        use_image_if_no_bounding_boxes=True,
    )
    crop = tf.slice(image, begin, extent)
    crop.set_shape((None, None, image.shape[-1]))
    image = _resize(crop, size)
    return tf.image.stateless_random_flip_left_right(image, seed + 1)


class RandAugment:
    """Applies 2 random operations of Keras's `RandAugment` to an image.

    Args:
        strength: `factor` of the Keras layer, in [0, 1].
    """

    def __init__(self, strength: float):
        # A layer has variables, which no function of a pipeline may create.
        self._layer = keras.layers.RandAugment((0, 255), factor=strength)
        self._seeds = _Seeds()
        for part in self._layer._flatten_layers():
            if hasattr(part, "generator"):
                part.generator = self._seeds

    def __call__(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns a float32 image, 0..255; grey ones stay grey."""
        channels = image.shape[-1]
        image = tf.cast(image, tf.float32)
        if channels == 1:
            image = tf.image.grayscale_to_rgb(image)
        self._seeds.start(seed)
        image = self._layer(image, training=True)
        return image[..., :1] if channels == 1 else image


class Mixup:
    """Mixes every image of a batch with another one, by Keras's `MixUp`.

    Args:
        alpha: Both parameters of the beta distribution of the shares.
    """

    def __init__(self, alpha: float):
        self._layer = keras.layers.MixUp(alpha)
        self._seeds = _Seeds()

    def __call__(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Mixes float32 images and, in the same shares, one-hot labels."""
        self._seeds.start(seed)
        drawn = self._layer.get_random_transformation(images, seed=self._seeds)
        return (
            self._layer.transform_images(images, drawn),
            self._layer.transform_labels(labels, drawn),
        )


class _Seeds(keras.random.SeedGenerator):
    """Seeds that follow from one seed, without a state.

    A layer's own generator counts its calls, so that what an image gets would
    depend on the images before it, and on which thread was first.
    """

    def __init__(self):
        # Not the base class's, which makes a variable of the state.
        self._base, self._drawn = None, 0

    def start(self, seed: tf.Tensor) -> None:
        """Makes all further seeds follow from this one."""
        self._base, self._drawn = tf.cast(seed, tf.int32), 0

    def next(self, ordered=True):
        self._drawn += 1
        return tf.random.experimental.stateless_fold_in(self._base, self._drawn)


def centre_crop(image: tf.Tensor, size: int) -> tf.Tensor:
    """Cuts the central square of 0.875 of the shorter side, resizes."""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.cast(tf.minimum(height, width), tf.float32) * _CENTRE_FRACTION
    side = tf.maximum(tf.cast(side, tf.int32), 1)
    image = tf.image.crop_to_bounding_box(
        image, (height - side) // 2, (width - side) // 2, side, side
    )
    return _resize(image, size)


def _resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes to `(size, size, channels)`, float32, still 0..255."""
    channels = image.shape[-1]
    image = tf.image.resize(image, (size, size), antialias=True)
    image.set_shape((size, size, channels))
    return image
