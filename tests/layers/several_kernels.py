"""Layers of several kernels, tables and attention, and what they compute.

`reference` computes a layer from the weights of its Keras twin, by functions
of tensors only: each operand goes through `fake_quant`, whose values and
gradient have tests of their own.
"""

import keras
import numpy as np
from keras import ops

from fliqs_tf import layers
from fliqs_tf.formats import get_format
from fliqs_tf.numerics import fake_quant

KINDS = {
    "SeparableConv1D": (dict(filters=3, kernel_size=3), (2, 7, 4)),
    "SeparableConv2D": (
        dict(filters=3, kernel_size=3, strides=2, depth_multiplier=2),
        (2, 7, 7, 4),
    ),
    "LSTM": (dict(units=3, return_sequences=True), (2, 5, 4)),
    "GRU": (dict(units=3, reset_after=False), (2, 5, 4)),
    "SimpleRNN": (dict(units=3, activation="relu"), (2, 5, 4)),
    "Embedding": (dict(input_dim=7, output_dim=3), (2, 5)),
    "MultiHeadAttention": (dict(num_heads=2, key_dim=3), (2, 5, 4)),
    "GroupQueryAttention": (
        dict(head_dim=3, num_query_heads=4, num_key_value_heads=2),
        (2, 5, 4),
    ),
}
# Other arguments that must work: kind, arguments.
VARIANTS = (
    (
        "SeparableConv1D",
        dict(dilation_rate=2, use_bias=False, activation="tanh"),
    ),
    ("SeparableConv2D", dict(padding="same", activation="tanh")),
    ("LSTM", dict(use_bias=False, go_backwards=True)),
    ("GRU", dict(reset_after=True)),
    ("GRU", dict(use_bias=False)),
    ("SimpleRNN", dict(activation="tanh", use_bias=False)),
    ("MultiHeadAttention", dict(use_bias=False, value_dim=2)),
    ("GroupQueryAttention", dict(use_bias=False)),
)


# Of inputs and weights. At these no value between the two kernels lies on the
# boundary of two codes, where the order of sums, which differs from machine to
# machine, decides.
_SEEDS = {"SeparableConv1D": 14, "SeparableConv2D": 2}


def arguments(kind):
    """Arguments of a call."""
    _, shape = KINDS[kind]
    rng = np.random.default_rng(_SEEDS.get(kind, 0))
    x = rng.standard_normal(shape).astype("float32")
    if kind == "Embedding":
        x = rng.integers(0, 7, shape)
    return (x, x) if "Attention" in kind else (x,)


def make(kind, keywords=None, **kwargs):
    """Returns a layer, its Keras twin of equal weights, and call arguments."""
    given = {**KINDS[kind][0], **(keywords or {})}
    inputs = arguments(kind)
    keras.utils.set_random_seed(_SEEDS.get(kind, 0))
    layer = getattr(layers, kind)(**given, **kwargs)
    twin = getattr(keras.layers, kind)(**given)
    layer(*inputs)
    twin(*inputs)
    rng = np.random.default_rng(1)
    for weight in twin.trainable_weights:
        if "bias" in weight.name:
            weight.assign(rng.standard_normal(weight.shape) / 4)
    values = {"/".join(w.path.split("/")[1:]): w for w in twin.weights}
    for weight in layer.weights:
        name = "/".join(weight.path.split("/")[1:])
        if name in values:
            weight.assign(values[name])
    return layer, twin, inputs


def reference(kind, twin, inputs, fmt):
    """What the layer of a twin computes at a format, with dynamic ranges."""
    inputs = [
        x if kind == "Embedding" else ops.convert_to_tensor(x) for x in inputs
    ]
    if kind.startswith("Separable"):
        return _separable(twin, *inputs, fmt)
    if "Attention" in kind:
        return _attention(twin, *inputs, fmt)
    if kind == "Embedding":
        return ops.take(fake_quant(twin.embeddings, fmt, -1), inputs[0], 0)
    return _recurrent(kind, twin, *inputs, fmt)


