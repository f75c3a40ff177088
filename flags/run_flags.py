"""Flags that every training run has."""

import dataclasses

from absl import flags

from fliqs_tf import models
from fliqs_tf.config import ACTIVATIONS
from fliqs_tf.config import OPTIMIZERS
from fliqs_tf.config import TrainConfig
from fliqs_tf.flags import recipe_flags
from fliqs_tf.ranges import RANGES
from fliqs_tf.ranges import SIGNEDNESS

flags.adopt_module_key_flags(recipe_flags)

DEFAULTS = {f.name: f.default for f in dataclasses.fields(TrainConfig)}

RUN_DIR = flags.DEFINE_string(
    "run_dir",
    None,
    "Folder that the run writes. One that holds this very run is resumed.",
    required=True,
)
DATASET = flags.DEFINE_string(
    "dataset",
    DEFAULTS["dataset"],
    "Data set: digits (embedded), mnist, fashion_mnist, cifar10, cifar100, "
    "imagenette, imagenet2012, or any image-classification set of TFDS.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    DEFAULTS["data_dir"],
    "Where TFDS keeps data sets (default: its own choice).",
)
MODEL = flags.DEFINE_enum(
    "model", DEFAULTS["model"], list(models.names()), "Network of the zoo."
)
WIDTH = flags.DEFINE_float(
    "width",
    DEFAULTS["width"],
    "Width multiplier of the network (default: the network's own).",
    lower_bound=0.01,
    upper_bound=16.0,
)
INITIAL_MODEL = flags.DEFINE_string(
    "model_file",
    DEFAULTS["model_file"],
    "Trained Keras model (.keras or .h5) to start from, instead of a new "
    "--model.",
)
INPUT_RANGE = flags.DEFINE_enum(
    "input_range",
    DEFAULTS["input_range"],
    list(RANGES),
    "Where the scale of a layer's inputs comes from: dynamic, the absmax of "
    "the batch at hand; ema, a running average of that; percentile, a running "
    "average that leaves the outermost 0.1% out; lsq, learned like a weight.",
)
INPUT_SIGNEDNESS = flags.DEFINE_enum(
    "input_signedness",
    DEFAULTS["input_signedness"],
    list(SIGNEDNESS),
    "Grids of integer inputs: symmetric about zero; unsigned, for networks "
    "whose layers take no negative values, as after ReLU; or affine, with a "
    "zero point.",
)
EPOCHS = flags.DEFINE_integer(
    "epochs",
    DEFAULTS["epochs"],
    "Epochs of the whole run; 0, with --model_file, trains nothing.",
    lower_bound=0,
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", DEFAULTS["batch_size"], "Samples a step.", lower_bound=1
)
OPTIMIZER = flags.DEFINE_enum(
    "optimizer",
    DEFAULTS["optimizer"],
    list(OPTIMIZERS),
    "Optimizer of the weights; sgd has Nesterov momentum 0.9, rmsprop decay "
    "and momentum 0.9.",
)
LEARNING_RATE = flags.DEFINE_float(
    "learning_rate",
    DEFAULTS["learning_rate"],
    "Learning rate of the weights at its peak; see --schedule.",
    lower_bound=1e-9,
    upper_bound=100.0,
)
WEIGHT_DECAY = flags.DEFINE_float(
    "weight_decay",
    DEFAULTS["weight_decay"],
    "Decoupled weight decay, without biases, norms and learned ranges.",
    lower_bound=0.0,
    upper_bound=1.0,
)
LABEL_SMOOTHING = flags.DEFINE_float(
    "label_smoothing",
    DEFAULTS["label_smoothing"],
    "Label smoothing of the loss.",
    lower_bound=0.0,
    upper_bound=0.99,
)
ACTIVATIONS_MODE = flags.DEFINE_enum(
    "activations",
    DEFAULTS["activations"],
    list(ACTIVATIONS),
    "Inputs of layers in the .tflite file: rounded as in training "
    "(fake_quant), float, in integer arithmetic of 8 or 16 bits, or quantized "
    "by the runtime at each call (dynamic).",
)
SEED = flags.DEFINE_integer(
    "seed",
    DEFAULTS["seed"],
    "Seed of weights, data order and sampling.",
    lower_bound=0,
)


def run_arguments() -> dict:
    """The flags' values, as arguments of a `TrainConfig`."""
    return {
        "run_dir": RUN_DIR.value,
        "dataset": DATASET.value,
        "data_dir": DATA_DIR.value,
        "model": MODEL.value,
        "width": WIDTH.value,
        "model_file": INITIAL_MODEL.value,
        "input_range": INPUT_RANGE.value,
        "input_signedness": INPUT_SIGNEDNESS.value,
        "epochs": EPOCHS.value,
        "batch_size": BATCH_SIZE.value,
        "optimizer": OPTIMIZER.value,
        "learning_rate": LEARNING_RATE.value,
        "weight_decay": WEIGHT_DECAY.value,
        "label_smoothing": LABEL_SMOOTHING.value,
        "activations": ACTIVATIONS_MODE.value,
        "seed": SEED.value,
        **recipe_flags.recipe_arguments(),
    }
