"""Small models of every kind that Keras can build, and how to compare them."""

import keras
import numpy as np
from keras import layers
from keras import ops


@keras.saving.register_keras_serializable(package="any_models")
class Block(layers.Layer):
    """Holds layers as an attribute, in a list and in a dictionary."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)
        self.more = [layers.Dense(units), {"last": layers.Dense(units)}]
        self.norm = layers.BatchNormalization()

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")
        super().build(input_shape)

    def call(self, inputs, training=False):
        x = self.more[0](self.dense(inputs))
        x = self.more[1]["last"](x + self.dense(inputs))
        return self.norm(x, training=training) * self.gain

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="any_models")
class Building(layers.Layer):
    """Builds its layers, as Keras asks for; Keras makes its configuration."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)
        self.norm = layers.BatchNormalization()

    def build(self, input_shape):
        self.dense.build(input_shape)
        self.norm.build((*input_shape[:-1], self.units))

    def call(self, inputs, training=False):
        return self.norm(self.dense(inputs), training=training)


@keras.saving.register_keras_serializable(package="any_models")
class ConfiguredBuilding(Building):
    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="any_models")
class Blocks(keras.Model):
    """Blocks in a list, a model inside, and a weight of its own."""

    def __init__(self, number=2, **kwargs):
        super().__init__(**kwargs)
        self.number = number
        self.blocks = [Block(4) for _ in range(number)]
        self.inner = keras.Sequential(
            [keras.Input((4,)), layers.Dense(4, name="within")]
        )
        self.head = layers.Dense(2)
        self.again = self.head
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")

    def call(self, inputs, training=False):
        x = inputs
        for block in self.blocks:
            x = block(x, training=training)
        return self.again(self.inner(x)) * self.gain

    def get_config(self):
        return {**super().get_config(), "number": self.number}


class Classifier(keras.Model):
    """Has no configuration: its arguments are a layer and a function."""

    def __init__(self, backbone, activation):
        super().__init__()
        self.backbone = backbone
        self.heads = {"one": (layers.Dense(3), layers.ReLU())}
        self.activation = activation
        self.seen = keras.metrics.Mean()

    def call(self, inputs):
        dense, relu = self.heads["one"]
        return self.activation(relu(dense(self.backbone(inputs))))


def attention(grouped=False):
    inputs = keras.Input((6, 8))
    if grouped:
        layer = layers.GroupQueryAttention(4, 4, 2, name="attention")
    else:
        layer = layers.MultiHeadAttention(2, 4, name="attention")
    x = layers.LayerNormalization()(layer(inputs, inputs) + inputs)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def recurrent():
    lstm = layers.LSTM(3, return_sequences=True, name="lstm")
    return keras.Sequential(
        [
            keras.Input((6, 4)),
            layers.Bidirectional(lstm, name="both"),
            layers.TimeDistributed(layers.Dense(4, name="dense"), name="each"),
            layers.GRU(3, name="gru"),
        ]
    )


def subclassed():
    model = Blocks(3)
    model(np.zeros((2, 4), "float32"))
    return model


def without_config():
    model = Classifier(Blocks(2), keras.activations.tanh)
    model(np.zeros((2, 4), "float32"))
    return model


def composite():
    inputs = keras.Input((4,))
    return keras.Model(inputs, Block(4, name="block")(inputs))


def building():
    inputs = keras.Input((4,))
    x = Building(3, name="one")(inputs)
    return keras.Model(inputs, ConfiguredBuilding(4, name="two")(x))


def nested():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="dense")], name="inner"
    )
    shared = layers.Dense(4, name="shared")
    inputs = keras.Input((4,), name="given")
    x = layers.Rescaling(0.5)(inputs)
    normalization = layers.Normalization(name="normalization")
    normalization.adapt(np.arange(12.0).reshape(3, 4))
    x = shared(shared(inner(normalization(x))))
    x = layers.Lambda(lambda t: ops.tanh(t) * _FACTOR)(x[:, ::-1])
    return keras.Model(inputs, [inner(x * 2.0 + 1.0), -x])


