"""Flags of a measurement of latencies."""

import dataclasses

from absl import flags

from fliqs_tf import models
from fliqs_tf.config import TrainConfig
from fliqs_tf.export.modes import ACTIVATIONS
from fliqs_tf.space import SPACES
from fliqs_tf.space import get_space

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(TrainConfig)}

OUTPUT = flags.DEFINE_string(
    "output", None, "Table (.json) to write, for --cost=table:.", required=True
)
MODEL_FILE = flags.DEFINE_string(
    "model_file", None, "Keras model (.keras) to measure, instead of --model."
)
MODEL = flags.DEFINE_enum(
    "model", _DEFAULTS["model"], list(models.names()), "Network of the zoo."
)
WIDTH = flags.DEFINE_float(
    "width",
    None,
    "Width multiplier of the network (default: the network's own).",
    lower_bound=0.01,
    upper_bound=16.0,
)
DATASET = flags.DEFINE_string(
    "dataset",
    _DEFAULTS["dataset"],
    "Data set whose image size and classes the network is built for; no data "
    "is read.",
)
SPACE = flags.DEFINE_string(
    "space",
    "int_s",
    f"Formats to time: {', '.join(SPACES)}, or names joined by commas.",
)
ACTIVATIONS_MODE = flags.DEFINE_enum(
    "activations",
    "float",
    list(ACTIVATIONS),
    "Inputs of layers in the timed files, see fliqs_tf.bin.export.",
)
ROUNDS = flags.DEFINE_integer(
    "rounds",
    21,
    "Measurements of each layer and format; their median counts.",
    lower_bound=1,
)
THREADS = flags.DEFINE_integer(
    "threads", 1, "Threads of the interpreter.", lower_bound=1
)


def _is_space(value):
    try:
        get_space(value)
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error
    return True


flags.register_validator(SPACE, _is_space)
