"""Functions of large tensors, compiled by XLA to few passes over memory.

TensorFlow runs one pass for each operation, and rounding is a dozen of them;
XLA makes them one. But it compiles anew for each shape (some 50 ms), so it gets
only tensors that repay that within some dozens of steps. Results are the same
to the bit either way.

It knows TensorFlow because Keras has no name for compiling a function of
tensors.
"""

import functools
import math
from collections.abc import Callable

import tensorflow as tf

# Elements from which a function is compiled: 4 MiB of float32.
MIN_SIZE = 2**20
# A graph of open batch size is not prepared for larger batches than this.
_BATCH = 1024
# Streams that a reduction reads at once, to columns and to one number.
_FOLD = 16
_FLAT_FOLD = 8
_MAGNITUDE_BITS = 0x7FFFFFFF


def fused(function: Callable, plain: Callable | None = None) -> Callable:
    """Compiles a function for its calls on large tensors.

    Args:
        function: Function `(x, *tensors)` to one tensor. The size of `x`
            decides; the others may be `None`. It is not differentiated: wrap
            calls in a custom gradient.
        plain: What to call on other tensors; `None` for `function` itself.

    Returns:
        A function of the same arguments and result.
    """
    plain = plain or function

    @functools.cache
    def compiled(ranks):
        # One trace for all shapes of these ranks from the second on, although
        # XLA takes each on its own.
        del ranks
        return tf.function(
            function, jit_compile=True, autograph=False, reduce_retracing=True
        )

    def run(*tensors):
        ranks = tuple(None if t is None else t.shape.rank for t in tensors)
        return compiled(ranks)(*tensors)

    @functools.wraps(function)
    def call(x, *tensors):
        # As tensors: numbers and arrays would be constants, traced one by one,
        # and compilers turn a division by a constant into something else.
        x = tf.convert_to_tensor(x)
        others = [
            None if t is None else tf.convert_to_tensor(t) for t in tensors
        ]
        large = _is_large(x)
        if isinstance(large, bool):
            return (run if large else plain)(x, *others)
        return tf.cond(
            large, lambda: run(x, *others), lambda: plain(x, *others)
        )

    return call


def _is_large(x):
    """A bool, or a boolean tensor where the shape leaves it open."""
    if x.shape.rank is None:
        return False
    known = math.prod(size for size in x.shape if size is not None)
    open_sizes = sum(size is None for size in x.shape)
    if not open_sizes:
        return known >= MIN_SIZE
    if open_sizes == 1 and known * _BATCH < MIN_SIZE:
        return False
    return tf.size(x, tf.int64) >= MIN_SIZE


def view(x, dtype: str):
    """Reads a tensor's bits as another type of the same width.

    Unlike `keras.ops.view` also where the last size is open.
    """
    return tf.bitcast(x, dtype)


def max_magnitude(x, kept: int):
    """Largest magnitudes, `max |x|`, over all axes but the last ones.

    NaN counts as larger than infinity.

    Args:
        x: float32 tensor `(...)`.
        kept: Number of trailing axes that are not reduced; their sizes are
            known.

    Returns:
        float32 tensor of `x`'s rank, size 1 on the reduced axes.
    """
    sizes = x.shape[x.shape.rank - kept :]
    columns = math.prod(sizes)
    if columns == 1:
        folded = _folded_magnitudes(tf.reshape(x, (-1,)))
        top = view(tf.reduce_max(folded), "float32")
    else:
        top = _column_magnitudes(tf.reshape(x, (-1, columns)))
    return tf.reshape(top, [1] * (x.shape.rank - kept) + sizes)


def _magnitudes(x):
    """Magnitudes as integers, whose order is theirs, with NaN on top."""
    return tf.bitwise.bitwise_and(view(x, "int32"), _MAGNITUDE_BITS)


def _fold(x, count):
    """Elementwise maximum of the magnitudes in `count` slices, and the rest.

    XLA compiles a reduction of a computed value to one scalar at a time, but
    the elementwise maximum of slices to vectors, at the speed of memory.
    """
    rows = tf.shape(x)[0] // count
    # Slices first: a value that all of them share would be written to memory.
    slices = [_magnitudes(x[i * rows : (i + 1) * rows]) for i in range(count)]
    rest = tf.reduce_max(_magnitudes(x[count * rows :]), axis=0)
    return functools.reduce(tf.maximum, slices), rest


def _fold_flat(x):
    # What is left for TensorFlow to reduce is an eighth of the tensor, in
    # cache; and unlike XLA's reductions its run in parallel.
    return tf.maximum(*_fold(x, _FLAT_FOLD))


def _fold_columns(x):
    folded, rest = _fold(x, _FOLD)
    return view(tf.maximum(tf.reduce_max(folded, axis=0), rest), "float32")


def _plain_columns(x):
    return tf.reduce_max(tf.abs(x), axis=0)


_folded_magnitudes = fused(_fold_flat, _magnitudes)
_column_magnitudes = fused(_fold_columns, _plain_columns)