@keras.saving.register_keras_serializable(package="any_models")
class Gain(layers.Layer):
    """A layer of one's own without a kernel."""

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")

    def call(self, inputs):
        return inputs * self.gain


def images():
    """Kernel layers among what existing tools stumble over."""
    inputs = keras.Input((4, 4, 2))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    normalization = layers.Normalization(name="normalization")
    normalization.adapt(np.arange(64.0).reshape(2, 4, 4, 2))
    x = layers.UpSampling2D(name="up")(normalization(x))
    x = layers.Conv2D(3, 3, padding="same", name="conv")(x)
    left, right = x[:, :, :4], x[:, :, 4:]
    x = ops.concatenate([left / 2.0 - 1.0, ops.relu(-right) ** 2.0], axis=-1)
    x = layers.DepthwiseConv2D(3, name="depthwise")(Gain(name="gain")(x))
    x = ops.mean(layers.PReLU(name="prelu")(x), axis=(1, 2))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


# A name that a function serialised by Keras would lose.
_FACTOR = 3.0


def embedded():
    return keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(7, 4, name="table"),
            layers.SeparableConv1D(4, 3, name="separable"),
            layers.Conv1DTranspose(3, 3, name="up"),
        ]
    )


MODELS = {
    "attention": (
        attention,
        (4, 6, 8),
        {
            "attention/query": 384,
            "attention/key": 384,
            "attention/value": 384,
            "attention/output": 384,
            "head": 24,
        },
    ),
    "grouped_attention": (
        lambda: attention(grouped=True),
        (4, 6, 8),
        {
            "attention/query": 6 * 8 * 16,
            "attention/key": 6 * 8 * 8,
            "attention/value": 6 * 8 * 8,
            "attention/output": 6 * 16 * 8,
            "head": 24,
        },
    ),
    "recurrent": (
        recurrent,
        (4, 6, 4),
        {
            "both/forward_lstm": 6 * 12 * (4 + 3),
            "both/backward_lstm": 6 * 12 * (4 + 3),
            "each/dense": 6 * 24,
            "gru": 6 * 9 * (4 + 3),
        },
    ),
    "subclassed": (
        subclassed,
        (4, 4),
        {
            **{
                f"blocks/{i}/{name}": 16 * calls
                for i in range(3)
                for name, calls in (
                    ("dense", 2),
                    ("more/0", 1),
                    ("more/1/last", 1),
                )
            },
            "inner/within": 16,
            "head": 8,
        },
    ),
    "without_config": (
        without_config,
        (4, 4),
        {
            **{
                f"backbone/blocks/{i}/{name}": 16 * calls
                for i in range(2)
                for name, calls in (
                    ("dense", 2),
                    ("more/0", 1),
                    ("more/1/last", 1),
                )
            },
            "backbone/inner/within": 16,
            "backbone/head": 8,
            "heads/one/0": 6,
        },
    ),
    "composite": (
        composite,
        (4, 4),
        {"block/dense": 32, "block/more/0": 16, "block/more/1/last": 16},
    ),
    "building": (building, (4, 4), {"one/dense": 12, "two/dense": 12}),
    "images": (
        images,
        (3, 4, 4, 2),
        {
            "conv": 64 * 9 * 2 * 3,
            "depthwise": 6 * 2 * 9 * 6,
            "head": 12,
        },
    ),
    "nested": (nested, (4, 4), {"inner/dense": 32, "shared": 32}),
    "embedded": (
        embedded,
        (4, 5),
        {"table": 0, "separable": 3 * (12 + 16), "up": 3 * 36},
    ),
}
# Without a configuration, or with a lambda, Keras cannot save them either.
NOT_SAVED = ("without_config", "nested")


def example(name):
    make, shape, macs = MODELS[name]
    rng = np.random.default_rng(0)
    if name == "embedded":
        return make(), rng.integers(0, 7, shape), macs
    return make(), rng.standard_normal(shape).astype("float32"), macs


def state(model):
    return {w.path: ops.convert_to_numpy(w) for w in model.weights}


def assert_same(found, expected):
    pairs = zip(
        keras.tree.flatten(found), keras.tree.flatten(expected), strict=True
    )
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)
