"""MobileNetV2."""

import keras

from fliqs_tf.models import arguments
from fliqs_tf.models import blocks

# Expansion, channels, blocks, stride of the first block: table 2 of the paper.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(
    input_shape=(224, 224, 3),
    classes: int = 1000,
    width: float = 1.0,
    dropout: float = 0.2,
    name: str = "mobilenet_v2",
) -> keras.Model:
    """MobileNetV2: inverted residuals with linear bottlenecks.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
    CVPR 2018, table 2. Channels are rounded to multiples of 8; below width 1
    the last convolution keeps its 1280 channels, as in the paper. 0.3008 GMACs
    at width 1 and 224x224.

    Args:
        input_shape: `(height, width, channels)` of one image, float and
            already normalized.
        classes: Number of outputs.
        width: Multiplier of the channels.
        dropout: Fraction of the pooled features dropped in training.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    arguments.check_arguments(input_shape, classes, width)
    inputs = keras.Input(input_shape, name="image")
    x = blocks.conv_bn(
        inputs,
        blocks.scale_channels(32, width, 8),
        3,
        strides=2,
        activation="relu6",
        name="stem",
    )
    for stage, (expansion, channels, count, stride) in enumerate(
        _STAGES, start=1
    ):
        filters = blocks.scale_channels(channels, width, 8)
        for index in range(1, count + 1):
            x = _block(
                x,
                expansion,
                filters,
                strides=stride if index == 1 else 1,
                name=f"stage{stage}_block{index}",
            )
    x = blocks.conv_bn(
        x,
        blocks.scale_channels(1280, max(1.0, width), 8),
        1,
        activation="relu6",
        name="head",
    )
    return keras.Model(inputs, blocks.classify(x, classes, dropout), name=name)


def _block(x, expansion, filters, strides, name):
    shortcut = x
    if expansion != 1:
        x = blocks.conv_bn(
            x,
            expansion * x.shape[-1],
            1,
            activation="relu6",
            name=f"{name}_expand",
        )
    x = blocks.depthwise_bn(
        x, 3, strides=strides, activation="relu6", name=f"{name}_depthwise"
    )
    x = blocks.conv_bn(x, filters, 1, activation=None, name=f"{name}_project")
    if strides == 1 and shortcut.shape[-1] == filters:
        x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return x
