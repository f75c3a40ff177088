"""Flags of a training run under given formats."""

import re

from absl import flags

from fliqs_tf.config import TrainConfig
from fliqs_tf.flags import run_flags
from fliqs_tf.formats import get_format

flags.adopt_module_key_flags(run_flags)

FORMATS = flags.DEFINE_string(
    "formats",
    run_flags.DEFAULTS["formats"],
    "Format of every layer, such as int4, e4m3 or fp32 (a float model), or "
    "the path of an assignment.json.",
)


def _is_formats(value):
    if re.search(r"\.json$", value):
        return True
    try:
        get_format(value)
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error
    return True


flags.register_validator(FORMATS, _is_formats)


def train_config_from_flags() -> TrainConfig:
    """The configuration that the flags describe."""
    return TrainConfig(formats=FORMATS.value, **run_flags.run_arguments())
