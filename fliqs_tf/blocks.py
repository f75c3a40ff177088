"""Blocks of a tensor: runs of elements that share a scale."""

import math
from collections.abc import Sequence

from keras import ops


def split(x, axes: Sequence[int], size: int) -> tuple:
    """Cuts a tensor into blocks along some of its axes.

    The axes are read as one, the last running fastest; its last block may be
    short. With `before` and `after` the elements of the axes before and after
    them, the result has shape `(before, blocks, size, after)`, filled up with
    zeros. Axes that are not neighbours are brought to the front.

    Args:
        x: Tensor `(...)`.
        axes: Axes along which blocks run, in `[0, rank)`.
        size: Elements of a block.

    Returns:
        `(blocks, join)`; `join` puts a tensor of the blocks' shape together to
        one of `x`'s.
    """
    axes, order = _neighbours(len(x.shape), axes)
    if order is not None:
        x = ops.transpose(x, order)
    shape = ops.shape(x)
    length = math.prod(shape[a] for a in axes)
    before = math.prod(shape[: axes[0]])
    after = math.prod(shape[axes[-1] + 1 :])
    count = -(-length // size)
    parts = ops.reshape(x, (before, length, after))
    missing = count * size - length
    if missing:
        parts = ops.pad(parts, ((0, 0), (0, missing), (0, 0)))

    def join(blocks):
        whole = ops.reshape(blocks, (before, count * size, after))
        whole = ops.reshape(whole[:, :length], shape)
        if order is None:
            return whole
        return ops.transpose(whole, _inverse(order))

    return ops.reshape(parts, (before, count, size, after)), join


def align(scale, axes: Sequence[int]):
    """Shapes a scale of size 1 on `axes` to broadcast with `split`'s blocks."""
    axes, order = _neighbours(len(scale.shape), axes)
    if order is not None:
        scale = ops.transpose(scale, order)
    shape = scale.shape
    before = math.prod(shape[: axes[0]])
    return ops.reshape(scale, (before, 1, 1, math.prod(shape[axes[-1] + 1 :])))


def _neighbours(rank, axes):
    """Axes that stand together, and the order that makes them, if needed."""
    axes = sorted(axes)
    if axes == list(range(axes[0], axes[0] + len(axes))):
        return axes, None
    others = [a for a in range(rank) if a not in axes]
    return list(range(len(axes))), [*axes, *others]


def _inverse(order) -> list[int]:
    return sorted(range(len(order)), key=lambda position: order[position])
