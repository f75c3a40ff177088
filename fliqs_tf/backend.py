"""Which backend Keras computes with: TensorFlow, or nothing works."""

import os


def require_tensorflow() -> None:
    """Raises unless Keras uses TensorFlow.

    Raises:
        ImportError: If Keras is set to another backend.
    """
    # Asked first: with a backend that is not installed, Keras cannot be
    # imported, and says so in terms of that backend.
    name = os.environ.get("KERAS_BACKEND", "tensorflow")
    if name == "tensorflow":
        import keras

        name = keras.backend.backend()
    if name != "tensorflow":
        raise ImportError(
            "fliqs_tf needs Keras on TensorFlow: training steps, search and "
            f"export are TensorFlow programs. Received: backend={name!r}. Set "
            "the environment variable KERAS_BACKEND=tensorflow before keras is "
            "imported (or the entry 'backend' of ~/.keras/keras.json)."
        )


require_tensorflow()
