"""A small residual network with every kind of kernel that a search meets."""

import keras

from fliqs_tf.models import arguments
from fliqs_tf.models import blocks


def residual_small(
    input_shape=(8, 8, 1),
    classes: int = 10,
    width: float = 1.0,
    name: str = "residual_small",
) -> keras.Model:
    """Nine kernels in two residual blocks, for small grey images.

    A network of this project, made so that a search on a laptop meets all that
    the large ones have: a stem, full, depthwise and pointwise convolutions, a
    strided stage with a projection and a dense classifier. At width 1 it has
    about 22 thousand parameters and, for the 8x8 digits, 0.64 million MACs. It
    takes 28x28 images (Fashion-MNIST) as it stands.

    Block: 3x3 convolution (the strided one), 3x3 depthwise, pointwise, each
    with batch norm; the residual is added before the last ReLU. Reference for
    the residual form: He et al., "Deep Residual Learning for Image
    Recognition", CVPR 2016, figure 2; for depthwise followed by pointwise:
    Howard et al., "MobileNets", arXiv 1704.04861, figure 2.

    Args:
        input_shape: `(height, width, channels)` of one image; float values,
            already scaled (to 0..1, say).
        classes: Number of outputs.
        width: Multiplier of the 24 and 48 channels.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    arguments.check_arguments(input_shape, classes, width)
    narrow = blocks.scale_channels(24, width)
    wide = blocks.scale_channels(48, width)

    inputs = keras.Input(input_shape, name="image")
    x = blocks.conv_bn(inputs, narrow, 3, name="stem")
    x = _block(x, narrow, strides=1, name="block1")
    x = _block(x, wide, strides=2, name="block2")
    outputs = blocks.classify(x, classes)
    return keras.Model(inputs, outputs, name=name)


def _block(x, filters, strides, name):
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = blocks.conv_bn(
            x,
            filters,
            1,
            strides=strides,
            activation=None,
            name=f"{name}_projection",
        )
    x = blocks.conv_bn(x, filters, 3, strides=strides, name=f"{name}_conv1")
    x = blocks.depthwise_bn(x, 3, name=f"{name}_depthwise")
    x = blocks.conv_bn(x, filters, 1, activation=None, name=f"{name}_pointwise")
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return blocks.activate(x, "relu", name)
