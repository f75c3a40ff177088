"""Flags of how weights are trained, beyond the least that a run needs."""

import dataclasses
import json

from absl import flags

from fliqs_tf.config import SCHEDULES
from fliqs_tf.config import TrainConfig

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(TrainConfig)}

MODEL_ARGUMENTS = flags.DEFINE_string(
    "model_arguments",
    _DEFAULTS["model_arguments"],
    "Further arguments of the network's builder, as a JSON object, such as "
    '{"squeeze_excite": false}.',
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    _DEFAULTS["image_size"],
    "Side of the images, in pixels, of sets whose images vary in size.",
    lower_bound=1,
)
NORMALIZE = flags.DEFINE_boolean(
    "normalize",
    _DEFAULTS["normalize"],
    "Whether images are shifted and scaled by the mean and deviation of their "
    "set; --nonormalize leaves pixels in 0..255, for a --model_file that "
    "brings its own preprocessing.",
)
RAND_AUGMENT = flags.DEFINE_float(
    "rand_augment",
    _DEFAULTS["rand_augment"],
    "Strength of RandAugment on training images; 0 for none.",
    lower_bound=0.0,
    upper_bound=1.0,
)
RANDOM_ERASING = flags.DEFINE_float(
    "random_erasing",
    _DEFAULTS["random_erasing"],
    "Share of the training images that lose a box to noise.",
    lower_bound=0.0,
    upper_bound=1.0,
)
MIXUP = flags.DEFINE_float(
    "mixup",
    _DEFAULTS["mixup"],
    "Parameter of mixup's beta distribution on training batches; 0 for none.",
    lower_bound=0.0,
)
CUTMIX = flags.DEFINE_float(
    "cutmix",
    _DEFAULTS["cutmix"],
    "Parameter of CutMix's beta distribution on training batches; 0 for none. "
    "With --mixup as well, a coin decides for every batch.",
    lower_bound=0.0,
    upper_bound=1.0,
)
OPTIMIZER_EPSILON = flags.DEFINE_float(
    "optimizer_epsilon",
    _DEFAULTS["optimizer_epsilon"],
    "Epsilon of RMSprop (default: 0.001).",
    lower_bound=0.0,
)
LEARNING_RATE_WARMUP = flags.DEFINE_float(
    "learning_rate_warmup",
    _DEFAULTS["learning_rate_warmup"],
    "Epochs in which the learning rate grows from 0 to --learning_rate.",
    lower_bound=0.0,
)
SCHEDULE = flags.DEFINE_enum(
    "schedule",
    _DEFAULTS["schedule"],
    list(SCHEDULES),
    "How the learning rate falls: by a cosine to 0; by --schedule_decay every "
    "--schedule_epochs; by it after a half and three quarters; or not.",
)
SCHEDULE_DECAY = flags.DEFINE_float(
    "schedule_decay",
    _DEFAULTS["schedule_decay"],
    "Factor of the exponential schedule and of the steps.",
    lower_bound=1e-9,
    upper_bound=1.0,
)
SCHEDULE_EPOCHS = flags.DEFINE_float(
    "schedule_epochs",
    _DEFAULTS["schedule_epochs"],
    "Epochs between two decays of the exponential schedule.",
    lower_bound=1e-3,
)
CLIP_NORM = flags.DEFINE_float(
    "clip_norm",
    _DEFAULTS["clip_norm"],
    "Largest norm of all gradients together; 0 for no bound.",
    lower_bound=0.0,
)
WEIGHT_EMA = flags.DEFINE_float(
    "weight_ema",
    _DEFAULTS["weight_ema"],
    "Momentum of the moving average of the weights that the trained model has "
    "in the end; 0 for none.",
    lower_bound=0.0,
    upper_bound=0.999999,
)
TEACHER = flags.DEFINE_string(
    "teacher",
    _DEFAULTS["teacher"],
    "Trained float model (.keras) to learn from besides the labels.",
)
TEACHER_TEMPERATURE = flags.DEFINE_float(
    "teacher_temperature",
    _DEFAULTS["teacher_temperature"],
    "Temperature of the distillation.",
    lower_bound=1e-3,
)
TEACHER_WEIGHT = flags.DEFINE_float(
    "teacher_weight",
    _DEFAULTS["teacher_weight"],
    "Weight of the teacher against the labels.",
    lower_bound=0.0,
    upper_bound=1.0,
)


def _is_object(value):
    try:
        return isinstance(json.loads(value), dict)
    except json.JSONDecodeError:
        return False


flags.register_validator(MODEL_ARGUMENTS, _is_object, "Expected a JSON object.")


def recipe_arguments() -> dict:
    """The flags' values, as arguments of a `TrainConfig`."""
    return {
        "model_arguments": MODEL_ARGUMENTS.value,
        "image_size": IMAGE_SIZE.value,
        "normalize": NORMALIZE.value,
        "rand_augment": RAND_AUGMENT.value,
        "random_erasing": RANDOM_ERASING.value,
        "mixup": MIXUP.value,
        "cutmix": CUTMIX.value,
        "optimizer_epsilon": OPTIMIZER_EPSILON.value,
        "learning_rate_warmup": LEARNING_RATE_WARMUP.value,
        "schedule": SCHEDULE.value,
        "schedule_decay": SCHEDULE_DECAY.value,
        "schedule_epochs": SCHEDULE_EPOCHS.value,
        "clip_norm": CLIP_NORM.value,
        "weight_ema": WEIGHT_EMA.value,
        "teacher": TEACHER.value,
        "teacher_temperature": TEACHER_TEMPERATURE.value,
        "teacher_weight": TEACHER_WEIGHT.value,
    }
