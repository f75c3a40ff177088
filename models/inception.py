"""InceptionV3."""

import keras

from fliqs_tf.models import arguments
from fliqs_tf.models import blocks

# The stem and the two reductions are unpadded; below this size the last grid
# would be empty.
_MIN_SIZE = 75


def inception_v3(
    input_shape=(299, 299, 3),
    classes: int = 1000,
    width: float = 1.0,
    dropout: float = 0.2,
    name: str = "inception_v3",
) -> keras.Model:
    """InceptionV3 as in TensorFlow's reference code, no auxiliary head.

    Szegedy et al., "Rethinking the Inception Architecture for Computer
    Vision", CVPR 2016, section 6; grids 35x35, 17x17 and 8x8 for a 299x299
    image, 5.713 GMACs at width 1. Modules carry the reference code's names,
    `mixed5b` to `mixed7c`.

    This is the standard network. The one behind the FLIQS paper's InceptionV3
    costs has not been identified. Those of its five widths fit 2.992 GMACs
    that grow with the square of the width and 0.0128 that grow with the width:
    a classifier on 2048 features and a first convolution of 111x111 or 112x112
    positions, so an image of about 224x224. This network has 2.838 GMACs
    there. Tried against all five costs, for images of 160 to 299 pixels, with
    every choice of paddings in stem, pooling and reductions: these modules
    with and without classifier and auxiliary head, and the stem of the paper's
    table 1; none fits. With other numbers of modules, kernels and inner
    channels some hundred of 130 million combinations fit, as chance would have
    it, none of them published.

    Args:
        input_shape: `(height, width, channels)` of one image, at least 75x75,
            float and already normalized.
        classes: Number of outputs.
        width: Multiplier of the channels of all convolutions.
        dropout: Fraction of the pooled features dropped in training.
        name: Name of the model.

    Returns:
        A functional model, `(batch, *input_shape)` to logits
        `(batch, classes)`.

    Raises:
        ValueError: An argument is out of range.
    """
    arguments.check_arguments(input_shape, classes, width, min_size=_MIN_SIZE)
    net = _Builder(width)
    inputs = keras.Input(input_shape, name="image")
    x = net.conv(inputs, 32, 3, "stem_conv1", strides=2, padding="valid")
    x = net.conv(x, 32, 3, "stem_conv2", padding="valid")
    x = net.conv(x, 64, 3, "stem_conv3")
    x = keras.layers.MaxPooling2D(3, strides=2, name="stem_pool1")(x)
    x = net.conv(x, 80, 1, "stem_conv4")
    x = net.conv(x, 192, 3, "stem_conv5", padding="valid")
    x = keras.layers.MaxPooling2D(3, strides=2, name="stem_pool2")(x)
    for module, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
        x = net.wide_module(x, pooled, f"mixed{module}")
    x = net.first_reduction(x, "mixed6a")
    for module, inner in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        x = net.factorized_module(x, inner, f"mixed{module}")
    x = net.second_reduction(x, "mixed7a")
    for module in ("7b", "7c"):
        x = net.forked_module(x, f"mixed{module}")
    return keras.Model(inputs, blocks.classify(x, classes, dropout), name=name)


class _Builder:
    """The modules of the network at one width.

    Branches are numbered from the left of the paper's figures, convolutions
    from the bottom: `mixed5b_branch2_conv1`.

    Args:
        width: Multiplier of the channels.
    """

    def __init__(self, width):
        self.width = width

    def conv(self, x, filters, kernel_size, name, **options):
        """Convolution, batch norm and ReLU; `filters` at width 1."""
        filters = blocks.scale_channels(filters, self.width)
        return blocks.conv_bn(x, filters, kernel_size, name=name, **options)

    def tower(self, x, steps, name):
        """Convolutions in a row; a step is filters and kernel size."""
        for index, (filters, kernel_size) in enumerate(steps, start=1):
            x = self.conv(x, filters, kernel_size, f"{name}_conv{index}")
        return x

    def pooled(self, x, filters, name):
        """Average pooling and a 1x1 convolution."""
        x = keras.layers.AveragePooling2D(
            3, strides=1, padding="same", name=f"{name}_pool"
        )(x)
        return self.conv(x, filters, 1, f"{name}_conv1")

    def wide_module(self, x, pooled, name):
        """Figure 5 of the paper, with a 5x5 in the second branch."""
        return _concatenate(
            [
                self.tower(x, [(64, 1)], f"{name}_branch1"),
                self.tower(x, [(48, 1), (64, 5)], f"{name}_branch2"),
                self.tower(x, [(64, 1), (96, 3), (96, 3)], f"{name}_branch3"),
                self.pooled(x, pooled, f"{name}_branch4"),
            ],
            name,
        )

    def first_reduction(self, x, name):
        """Figure 10: halves the grid, adds 480 channels at width 1."""
        deep = self.tower(x, [(64, 1), (96, 3)], f"{name}_branch2")
        reduced = {"strides": 2, "padding": "valid"}
        return _concatenate(
            [
                self.conv(x, 384, 3, f"{name}_branch1_conv1", **reduced),
                self.conv(deep, 96, 3, f"{name}_branch2_conv3", **reduced),
                _max_pool(x, f"{name}_branch3_pool"),
            ],
            name,
        )

    def factorized_module(self, x, inner, name):
        """Figure 6 with n = 7: 7x7 kernels as 1x7 and 7x1."""
        row, column = (1, 7), (7, 1)
        short = [(inner, 1), (inner, row), (192, column)]
        long = [(inner, 1), *((inner, k) for k in (column, row, column))]
        return _concatenate(
            [
                self.tower(x, [(192, 1)], f"{name}_branch1"),
                self.tower(x, short, f"{name}_branch2"),
                self.tower(x, [*long, (192, row)], f"{name}_branch3"),
                self.pooled(x, 192, f"{name}_branch4"),
            ],
            name,
        )

    def second_reduction(self, x, name):
        """Halves the grid again, adds 512 channels at width 1."""
        short = self.tower(x, [(192, 1)], f"{name}_branch1")
        long = self.tower(
            x, [(192, 1), (192, (1, 7)), (192, (7, 1))], f"{name}_branch2"
        )
        reduced = {"strides": 2, "padding": "valid"}
        return _concatenate(
            [
                self.conv(short, 320, 3, f"{name}_branch1_conv2", **reduced),
                self.conv(long, 192, 3, f"{name}_branch2_conv4", **reduced),
                _max_pool(x, f"{name}_branch3_pool"),
            ],
            name,
        )

    def forked_module(self, x, name):
        """Figure 7: the last kernel of two branches is forked."""
        double = self.tower(x, [(448, 1), (384, 3)], f"{name}_branch3")
        single = self.tower(x, [(384, 1)], f"{name}_branch2")
        return _concatenate(
            [
                self.tower(x, [(320, 1)], f"{name}_branch1"),
                *self.fork(single, f"{name}_branch2"),
                *self.fork(double, f"{name}_branch3"),
                self.pooled(x, 192, f"{name}_branch4"),
            ],
            name,
        )

    def fork(self, x, name):
        """A 1x3 and a 3x1 convolution side by side."""
        return [
            self.conv(x, 384, (1, 3), f"{name}_row"),
            self.conv(x, 384, (3, 1), f"{name}_column"),
        ]


def _max_pool(x, name):
    return keras.layers.MaxPooling2D(3, strides=2, name=name)(x)


def _concatenate(branches, name):
    return keras.layers.Concatenate(name=name)(branches)
