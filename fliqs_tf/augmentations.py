"""Crops and augmentations as functions of images and a seed.

Images are uint8 or float32 in 0..255, single ones `(height, width, channels)`,
batches `(batch, height, width, channels)`. A seed is an integer tensor `(2,)`;
the same seed always gives the same images.
"""

import keras
import tensorflow as tf

_CROP_PADDING = 4  # Pixels on each side: He et al. 2015, section 4.2.
_CENTRE_FRACTION = 0.875  # Of the shorter side: 224 of 256.


def pad_crop_flip(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Pads a batch with black by 4 pixels, cuts it back at random, may flip.

    Every image has its own place and is flipped or not by its own coin.
    """
    size, height, width = tf.unstack(tf.shape(images)[:3])
    shape = images.shape
    channels = shape[-1]
    margin = [_CROP_PADDING, _CROP_PADDING]
    images = tf.pad(images, [[0, 0], margin, margin, [0, 0]])

    def draw(seed, count):
        # One number for each image, against rows or columns.
        return tf.random.stateless_uniform(
            (size, 1), seed, maxval=count, dtype=tf.int32
        )

    seeds = tf.unstack(tf.random.split(seed, 3))
    places = 2 * _CROP_PADDING + 1
    rows = draw(seeds[0], places) + tf.range(height)
    columns = tf.range(width)
    columns = tf.where(draw(seeds[1], 2) > 0, columns[::-1], columns)
    columns += draw(seeds[2], places)
    # Numbers of pixels in the padded batch: one gather is several times
    # faster than a crop for each image.
    numbers = tf.range(size)[:, None] * (height + 2 * _CROP_PADDING) + rows
    numbers *= width + 2 * _CROP_PADDING
    numbers = numbers[:, :, None] + columns[:, None, :]
    images = tf.gather(tf.reshape(images, (-1, channels)), numbers)
    return tf.ensure_shape(images, shape)


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
    # Another seed than the crop's: else side and position would be related.
    return tf.image.stateless_random_flip_left_right(image, seed + 1)


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


class RandAugment:
    """Applies 2 random operations of Keras's `RandAugment` to every image.

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

    def __call__(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns a float32 batch, 0..255; grey images stay grey."""
        channels = images.shape[-1]
        images = tf.cast(images, tf.float32)
        if channels == 1:
            images = tf.image.grayscale_to_rgb(images)
        # The layer draws one pair of operations a call.
        images = tf.map_fn(
            self._one,
            (images, tf.random.split(seed, tf.shape(images)[0])),
            fn_output_signature=tf.TensorSpec(images.shape[1:], tf.float32),
        )
        return images[..., :1] if channels == 1 else images

    def _one(self, image_and_seed):
        image, seed = image_and_seed
        self._seeds.start(seed)
        return self._layer(image, training=True)


class RandomErasing:
    """Replaces a box of some images by noise, by Keras's `RandomErasing`.

    The box has sides of 14 % to 57 % of the image's, so an area of 2 % to a
    third; every pixel of it is drawn from the standard normal distribution, as
    in DeiT (Touvron et al., 2021; Zhong et al., 2020).

    Args:
        probability: Share of the images that lose a box.
    """

    def __init__(self, probability: float):
        self._layer = keras.layers.RandomErasing(
            # Else Keras draws the probability too.
            factor=(probability, probability),
            fill_value=0.0,
            value_range=(0.0, 1.0),
        )
        self._seeds = _Seeds()

    def __call__(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Changes a float32 batch of mean 0 and deviation 1 a channel."""
        self._seeds.start(seed)
        drawn = self._layer.get_random_transformation(images, seed=self._seeds)
        # Keras clips its own noise to positive values.
        drawn["fill_value"] = tf.random.stateless_normal(
            tf.shape(images), self._seeds.next()
        )
        return self._layer.transform_images(images, drawn)


class Mix:
    """Mixes every image of a batch with another one, by a layer of Keras.

    Args:
        layer: `keras.layers.MixUp` or `keras.layers.CutMix`.
    """

    def __init__(self, layer: keras.layers.Layer):
        self._layer = layer
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


def mixup(alpha: float) -> Mix:
    """Weighted means of images (Zhang et al., 2018), shares `Beta(a, a)`."""
    return Mix(keras.layers.MixUp(alpha))


def cutmix(alpha: float) -> Mix:
    """Boxes of other images (Yun et al., 2019), shares `Beta(a, a)`.

    Args:
        alpha: In (0, 1], as Keras's layer has it.
    """
    # Else Keras draws alpha too.
    return Mix(keras.layers.CutMix((alpha, alpha)))


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
