"""Ordinary Keras layers, computed in the order in which Keras does it.

A value that differs in its last bit changes nothing, unless it stands within
that bit of a rounding boundary of the next layer's input; then a code flips.
So the faithful mode writes batch norm and average pooling with operators
whose result is bit for bit that of TensorFlow's CPU kernels.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from fliqs_tf.export.slots import Slots

# Rows that Eigen's reduction sums in parallel, once there are this many.
_LANES = 4
_LANES_FROM = 16
_PROBES = (1, 7)


class Affine(keras.layers.Layer):
    """Batch norm at inference: `x * a + b`.

    `a = rsqrt(variance + epsilon) * gamma`, `b = beta - mean * a`, in the order
    of `tf.nn.batch_normalization` and computed by the same kernels. The
    converter would fold both into the weights.
    """

    def __init__(
        self, source: keras.layers.BatchNormalization, slots: Slots, **kwargs
    ):
        super().__init__(**kwargs)
        mean = _float32(source.moving_mean)
        variance = _float32(source.moving_variance)
        factor = tf.math.rsqrt(variance + source.epsilon)
        if source.scale:
            factor *= _float32(source.gamma)
        offset = -mean * factor
        if source.center:
            offset = _float32(source.beta) - mean * factor
        self._axis = source.axis
        self._slots = slots
        self._factor = slots.add(factor)
        self._offset = slots.add(offset)

    def load_own_variables(self, store):
        """Loads nothing: what the batch norm has is in the slots."""

    def call(self, inputs, training=None, mask=None):
        shape = [1] * len(inputs.shape)
        shape[self._axis] = -1
        factor = tf.reshape(self._slots.tensor(self._factor), shape)
        offset = tf.reshape(self._slots.tensor(self._offset), shape)
        return inputs * factor + offset


class Mean(keras.layers.Layer):
    """Mean over height and width of `(batch, height, width, channels)`.

    Eigen sums 16 or more rows in four interleaved lanes, adds the lanes one
    after another and then the rows that were left over; LiteRT's MEAN has an
    order of its own. CUMSUM is one running sum, so its last element has a
    known order.
    """

    def __init__(self, keepdims: bool, slots: Slots, **kwargs):
        super().__init__(**kwargs)
        self._keepdims = keepdims
        self._slots = slots

    def build(self, input_shape):
        self._is_exact = self._probe(input_shape)
        count = math.prod(size or 0 for size in input_shape[1:3])
        self._count = self._slots.add(np.float32(count))

    def call(self, inputs):
        if not self._is_exact:
            return tf.reduce_mean(inputs, (1, 2), keepdims=self._keepdims)
        return self._mean(inputs, self._slots.tensor(self._count))

    def _mean(self, inputs, count):
        _, height, width, channels = inputs.shape
        size = height * width
        rows = tf.reshape(inputs, (-1, size, channels))
        if size >= _LANES_FROM:
            full = size // _LANES * _LANES
            lanes = tf.reshape(
                rows[:, :full], (-1, full // _LANES, _LANES, channels)
            )
            lanes = tf.cumsum(lanes, axis=1)[:, -1]
            rows = tf.concat([lanes, rows[:, full:]], axis=1)
        mean = tf.cumsum(rows, axis=1)[:, -1] / count
        if self._keepdims:
            return tf.reshape(mean, (-1, 1, 1, channels))
        return mean

    def _probe(self, shape) -> bool:
        """Whether this machine's TensorFlow sums in the assumed order."""
        if None in shape[1:]:
            return False
        random = np.random.default_rng(0)
        for batch in _PROBES:
            x = random.standard_normal((batch, *shape[1:])).astype("float32")
            expected = tf.reduce_mean(x, (1, 2), keepdims=self._keepdims)
            mean = self._mean(tf.constant(x), np.float32(math.prod(shape[1:3])))
            if not np.array_equal(mean, expected):
                return False
        return True


class AveragePooling(keras.layers.Layer):
    """`AveragePooling2D` as a sum of shifted slices, divided by the count.

    TensorFlow and LiteRT's own kernel add the window row by row and divide;
    XNNPACK multiplies by the reciprocal.
    """

    def __init__(
        self, source: keras.layers.AveragePooling2D, slots: Slots, **kwargs
    ):
        super().__init__(**kwargs)
        self._window = source.pool_size
        self._strides = source.strides
        self._padding = source.padding.upper()
        self._slots = slots

    def build(self, input_shape):
        height, width = input_shape[1:3]
        self._is_exact = None not in (height, width)
        if not self._is_exact:
            return
        self._sizes, self._pads = zip(
            *map(self._extent, (height, width), self._window, self._strides),
            strict=True,
        )
        count = self._sum(np.ones((1, height, width, 1), np.float32))
        self._count = self._slots.add(count)
        x = np.random.default_rng(0).standard_normal((2, *input_shape[1:]))
        x = x.astype(np.float32)
        self._is_exact = np.array_equal(self._sum(x) / count, self._pool(x))

    def call(self, inputs):
        if not self._is_exact:
            return self._pool(inputs)
        return self._sum(inputs) / self._slots.tensor(self._count)

    def _pool(self, inputs):
        return tf.nn.avg_pool2d(
            inputs, self._window, self._strides, self._padding
        )

    def _extent(self, size, window, stride):
        """Returns `(output size, (padding before, after))` of one axis."""
        if self._padding == "VALID":
            return (size - window) // stride + 1, (0, 0)
        output = -(-size // stride)
        padding = max((output - 1) * stride + window - size, 0)
        return output, (padding // 2, padding - padding // 2)

    def _sum(self, inputs):
        padded = tf.pad(inputs, [(0, 0), *self._pads, (0, 0)])
        total = None
        for row in range(self._window[0]):
            for column in range(self._window[1]):
                rows = self._slice(row, 0)
                columns = self._slice(column, 1)
                part = padded[:, rows, columns]
                total = part if total is None else total + part
        return total

    def _slice(self, start, axis):
        stride = self._strides[axis]
        last = start + (self._sizes[axis] - 1) * stride
        return slice(start, last + 1, stride)


def _float32(weight):
    # Models may have weights in half precision, too.
    return keras.ops.cast(weight, "float32")
