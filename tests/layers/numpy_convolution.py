"""Convolution in plain NumPy, for layers and their contract."""

import numpy as np


def padded(size, kernel, stride, dilation, padding):
    """Zeros (before, after) that TensorFlow's "same" adds, and outputs."""
    reach = (kernel - 1) * dilation + 1
    if padding == "valid":
        return (0, 0), (size - reach) // stride + 1
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + reach - size, 0)
    return (total // 2, total - total // 2), outputs


def convolve(x, kernel, strides, padding, dilation, groups):
    """Convolution in plain NumPy, exact in int64; channels last.

    Args:
        x: `(n, h, w, groups * c)`.
        kernel: `(kh, kw, c, groups * f)`.
        strides: Pair.
        padding: `"valid"` or `"same"`.
        dilation: Pair.
        groups: Number of groups.
    """
    pads, outputs = zip(
        *(
            padded(x.shape[1 + i], kernel.shape[i], strides[i], dilation[i],
                   padding)
            for i in (0, 1)
        ),
        strict=True,
    )  # fmt: skip
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    filters = kernel.shape[-1] // groups
    channels = kernel.shape[2]
    found = np.zeros((len(x), *outputs, kernel.shape[-1]), x.dtype)
    for row in range(outputs[0]):
        for column in range(outputs[1]):
            top, left = row * strides[0], column * strides[1]
            patch = x[
                :,
                top : top + (kernel.shape[0] - 1) * dilation[0] + 1 : (
                    dilation[0]
                ),
                left : left + (kernel.shape[1] - 1) * dilation[1] + 1 : (
                    dilation[1]
                ),
            ]
            for group in range(groups):
                inputs = slice(group * channels, (group + 1) * channels)
                outs = slice(group * filters, (group + 1) * filters)
                found[:, row, column, outs] = np.tensordot(
                    patch[..., inputs], kernel[..., outs], axes=3
                )
    return found
