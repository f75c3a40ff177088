"""A model in which one layer needs 8 bits and the other provably none.

Inputs are +-1 and the weights of `robust` are +-1: both are exact at any
integer format. The inputs of `fine` are then even integers up to 8, of which
INT4's 15 codes with a step of 8/7 keep few apart, and its weights are spread.
Both layers cost the same, so at a target of one layer at INT8 the best
assignment is `fine` at INT8.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from fliqs_tf import baselines
from fliqs_tf import costs

SPACE = ("int4", "int8")
BEST = {"robust": "int4", "fine": "int8"}
SIZE = 8


def planted_model():
    """Returns the trained model."""
    model = keras.Sequential(
        [
            keras.Input((SIZE,)),
            keras.layers.Dense(SIZE, use_bias=False, name="robust"),
            keras.layers.Dense(SIZE, use_bias=False, name="fine"),
        ]
    )
    rng = np.random.default_rng(0)
    model.set_weights(
        [
            rng.choice([-1.0, 1.0], (SIZE, SIZE)),
            rng.normal(0.0, 1.0, (SIZE, SIZE)),
        ]
    )
    return model


def planted_data(model, batches=8):
    """Returns batches of inputs and of the model's own probabilities."""
    rng = np.random.default_rng(1)
    x = rng.choice([-1.0, 1.0], (32 * batches, SIZE)).astype("float32")
    y = ops.convert_to_numpy(ops.softmax(model(x)))
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(32)


def planted_task(epochs=4, is_trained=True, **changes):
    """Returns the task, and a list of the epochs that were trained."""
    model = planted_model()
    data = planted_data(model)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    trained = []

    def fit(model, first, last, rate=1.0, **compile_arguments):
        trained.extend(range(first, last))
        model.compile(
            keras.optimizers.Adam(1e-4 * rate), loss, **compile_arguments
        )
        model.fit(data, initial_epoch=first, epochs=last, verbose=0)

    cost = costs.get("bitops")
    task = baselines.Task(
        model=model,
        is_trained=is_trained,
        data=data,
        loss=loss,
        space=SPACE,
        cost=cost,
        target=cost(model, BEST),
        epochs=epochs,
        fit=fit,
        **changes,
    )
    return task, trained
