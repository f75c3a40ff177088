"""Residual networks for ImageNet (18, 34, 50) and for 32x32 images (20, 56)."""

import functools

import keras

from fliqs_tf.models import arguments
from fliqs_tf.models import blocks

_conv_bn = functools.partial(blocks.conv_bn, momentum=0.9, epsilon=1e-5)


def resnet18(
    input_shape=(224, 224, 3),
    classes: int = 1000,
    width: float = 1.0,
    name: str = "resnet18",
) -> keras.Model:
    """ResNet-18 in the form whose costs the FLIQS paper reports.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table
    1; with a 1x1 projection in the first block of *every* group, the first
    included (64 to 64 channels at width 1), as TensorFlow's reference networks
    have it and torchvision's has not. 1.8269 GMACs at width 1 and 224x224,
    which is the count behind the paper's 29.23 GBOPs at 4 bits.

    Strided convolutions use Keras's `"same"` padding.

    Args:
        input_shape: `(height, width, channels)` of one image, float and
            already normalized.
        classes: Number of outputs.
        width: Multiplier of the channels of all convolutions.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    return _imagenet(
        _basic_block, (2, 2, 2, 2), input_shape, classes, width, name
    )


def resnet34(
    input_shape=(224, 224, 3),
    classes: int = 1000,
    width: float = 1.0,
    name: str = "resnet34",
) -> keras.Model:
    """ResNet-34: `resnet18` with 3, 4, 6 and 3 blocks in its groups.

    Args:
        input_shape: See `resnet18`.
        classes: See `resnet18`.
        width: See `resnet18`.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    return _imagenet(
        _basic_block, (3, 4, 6, 3), input_shape, classes, width, name
    )


def resnet50(
    input_shape=(224, 224, 3),
    classes: int = 1000,
    width: float = 1.0,
    name: str = "resnet50",
) -> keras.Model:
    """ResNet-50 v1.5: bottleneck blocks with the stride in the 3x3 kernel.

    He et al., CVPR 2016, table 1; the position of the stride is that of Goyal
    et al., "Accurate, Large Minibatch SGD", arXiv 1706.02677, section 5.1.
    4.0892 GMACs at width 1 and 224x224.

    Args:
        input_shape: See `resnet18`.
        classes: See `resnet18`.
        width: See `resnet18`.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    return _imagenet(
        _bottleneck_block, (3, 4, 6, 3), input_shape, classes, width, name
    )


def resnet20(
    input_shape=(32, 32, 3),
    classes: int = 10,
    width: float = 1.0,
    name: str = "resnet20",
) -> keras.Model:
    """ResNet-20 for 32x32 images: three groups of three blocks.

    He et al., CVPR 2016, section 4.2. Where a group changes size its shortcut
    is a 1x1 projection (the paper's option B; its own CIFAR networks pad with
    zeros), as a zero-padded shortcut has nothing to search. 272,474 trained
    parameters at width 1; 269,722 with padding.

    Args:
        input_shape: `(height, width, channels)` of one image, float and
            already normalized.
        classes: Number of outputs.
        width: Multiplier of the 16, 32 and 64 channels.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    return _cifar(3, input_shape, classes, width, name)


def resnet56(
    input_shape=(32, 32, 3),
    classes: int = 10,
    width: float = 1.0,
    name: str = "resnet56",
) -> keras.Model:
    """ResNet-56 for 32x32 images: `resnet20` with nine blocks a group.

    Args:
        input_shape: See `resnet20`.
        classes: See `resnet20`.
        width: See `resnet20`.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    return _cifar(9, input_shape, classes, width, name)


def _imagenet(block, block_counts, input_shape, classes, width, name):
    arguments.check_arguments(input_shape, classes, width)
    inputs = keras.Input(input_shape, name="image")
    filters = blocks.scale_channels(64, width)
    x = _conv_bn(inputs, filters, 7, strides=2, name="stem")
    x = keras.layers.MaxPooling2D(
        3, strides=2, padding="same", name="stem_pool"
    )(x)
    for group, count in enumerate(block_counts, start=1):
        filters = blocks.scale_channels(64 * 2 ** (group - 1), width)
        for index in range(1, count + 1):
            first = index == 1
            x = block(
                x,
                filters,
                strides=2 if first and group > 1 else 1,
                project=first,
                name=f"group{group}_block{index}",
            )
    return keras.Model(inputs, blocks.classify(x, classes), name=name)


def _cifar(blocks_per_group, input_shape, classes, width, name):
    arguments.check_arguments(input_shape, classes, width)
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, blocks.scale_channels(16, width), 3, name="stem")
    for group in (1, 2, 3):
        filters = blocks.scale_channels(16 * 2 ** (group - 1), width)
        for index in range(1, blocks_per_group + 1):
            shrinks = index == 1 and group > 1
            x = _basic_block(
                x,
                filters,
                strides=2 if shrinks else 1,
                project=shrinks,
                name=f"group{group}_block{index}",
            )
    return keras.Model(inputs, blocks.classify(x, classes), name=name)


def _basic_block(x, filters, strides, project, name):
    shortcut = _shortcut(x, filters, strides, project, name)
    x = _conv_bn(x, filters, 3, strides=strides, name=f"{name}_conv1")
    x = _conv_bn(x, filters, 3, activation=None, name=f"{name}_conv2")
    return _add(x, shortcut, name)


def _bottleneck_block(x, filters, strides, project, name):
    shortcut = _shortcut(x, 4 * filters, strides, project, name)
    x = _conv_bn(x, filters, 1, name=f"{name}_conv1")
    x = _conv_bn(x, filters, 3, strides=strides, name=f"{name}_conv2")
    x = _conv_bn(x, 4 * filters, 1, activation=None, name=f"{name}_conv3")
    return _add(x, shortcut, name)


def _shortcut(x, filters, strides, project, name):
    if not project:
        return x
    return _conv_bn(
        x,
        filters,
        1,
        strides=strides,
        activation=None,
        name=f"{name}_projection",
    )


def _add(x, shortcut, name):
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return blocks.activate(x, "relu", name)
