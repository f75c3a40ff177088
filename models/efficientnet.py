"""EfficientNet B0 to B4."""

import math

import keras

from fliqs_tf.models import arguments
from fliqs_tf.models import blocks

# Expansion, kernel size, channels, blocks, stride of the first block: table 1
# of the paper, B0.
_STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)


def efficientnet_b0(
    input_shape=(224, 224, 3),
    classes: int = 1000,
    width: float = 1.0,
    squeeze_excite: bool = True,
    dropout: float = 0.2,
    drop_connect: float = 0.2,
    name: str = "efficientnet_b0",
) -> keras.Model:
    """EfficientNet-B0: inverted residuals with squeeze-and-excitation.

    Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional
    Neural Networks", ICML 2019, table 1. The costs of the FLIQS paper are
    those of the network without its squeeze-and-excitation layers: 0.3852
    GMACs at 224x224 and `squeeze_excite=False`.

    Args:
        input_shape: `(height, width, channels)` of one image, float and
            already normalized.
        classes: Number of outputs.
        width: Multiplier of the channels, on top of the variant's own.
        squeeze_excite: Whether blocks weigh their channels by pooled features.
        dropout: Fraction of the pooled features dropped in training.
        drop_connect: Fraction of images for which the last residual block is
            skipped in training; earlier blocks less, in proportion to depth.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    arguments.check_arguments(input_shape, classes, width)
    return _efficientnet(
        input_shape,
        classes,
        1.0 * width,
        1.0,
        squeeze_excite,
        dropout,
        drop_connect,
        name,
    )


def efficientnet_b1(
    input_shape=(240, 240, 3),
    classes: int = 1000,
    width: float = 1.0,
    squeeze_excite: bool = True,
    dropout: float = 0.2,
    drop_connect: float = 0.2,
    name: str = "efficientnet_b1",
) -> keras.Model:
    """EfficientNet-B1: depth 1.1, 240x240. See `efficientnet_b0`."""
    arguments.check_arguments(input_shape, classes, width)
    return _efficientnet(
        input_shape,
        classes,
        1.0 * width,
        1.1,
        squeeze_excite,
        dropout,
        drop_connect,
        name,
    )


def efficientnet_b2(
    input_shape=(260, 260, 3),
    classes: int = 1000,
    width: float = 1.0,
    squeeze_excite: bool = True,
    dropout: float = 0.3,
    drop_connect: float = 0.2,
    name: str = "efficientnet_b2",
) -> keras.Model:
    """EfficientNet-B2: width 1.1, depth 1.2, 260x260. See `efficientnet_b0`."""
    arguments.check_arguments(input_shape, classes, width)
    return _efficientnet(
        input_shape,
        classes,
        1.1 * width,
        1.2,
        squeeze_excite,
        dropout,
        drop_connect,
        name,
    )


def efficientnet_b3(
    input_shape=(300, 300, 3),
    classes: int = 1000,
    width: float = 1.0,
    squeeze_excite: bool = True,
    dropout: float = 0.3,
    drop_connect: float = 0.2,
    name: str = "efficientnet_b3",
) -> keras.Model:
    """EfficientNet-B3: width 1.2, depth 1.4, 300x300. See `efficientnet_b0`."""
    arguments.check_arguments(input_shape, classes, width)
    return _efficientnet(
        input_shape,
        classes,
        1.2 * width,
        1.4,
        squeeze_excite,
        dropout,
        drop_connect,
        name,
    )


def efficientnet_b4(
    input_shape=(380, 380, 3),
    classes: int = 1000,
    width: float = 1.0,
    squeeze_excite: bool = True,
    dropout: float = 0.4,
    drop_connect: float = 0.2,
    name: str = "efficientnet_b4",
) -> keras.Model:
    """EfficientNet-B4: width 1.4, depth 1.8, 380x380. See `efficientnet_b0`."""
    arguments.check_arguments(input_shape, classes, width)
    return _efficientnet(
        input_shape,
        classes,
        1.4 * width,
        1.8,
        squeeze_excite,
        dropout,
        drop_connect,
        name,
    )


def _efficientnet(
    input_shape,
    classes,
    width,
    depth,
    squeeze_excite,
    dropout,
    drop_connect,
    name,
):
    counts = [math.ceil(depth * stage[3]) for stage in _STAGES]
    inputs = keras.Input(input_shape, name="image")
    x = blocks.conv_bn(
        inputs,
        blocks.scale_channels(32, width, 8),
        3,
        strides=2,
        activation="silu",
        name="stem",
    )
    done = 0
    for stage, (expansion, kernel_size, channels, _, stride) in enumerate(
        _STAGES, start=1
    ):
        filters = blocks.scale_channels(channels, width, 8)
        for index in range(1, counts[stage - 1] + 1):
            x = _block(
                x,
                expansion,
                kernel_size,
                filters,
                strides=stride if index == 1 else 1,
                squeeze_excite=squeeze_excite,
                drop_rate=drop_connect * done / sum(counts),
                name=f"stage{stage}_block{index}",
            )
            done += 1
    x = blocks.conv_bn(
        x,
        blocks.scale_channels(1280, width, 8),
        1,
        activation="silu",
        name="head",
    )
    return keras.Model(inputs, blocks.classify(x, classes, dropout), name=name)


def _block(
    x,
    expansion,
    kernel_size,
    filters,
    strides,
    squeeze_excite,
    drop_rate,
    name,
):
    shortcut = x
    channels = x.shape[-1]
    if expansion != 1:
        x = blocks.conv_bn(
            x,
            expansion * channels,
            1,
            activation="silu",
            name=f"{name}_expand",
        )
    x = blocks.depthwise_bn(
        x,
        kernel_size,
        strides=strides,
        activation="silu",
        name=f"{name}_depthwise",
    )
    if squeeze_excite:
        # A quarter of the block's input, not of its expanded channels.
        x = _weigh_channels(x, max(1, channels // 4), name)
    x = blocks.conv_bn(x, filters, 1, activation=None, name=f"{name}_project")
    if strides == 1 and channels == filters:
        x = blocks.drop_residual(x, drop_rate, name)
        x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return x


def _weigh_channels(x, squeezed, name):
    weights = keras.layers.GlobalAveragePooling2D(
        keepdims=True, name=f"{name}_squeeze_pool"
    )(x)
    weights = keras.layers.Conv2D(squeezed, 1, name=f"{name}_squeeze")(weights)
    weights = blocks.activate(weights, "silu", f"{name}_squeeze")
    weights = keras.layers.Conv2D(x.shape[-1], 1, name=f"{name}_excite")(
        weights
    )
    weights = blocks.activate(weights, "sigmoid", f"{name}_excite")
    return keras.layers.Multiply(name=f"{name}_scale")([x, weights])
