"""Gradients of layers against loops written out in NumPy.

The straight-through estimator gives a kernel the gradient of the operation at
the *rounded* inputs, and inputs the one at the *rounded* kernel; a range
of each tensor's own clips nothing.
"""

import itertools

import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import layers
from fliqs_tf.numerics import fake_quant


def _dense(x, w, g):
    return g @ w.T, x.reshape(-1, x.shape[-1]).T @ g.reshape(-1, g.shape[-1])


def _conv(x, w, g):
    """2D, stride 1, no padding: y[n,i,j] += x[n,i+a,j+b] @ w[a,b]."""
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for n, i, j in np.ndindex(g.shape[:3]):
        for a, b in np.ndindex(w.shape[:2]):
            dx[n, i + a, j + b] += w[a, b] @ g[n, i, j]
            dw[a, b] += np.outer(x[n, i + a, j + b], g[n, i, j])
    return dx, dw


def _depthwise(x, w, g):
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for n, i, j in np.ndindex(g.shape[:3]):
        for a, b in np.ndindex(w.shape[:2]):
            dx[n, i + a, j + b] += w[a, b, :, 0] * g[n, i, j]
            dw[a, b, :, 0] += x[n, i + a, j + b] * g[n, i, j]
    return dx, dw


# Layer, shape of its input, axis of the kernel that keeps scales, gradients.
_CASES = {
    "dense": (lambda **k: layers.Dense(3, **k), (4, 5), -1, _dense),
    "einsum": (
        lambda **k: layers.EinsumDense("abc,cd->abd", (None, 3), **k),
        (2, 4, 5),
        -1,
        _dense,
    ),
    "conv": (lambda **k: layers.Conv2D(3, 2, **k), (2, 4, 4, 2), -1, _conv),
    "depthwise": (
        lambda **k: layers.DepthwiseConv2D(2, **k),
        (2, 4, 4, 3),
        # Channels; there is one multiplier.
        2,
        _depthwise,
    ),
}


class NumpyGradientTest(parameterized.TestCase):
    @parameterized.parameters(
        *itertools.product(_CASES, ("int4", "e2m1", "int8"))
    )
    def test_gradient(self, kind, fmt):
        make, shape, axis, gradients = _CASES[kind]
        random = np.random.default_rng(0)
        x = tf.constant(random.standard_normal(shape).astype("float32"))
        layer = make(formats=fmt, input_range="dynamic")
        layer.build(shape)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
            upstream = random.standard_normal(y.shape).astype("float32")
            total = tf.reduce_sum(y * upstream)
        dx, dw = tape.gradient(total, [x, layer.kernel.value])
        rounded_x = np.asarray(fake_quant(x, fmt))
        kernel = np.asarray(layer.kernel)
        rounded_w = np.asarray(fake_quant(kernel, fmt, axis=axis))
        expected_dx, expected_dw = gradients(rounded_x, rounded_w, upstream)
        np.testing.assert_allclose(dx, expected_dx, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            dw, expected_dw.reshape(kernel.shape), rtol=1e-5, atol=1e-5
        )

    def test_of_a_table(self):
        layer = layers.Embedding(4, 3, formats="int4")
        layer.build((None,))
        with tf.GradientTape() as tape:
            y = layer(np.array([[1, 3, 1]]))
            upstream = np.arange(9.0, dtype="float32").reshape(1, 3, 3)
            total = tf.reduce_sum(y * upstream)
        gradient = tape.gradient(total, layer.embeddings.value)
        gradient = tf.convert_to_tensor(gradient)
        # Rows 1 (looked up twice) and 3.
        expected = np.zeros((4, 3))
        expected[1], expected[3] = [6.0, 8.0, 10.0], [3.0, 4.0, 5.0]
        np.testing.assert_allclose(gradient, expected)


if __name__ == "__main__":
    absltest.main()
