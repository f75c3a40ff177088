"""Models that the export tests share, calibrated and with hard batch norms."""

import keras
import numpy as np

from fliqs_tf.assignment import Assignment
from fliqs_tf.convert import to_fixed

IMAGE = (8, 8, 3)


def images(count: int = 40) -> np.ndarray:
    """Returns `(count, *IMAGE)` standard normal images."""
    random = np.random.default_rng(0)
    return random.standard_normal((count, *IMAGE)).astype("float32")


def residual(activation: str = "relu") -> keras.Model:
    """Convolution, depthwise, pointwise, residual sum, pooling and dense.

    Every batch norm has positive, negative and zero gammas.
    """
    layers = keras.layers
    inputs = keras.Input(IMAGE, name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = shortcut = layers.Activation(activation)(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.BatchNormalization(name="depthwise_bn")(x)
    x = layers.ReLU(6.0)(x)
    x = layers.Conv2D(8, 1, name="pointwise")(x)
    x = layers.BatchNormalization(name="pointwise_bn")(x)
    x = layers.Add()([x, shortcut])
    x = layers.Conv2D(16, 3, strides=2, activation=activation, name="down")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return shaken(keras.Model(inputs, layers.Dense(5, name="logits")(x)))


def shaken(model: keras.Model) -> keras.Model:
    """Gives batch norms statistics and gammas of every sign."""
    random = np.random.default_rng(1)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            gamma = random.uniform(0.5, 1.5, size)
            gamma[0::3] *= -1.0
            gamma[1] = 0.0
            beta, mean = random.standard_normal((2, size)) * 0.3
            variance = random.uniform(0.5, 1.5, size)
            layer.set_weights([gamma, beta, mean, variance])
    return model


def fixed(model: keras.Model, formats, data=None, **options) -> keras.Model:
    """Fixes formats and lets the input ranges see data.

    Args:
        model: Plain model.
        formats: One format, or an assignment.
        data: What the ranges see; `images()` by default.
        **options: Of `to_fixed`.
    """
    if isinstance(formats, str):
        formats = Assignment.uniform(model, formats)
    result = to_fixed(model, formats, **options)
    for layer in result._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    result(images() if data is None else data, training=True)
    return result
