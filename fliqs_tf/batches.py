"""Batches of examples; their order in an epoch follows from one number."""

from collections.abc import Callable

import tensorflow as tf

# Seed of an epoch -> its batches of decoded images and labels.
Batches = Callable[[tf.Tensor], tf.data.Dataset]


def in_memory(
    examples: tf.data.Dataset, count: int, batch_size: int, training: bool
) -> Batches:
    """Keeps the examples in one tensor, from which batches are gathered.

    Examples one by one would take most of the pipeline's time.
    """
    everything = examples.batch(count).cache()

    def batches(seed: tf.Tensor) -> tf.data.Dataset:
        order = tf.range(count)
        if training:
            order = tf.random.experimental.stateless_shuffle(
                order, tf.stack([seed, 0])
            )
        numbers = tf.data.Dataset.from_tensor_slices(order).batch(
            batch_size, drop_remainder=training
        )
        return everything.flat_map(
            lambda images, labels: numbers.map(
                lambda chosen: (
                    tf.gather(images, chosen),
                    tf.gather(labels, chosen),
                )
            )
        )

    return batches


def streamed(
    examples: tf.data.Dataset,
    shuffle: int,
    batch_size: int,
    resize: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
) -> Batches:
    """Reads the examples one by one.

    Args:
        examples: Decoded images and labels.
        shuffle: Examples among which the next is drawn; 0 for their order.
        batch_size: Images a batch. With `shuffle`, only whole ones.
        resize: `(image, number of the example, seed) -> image`, to one size.
    """

    def batches(seed: tf.Tensor) -> tf.data.Dataset:
        epoch = examples
        if shuffle:
            # tf.data compares the seed with a number where a global seed is
            # set, which a tensor refuses. The global seed is in `seed` already.
            tf.compat.v1.get_default_graph().seed = None
            epoch = epoch.shuffle(shuffle, seed=seed)
        epoch = epoch.enumerate().map(
            lambda number, example: (
                resize(example[0], number, seed),
                example[1],
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return epoch.batch(batch_size, drop_remainder=bool(shuffle))

    return batches
