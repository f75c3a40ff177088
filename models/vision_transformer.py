"""DeiT: vision transformers without convolutions."""

import keras

from fliqs_tf.models import arguments
from fliqs_tf.models import blocks

_HEAD_SIZE = 64
_MLP_RATIO = 4


def deit(
    input_shape=(224, 224, 3),
    classes: int = 1000,
    hidden_size: int = 768,
    depth: int = 12,
    patch_size: int = 16,
    heads: int | None = None,
    drop_path: float = 0.1,
    name: str = "deit",
) -> keras.Model:
    """Data-efficient image transformer, without distillation token.

    Touvron et al., "Training Data-Efficient Image Transformers and
    Distillation through Attention", ICML 2021, table 1: hidden sizes 192, 384
    and 768 are DeiT-Ti, -S and -B. Query, key, value, projection and the two
    layers of the MLP are `Dense` layers of their own, so that each is one
    decision of a search; the products of attention have no weights and are no
    decision.

    At 224x224 the blocks have `28368 * hidden_size**2` MACs (12 of them, 197
    tokens), the patch embedding `150528 * hidden_size` and the head `1000 *
    hidden_size`: 16.8485 GMACs at 768. The costs in the FLIQS paper's figures
    are a little higher. All digits printed for 288, 576 and 768 are met by
    adding `256 * 1000 * hidden_size` bit operations in every row: one more
    head at 16x16 bits, as the second classifier of a distilled DeiT would be.
    That is the shortest reading found, not the only possible one, and this
    network has one head.

    Args:
        input_shape: `(height, width, channels)` of one image, both sizes
            multiples of `patch_size`; float and already normalized.
        classes: Number of outputs.
        hidden_size: Size of a token; a multiple of `heads`.
        depth: Number of transformer blocks.
        patch_size: Height and width of a patch in pixels.
        heads: Attention heads. `None` for the number that divides
            `hidden_size` and brings the head size nearest to 64: 12 at 768, 9
            at 576, 4 at 288.
        drop_path: Fraction of images for which the last block is skipped in
            training; earlier blocks less, in proportion to depth.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    arguments.check_arguments(input_shape, classes)
    arguments.check_positive_int("hidden_size", hidden_size)
    arguments.check_positive_int("depth", depth)
    arguments.check_positive_int("patch_size", patch_size)
    if input_shape[0] % patch_size or input_shape[1] % patch_size:
        raise ValueError(
            "Height and width of `input_shape` must be multiples of "
            f"patch_size={patch_size}. Received: "
            f"input_shape={tuple(input_shape)}"
        )
    if heads is None:
        heads = _heads_of(hidden_size)
    arguments.check_positive_int("heads", heads)
    if hidden_size % heads:
        raise ValueError(
            f"`heads` must divide hidden_size={hidden_size}. "
            f"Received: heads={heads}"
        )

    inputs = keras.Input(input_shape, name="image")
    x = keras.layers.Conv2D(
        hidden_size,
        patch_size,
        strides=patch_size,
        kernel_initializer=_initializer(),
        name="patch_embedding",
    )(inputs)
    patches = x.shape[1] * x.shape[2]
    x = keras.layers.Reshape((patches, hidden_size), name="patches")(x)
    x = TokenEmbedding(name="tokens")(x)
    for index in range(depth):
        rate = drop_path * index / max(1, depth - 1)
        x = _block(x, hidden_size, heads, rate, name=f"block{index + 1}")
    x = _norm(x, "norm")
    x = keras.layers.Cropping1D((0, patches), name="class_token")(x)
    x = keras.layers.Flatten(name="features")(x)
    return keras.Model(inputs, _dense(x, classes, "logits"), name=name)


@keras.saving.register_keras_serializable(package="fliqs_tf")
class TokenEmbedding(keras.layers.Layer):
    """Puts a learned class token first and adds learned positions.

    Input: `(batch, tokens, hidden_size)`. Output: `(batch, tokens + 1,
    hidden_size)`.

    Reference: Dosovitskiy et al., "An Image Is Worth 16x16 Words", ICLR 2021,
    equation 1.
    """

    def build(self, input_shape):
        _, tokens, size = input_shape
        self.class_token = self.add_weight(
            shape=(1, 1, size), initializer=_initializer(), name="class_token"
        )
        self.positions = self.add_weight(
            shape=(1, tokens + 1, size),
            initializer=_initializer(),
            name="positions",
        )

    def call(self, inputs):
        shape = keras.ops.shape(inputs)
        first = keras.ops.broadcast_to(
            self.class_token, (shape[0], 1, shape[2])
        )
        return keras.ops.concatenate([first, inputs], axis=1) + self.positions

    def compute_output_shape(self, input_shape):
        batch, tokens, size = input_shape
        return (batch, tokens + 1, size)


@keras.saving.register_keras_serializable(package="fliqs_tf")
class HeadsAttention(keras.layers.Layer):
    """Scaled dot-product attention in several heads, without weights.

    Forward, per head of size d: `softmax(q k^T / sqrt(d)) v`. Query, key and
    value: `(batch, tokens, hidden_size)`, output likewise.

    Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017,
    equation 1.

    Args:
        heads: Number of heads; divides the hidden size.
        **kwargs: Of `keras.layers.Layer`.
    """

    def __init__(self, heads, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads

    def call(self, query, key, value):
        _, tokens, size = query.shape
        head_size = size // self.heads
        query, key, value = (
            keras.ops.transpose(
                keras.ops.reshape(x, (-1, tokens, self.heads, head_size)),
                (0, 2, 1, 3),
            )
            for x in (query, key, value)
        )
        scores = keras.ops.matmul(
            query * head_size**-0.5, keras.ops.transpose(key, (0, 1, 3, 2))
        )
        mixed = keras.ops.matmul(keras.ops.softmax(scores), value)
        return keras.ops.reshape(
            keras.ops.transpose(mixed, (0, 2, 1, 3)), (-1, tokens, size)
        )

    def compute_output_shape(self, query_shape, *_):
        return query_shape

    def get_config(self):
        return {**super().get_config(), "heads": self.heads}


def _block(x, hidden_size, heads, drop_rate, name):
    shortcut = x
    x = _norm(x, f"{name}_attention_norm")
    x = HeadsAttention(heads, name=f"{name}_attention")(
        _dense(x, hidden_size, f"{name}_query"),
        _dense(x, hidden_size, f"{name}_key"),
        _dense(x, hidden_size, f"{name}_value"),
    )
    x = _dense(x, hidden_size, f"{name}_projection")
    x = blocks.drop_residual(x, drop_rate, f"{name}_attention")
    x = keras.layers.Add(name=f"{name}_attention_add")([shortcut, x])
    shortcut = x
    x = _norm(x, f"{name}_mlp_norm")
    x = _dense(x, _MLP_RATIO * hidden_size, f"{name}_mlp1")
    x = blocks.activate(x, "gelu", f"{name}_mlp1")
    x = _dense(x, hidden_size, f"{name}_mlp2")
    x = blocks.drop_residual(x, drop_rate, f"{name}_mlp")
    return keras.layers.Add(name=f"{name}_mlp_add")([shortcut, x])


def _heads_of(hidden_size):
    divisors = (n for n in range(1, hidden_size + 1) if hidden_size % n == 0)
    return min(divisors, key=lambda n: abs(hidden_size // n - _HEAD_SIZE))


def _initializer():
    return keras.initializers.TruncatedNormal(stddev=0.02)


def _dense(x, units, name):
    return keras.layers.Dense(
        units, kernel_initializer=_initializer(), name=name
    )(x)


def _norm(x, name):
    return keras.layers.LayerNormalization(epsilon=1e-6, name=name)(x)
