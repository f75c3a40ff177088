"""The two image networks of the MLPerf Tiny benchmark.

Banbury et al., "MLPerf Tiny Benchmark", NeurIPS 2021 Datasets and Benchmarks,
table 1. Both have biases in front of batch norm, as the benchmark's training
code has, and hold their weights in the order of its Keras files, so that
`model.set_weights(reference.get_weights())` takes the published weights. The
benchmark's networks end in a softmax; these return logits.
"""

import functools

import keras

from fliqs_tf.models import arguments
from fliqs_tf.models import blocks

_conv_bn = functools.partial(blocks.conv_bn, use_bias=True)
_depthwise_bn = functools.partial(blocks.depthwise_bn, use_bias=True)

# Channels of the pointwise convolution and stride of the depthwise one in
# front of it, at width 1: table 1 of the MobileNets paper.
_MOBILENET_V1_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


def mlperf_tiny_resnet8(
    input_shape=(32, 32, 3),
    classes: int = 10,
    width: float = 1.0,
    name: str = "mlperf_tiny_resnet8",
) -> keras.Model:
    """ResNet-8 of the image classification task (CIFAR-10).

    Three residual blocks of 16, 32 and 64 channels; the shortcuts of the last
    two are 1x1 projections without batch norm. 78,666 parameters and 12.5
    million MACs at width 1. The benchmark's quality target is 85%.

    Args:
        input_shape: `(height, width, channels)` of one image. The benchmark's
            weights want float pixels in 0..255, not scaled.
        classes: Number of outputs.
        width: Multiplier of the channels.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    arguments.check_arguments(input_shape, classes, width)
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(inputs, blocks.scale_channels(16, width), 3, name="stem")
    for index, channels in enumerate((16, 32, 64), start=1):
        x = _residual_block(
            x,
            blocks.scale_channels(channels, width),
            strides=1 if index == 1 else 2,
            name=f"block{index}",
        )
    return keras.Model(inputs, blocks.classify(x, classes), name=name)


def mlperf_tiny_mobilenet_v1(
    input_shape=(96, 96, 3),
    classes: int = 2,
    width: float = 0.25,
    name: str = "mlperf_tiny_mobilenet_v1",
) -> keras.Model:
    """MobileNetV1 at width 0.25 of the visual wake words task.

    Howard et al., "MobileNets: Efficient Convolutional Neural Networks for
    Mobile Vision Applications", arXiv 1704.04861, table 1; ReLU in place of
    ReLU6, no dropout, as in the benchmark. 221,794 parameters and 7.5 million
    MACs. The benchmark's quality target is 80%.

    Args:
        input_shape: `(height, width, channels)` of one image, float, 0..1 in
            the benchmark.
        classes: Number of outputs: person or not.
        width: Multiplier of the channels of the full MobileNetV1. Note the
            default: the benchmark's network is the one at 0.25.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    arguments.check_arguments(input_shape, classes, width)
    inputs = keras.Input(input_shape, name="image")
    x = _conv_bn(
        inputs, blocks.scale_channels(32, width), 3, strides=2, name="stem"
    )
    for index, (channels, strides) in enumerate(_MOBILENET_V1_BLOCKS, start=1):
        x = _depthwise_bn(x, 3, strides=strides, name=f"block{index}_depthwise")
        filters = blocks.scale_channels(channels, width)
        x = _conv_bn(x, filters, 1, name=f"block{index}_pointwise")
    return keras.Model(inputs, blocks.classify(x, classes), name=name)


def _residual_block(x, filters, strides, name):
    shortcut = x
    x = _conv_bn(x, filters, 3, strides=strides, name=f"{name}_conv1")
    x = _conv_bn(x, filters, 3, activation=None, name=f"{name}_conv2")
    if strides != 1 or shortcut.shape[-1] != filters:
        shortcut = keras.layers.Conv2D(
            filters,
            1,
            strides=strides,
            padding="same",
            kernel_initializer="he_normal",
            name=f"{name}_projection",
        )(shortcut)
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return blocks.activate(x, "relu", name)
