"""Flags of an export."""

from absl import flags

from fliqs_tf.config import ACTIVATIONS

MODEL_FILE = flags.DEFINE_string(
    "model_file", None, "Fixed model (.keras) to export.", required=True
)
OUTPUT = flags.DEFINE_string(
    "output", None, "LiteRT file (.tflite) to write.", required=True
)
ACTIVATIONS_MODE = flags.DEFINE_enum(
    "activations",
    ACTIVATIONS[0],
    list(ACTIVATIONS),
    "Inputs of layers in the file: rounded as in training, or float.",
)
VERIFY_DATASET = flags.DEFINE_string(
    "verify_dataset",
    None,
    "Data set whose test split the file is compared on; without it, random "
    "inputs are used.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TFDS keeps data sets (default: its own choice)."
)
ALLOW_MISMATCH = flags.DEFINE_boolean(
    "allow_mismatch",
    False,
    "Keep a file that disagrees with the model; the report records it.",
)
