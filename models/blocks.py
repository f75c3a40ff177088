"""What the convolutional families of the zoo have in common.

Every kernel is an ordinary Keras layer that carries the bare name of its place
(`"block1_conv1"`), so that a format assignment reads like the network; the
batch norm and the activation behind it append `_bn` and `_act`.
"""

import keras


def scale_channels(channels: float, width: float, divisor: int = 1) -> int:
    """Scales a channel count and rounds it to a multiple of `divisor`.

    Rounds half up, never below `divisor`, and never loses more than a tenth of
    the channels (MobileNetV2's rule; it only acts when `divisor` is coarse).

    Args:
        channels: Channels at width 1.
        width: Multiplier.
        divisor: What the result is a multiple of.

    Returns:
        A positive multiple of `divisor`.
    """
    exact = channels * width
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    if rounded < 0.9 * exact:
        rounded += divisor
    return rounded


def conv_bn(
    x,
    filters: int,
    kernel_size,
    *,
    name: str,
    strides: int = 1,
    padding: str = "same",
    activation: str | None = "relu",
    use_bias: bool = False,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
):
    """Convolution, batch norm and activation.

    Args:
        x: `(batch, height, width, channels)`.
        filters: Output channels.
        kernel_size: One integer or `(height, width)`.
        name: Name of the convolution; the other two layers append to it.
        strides: Stride of both spatial axes.
        padding: `"same"` or `"valid"`.
        activation: A Keras activation name. `None` for none.
        use_bias: Whether the convolution has a bias of its own, which batch
            norm makes redundant; some published models have it all the same.
        momentum: Of the batch norm's running statistics.
        epsilon: Of the batch norm.

    Returns:
        `(batch, new_height, new_width, filters)`.
    """
    x = keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        use_bias=use_bias,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    return _bn_activation(x, name, activation, momentum, epsilon)


def depthwise_bn(
    x,
    kernel_size: int,
    *,
    name: str,
    strides: int = 1,
    activation: str | None = "relu",
    use_bias: bool = False,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
):
    """Depthwise convolution, batch norm and activation.

    Args:
        x: `(batch, height, width, channels)`.
        kernel_size: Height and width of the kernel.
        name: Name of the convolution; the other two layers append to it.
        strides: Stride of both spatial axes.
        activation: A Keras activation name. `None` for none.
        use_bias: Whether the convolution has a bias of its own.
        momentum: Of the batch norm's running statistics.
        epsilon: Of the batch norm.

    Returns:
        `(batch, new_height, new_width, channels)`.
    """
    x = keras.layers.DepthwiseConv2D(
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=use_bias,
        # Keras counts all channels in the fan-in of a depthwise kernel
        # although each output sees one; its fan-out is the honest number.
        depthwise_initializer=keras.initializers.VarianceScaling(
            scale=2.0, mode="fan_out"
        ),
        name=name,
    )(x)
    return _bn_activation(x, name, activation, momentum, epsilon)


def activate(x, activation: str, name: str):
    """Activation as a layer of its own: `"relu"`, `"relu6"`, `"silu"`, ..."""
    return keras.layers.Activation(activation, name=f"{name}_act")(x)


def drop_residual(x, rate: float, name: str):
    """Drops the whole branch for a fraction of the images, in training.

    Stochastic depth: Huang et al., "Deep Networks with Stochastic Depth", ECCV
    2016. Kept branches are scaled by `1 / (1 - rate)`.

    Args:
        x: `(batch, ...)`, the branch to be added to a shortcut.
        rate: Fraction of the images; 0 for no layer at all.
        name: Name of the block; the layer appends `_drop`.

    Returns:
        The shape of `x`.
    """
    if not rate:
        return x
    return keras.layers.Dropout(
        rate,
        noise_shape=(None,) + (1,) * (len(x.shape) - 1),
        name=f"{name}_drop",
    )(x)


def classify(x, classes: int, dropout: float = 0.0):
    """Global average pooling, dropout where asked for, and the logits.

    Args:
        x: `(batch, height, width, channels)`.
        classes: Number of outputs.
        dropout: Fraction of the pooled features dropped in training.

    Returns:
        `(batch, classes)`, logits: no softmax.
    """
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.layers.Dense(classes, name="logits")(x)


def _bn_activation(x, name, activation, momentum, epsilon):
    x = keras.layers.BatchNormalization(
        momentum=momentum, epsilon=epsilon, name=f"{name}_bn"
    )(x)
    return activate(x, activation, name) if activation else x
