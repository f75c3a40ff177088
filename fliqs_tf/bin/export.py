"""Exports a fixed model to a LiteRT file, and proves that it behaves.

Example:
  python -m fliqs_tf.bin.export --model_file=runs/digits/model.keras \
      --output=model.tflite --verify_dataset=digits
"""

import keras
import rich
from absl import flags

from fliqs_tf import datasets
from fliqs_tf import report
from fliqs_tf.bin import program
from fliqs_tf.export import export_tflite
from fliqs_tf.flags import export_flags

# Shown by --helpshort.
flags.adopt_module_key_flags(export_flags)


def main(argv):
    """Runs the export that the flags describe."""
    program.refuse_arguments(argv)
    model = keras.models.load_model(export_flags.MODEL_FILE.value)
    data = None
    if export_flags.VERIFY_DATASET.value is not None:
        data = datasets.load(
            export_flags.VERIFY_DATASET.value,
            "test",
            data_dir=export_flags.DATA_DIR.value,
            training=False,
        )
    export = export_tflite(
        model,
        export_flags.OUTPUT.value,
        activations=export_flags.ACTIVATIONS_MODE.value,
        verify_data=data,
        allow_mismatch=export_flags.ALLOW_MISMATCH.value,
    )
    rich.print(report.layer_table(model, export))
    rich.print(str(export))


def run():
    """Entry point of the console script."""
    program.run(main)


if __name__ == "__main__":
    run()
