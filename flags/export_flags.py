"""Flags of an export."""

from absl import flags

from fliqs_tf.export.containers import CONTAINERS
from fliqs_tf.export.modes import ACCURACY_DROP
from fliqs_tf.export.modes import ACTIVATIONS

# Not `required`: with --inspect there is neither.
MODEL_FILE = flags.DEFINE_string(
    "model_file", None, "Fixed model (.keras) to export."
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "File to write: .onnx for ONNX (needs the extra fliqs_tf[onnx]), any other "
    "name for LiteRT (.tflite).",
)
RECIPE = flags.DEFINE_string(
    "recipe",
    None,
    "Recipe for ai-edge-quantizer (.json) to write for --float_file, instead "
    "of a file; with any --activations but fake_quant.",
)
FLOAT_FILE = flags.DEFINE_string(
    "float_file",
    None,
    "LiteRT file in float32 that --recipe is for: of --containers=float32, or "
    "of the plain Keras model's `export`.",
)
INSPECT = flags.DEFINE_string(
    "inspect",
    None,
    "Any LiteRT file (.tflite) to describe, instead of an export.",
)
ACTIVATIONS_MODE = flags.DEFINE_enum(
    "activations",
    "fake_quant",
    list(ACTIVATIONS),
    "Inputs of layers in the file: rounded as in training, float, or integers "
    "(in ONNX float or fake_quant).",
)
CONTAINERS_KIND = flags.DEFINE_enum(
    "containers",
    CONTAINERS[0],
    list(CONTAINERS),
    "Types of the weights: the smallest, those of the fast float kernels, or "
    "FLOAT32 for all, which other tools can quantize (--recipe).",
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
TOLERANCE = flags.DEFINE_float(
    "tolerance",
    None,
    "Largest relative error of the file's outputs (default: 1e-4; with integer "
    "arithmetic --accuracy_drop, or an RMS of 0.1 without labels that tell).",
    lower_bound=0.0,
)
ACCURACY_DROP_ALLOWED = flags.DEFINE_float(
    "accuracy_drop",
    ACCURACY_DROP,
    "Largest loss of accuracy, a fraction, in modes with integer arithmetic.",
    lower_bound=0.0,
)
REFERENCE_KERNELS = flags.DEFINE_boolean(
    "reference_kernels", False, "Run the file in the reference kernels too."
)
ALLOW_MISMATCH = flags.DEFINE_boolean(
    "allow_mismatch",
    False,
    "Keep a file that disagrees with the model; the file records it.",
)