def _separable(twin, x, fmt):
    outputs = ops.depthwise_conv(
        fake_quant(x, fmt),
        fake_quant(twin.depthwise_kernel, fmt, (-2, -1)),
        strides=twin.strides,
        padding=twin.padding,
        dilation_rate=twin.dilation_rate,
    )
    outputs = ops.conv(
        fake_quant(outputs, fmt), fake_quant(twin.pointwise_kernel, fmt, -1)
    )
    if twin.use_bias:
        outputs = outputs + twin.bias
    return twin.activation(outputs)


def _attention(twin, query, value, fmt):
    def project(layer, x, kept):
        kernel = fake_quant(layer.kernel, fmt, kept)
        outputs = ops.einsum("btd,dnh->btnh", fake_quant(x, fmt), kernel)
        return outputs if layer.bias is None else outputs + layer.bias

    query = project(twin._query_dense, query, (1, 2))
    key = project(twin._key_dense, value, (1, 2))
    value = project(twin._value_dense, value, (1, 2))
    repeats = query.shape[2] // key.shape[2]
    key, value = (ops.repeat(x, repeats, axis=2) for x in (key, value))
    scores = ops.einsum("btnh,bsnh->bnts", query, key)
    chances = ops.softmax(scores * query.shape[-1] ** -0.5)
    heads = ops.einsum("bnts,bsnh->btnh", chances, value)
    layer = twin._output_dense
    outputs = ops.einsum(
        "btnh,nhd->btd",
        fake_quant(heads, fmt),
        fake_quant(layer.kernel, fmt, 2),
    )
    return outputs if layer.bias is None else outputs + layer.bias


def _recurrent(kind, twin, x, fmt):
    cell = twin.cell
    kernel = fake_quant(cell.kernel, fmt, -1)
    recurrent = fake_quant(cell.recurrent_kernel, fmt, -1)
    x = ops.matmul(fake_quant(x, fmt), kernel)
    if twin.go_backwards:
        x = ops.flip(x, 1)
    bias = 0.0
    if cell.use_bias:
        bias = ops.convert_to_tensor(cell.bias)
    is_bounded = cell.activation is not keras.activations.relu

    def rounded(state):
        fmt_ = get_format(fmt)
        if is_bounded and fmt_.is_scaled:
            # The largest value is 1.
            return fake_quant(state, fmt, scale=1.0 / fmt_.max_value)
        return fake_quant(state, fmt)

    state = carry = ops.zeros((x.shape[0], cell.units))
    found = []
    for step in range(x.shape[1]):
        now = x[:, step]
        if kind == "SimpleRNN":
            state = cell.activation(
                now + ops.matmul(rounded(state), recurrent) + bias
            )
        elif kind == "LSTM":
            gates = now + ops.matmul(rounded(state), recurrent) + bias
            i, f, g, o = ops.split(gates, 4, axis=1)
            carry = ops.sigmoid(f) * carry + ops.sigmoid(i) * ops.tanh(g)
            state = ops.sigmoid(o) * ops.tanh(carry)
        else:
            state = _gru_step(cell, now, state, recurrent, bias, rounded)
        found.append(state)
    return ops.stack(found, 1) if twin.return_sequences else state


def _gru_step(cell, now, state, recurrent, bias, rounded):
    cut = 2 * cell.units
    if cell.reset_after:
        now = now + (bias[0] if cell.use_bias else 0.0)
        past = ops.matmul(rounded(state), recurrent)
        past = past + (bias[1] if cell.use_bias else 0.0)
        z, r = ops.split(ops.sigmoid(now + past)[:, :cut], 2, axis=1)
        past = r * past[:, cut:]
    else:
        now = now + bias
        past = ops.matmul(rounded(state), recurrent[:, :cut])
        z, r = ops.split(ops.sigmoid(now[:, :cut] + past), 2, axis=1)
        past = ops.matmul(rounded(r * state), recurrent[:, cut:])
    return z * state + (1 - z) * ops.tanh(now[:, cut:] + past)
