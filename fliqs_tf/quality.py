"""The quality of a batch, which a reward weighs against the cost."""

from typing import Any

import keras
from keras import ops

QUALITIES = ("loss", "accuracy")


def accuracy(y, y_pred, loss: Any):
    """Share of a batch that is predicted right, as Keras's metric has it.

    Args:
        y: Targets of the batch: class numbers, one-hot rows, or, under a binary
            crossentropy, zeros and ones.
        y_pred: Output `(batch, ..., classes)`. Like `y` by itself, or by its
            name or in a list.
        loss: What the model was compiled with. A binary crossentropy
            tells what a prediction of 1 is: more than 1/2, or a logit above 0.

    Returns:
        float32 scalar in [0, 1].

    Raises:
        ValueError: If there are several outputs, or the loss is one of Keras's
            that is no crossentropy.
    """
    outputs = keras.tree.flatten(y_pred)
    # By the name of an output, or in a list, as Keras takes them.
    losses = keras.tree.flatten(loss)
    loss = keras.losses.get(losses[0]) if len(losses) == 1 else losses
    name = getattr(loss, "__name__", type(loss).__name__)
    is_keras = getattr(loss, "__module__", "").startswith("keras.")
    # Of a class or a function: BinaryCrossentropy, binary_crossentropy.
    kind = name.lower().replace("_", "")
    if len(outputs) > 1 or (is_keras and not kind.endswith("crossentropy")):
        raise ValueError(
            "quality='accuracy' is for one output under a crossentropy. "
            f"Received: {len(outputs)} outputs, loss={name}. "
            "Use quality='loss'."
        )
    (y_pred,), (y,) = outputs, keras.tree.flatten(y)
    if kind.startswith("binary") or y_pred.shape[-1] == 1:
        threshold = 0.0 if getattr(loss, "from_logits", False) else 0.5
        correct = keras.metrics.binary_accuracy(y, y_pred, threshold)
    elif len(y.shape) == len(y_pred.shape) and y.shape[-1] != 1:
        correct = keras.metrics.categorical_accuracy(y, y_pred)
    else:
        correct = keras.metrics.sparse_categorical_accuracy(y, y_pred)
    return ops.mean(ops.cast(correct, "float32"))
