"""Crops and flips of one image, as functions of the image and a seed.

Images are `(height, width, channels)`, uint8 or float32 in 0..255. A seed is an
integer tensor `(2,)`; the same seed always gives the same image.
"""

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
    image = _resize(tf.slice(image, begin, extent), size)
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
