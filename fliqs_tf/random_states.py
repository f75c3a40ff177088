"""States of random generators, which Keras saves nowhere."""

import keras


def random_states(model: keras.Model) -> list[keras.Variable]:
    """Variables of the random generators in a model, of dropout for example.

    Without these a run that is resumed draws other numbers.
    """
    saved = {id(variable) for variable in model.weights}
    return [v for v in model.non_trainable_variables if id(v) not in saved]
