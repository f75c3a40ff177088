"""Exports a fixed model to a LiteRT or ONNX file, and proves that it behaves.

Example:
  python -m fliqs_tf.bin.export --model_file=runs/digits/model.keras \
      --output=model.tflite --verify_dataset=digits
  python -m fliqs_tf.bin.export --model_file=runs/digits/model.keras \
      --output=model.onnx --verify_dataset=digits
  python -m fliqs_tf.bin.export --inspect=model.tflite

A recipe, with which ai-edge-quantizer makes the same of a float file:
  python -m fliqs_tf.bin.export --model_file=runs/digits/model.keras \
      --output=float.tflite --activations=float --containers=float32
  python -m fliqs_tf.bin.export --model_file=runs/digits/model.keras \
      --recipe=recipe.json --float_file=float.tflite --activations=int8
"""

import sys

import rich
import rich.box
import rich.console
import rich.table
from absl import flags

from fliqs_tf import datasets
from fliqs_tf import report
from fliqs_tf.bin import initial_model
from fliqs_tf.bin import program
from fliqs_tf.export import ExportReport
from fliqs_tf.export import FileReport
from fliqs_tf.export import RecipeReport
from fliqs_tf.export import export_onnx
from fliqs_tf.export import export_recipe
from fliqs_tf.export import export_tflite
from fliqs_tf.export import inspect
from fliqs_tf.flags import export_flags

_FILE_WIDTH = 160

# Shown by --helpshort.
flags.adopt_module_key_flags(export_flags)


def main(argv):
    """Runs the export or the inspection that the flags describe."""
    program.refuse_arguments(argv)
    if export_flags.INSPECT.value is not None:
        found = inspect(export_flags.INSPECT.value)
        console = rich.console.Console()
        if not console.is_terminal:
            # Files and pipes have room, and 80 columns break every name.
            console.width = _FILE_WIDTH
        console.print(_weight_table(found))
        print(found)
        return
    _check_flags()
    model = initial_model.read(export_flags.MODEL_FILE.value)
    data = None
    if export_flags.VERIFY_DATASET.value is not None:
        data = datasets.load(
            export_flags.VERIFY_DATASET.value,
            "test",
            data_dir=export_flags.DATA_DIR.value,
            training=False,
        )
    try:
        export = _export(model, data)
    except RuntimeError as error:
        # A file that disagrees is a finding, no defect of the program.
        sys.exit(f"Error: {error}")
    rich.print(report.layer_table(model, export))
    rich.print(str(export))


def _check_flags() -> None:
    output, recipe = export_flags.OUTPUT, export_flags.RECIPE
    needed = [export_flags.MODEL_FILE, output]
    # What only LiteRT files that are written have.
    refused = [export_flags.CONTAINERS_KIND, export_flags.REFERENCE_KERNELS]
    cause = output
    if recipe.value is not None:
        needed[1] = export_flags.FLOAT_FILE
        refused.append(output)
        cause = recipe
    elif not _is_onnx(output.value):
        refused = []
    for flag in needed:
        if flag.value is None:
            raise ValueError(
                f"Flag --{flag.name} must have a value. Received: none. "
                "--help shows examples."
            )
    for flag in refused:
        if flag.present:
            raise ValueError(
                f"Flag --{flag.name} is for LiteRT files that are written. "
                f"Received: --{cause.name}={cause.value}. Leave it out."
            )


def _is_onnx(output) -> bool:
    return output is not None and output.endswith(".onnx")


def _export(model, data) -> ExportReport | RecipeReport:
    output = export_flags.OUTPUT.value
    recipe = export_flags.RECIPE.value
    options = {
        "activations": export_flags.ACTIVATIONS_MODE.value,
        "verify_data": data,
        "tolerance": export_flags.TOLERANCE.value,
        "allow_mismatch": export_flags.ALLOW_MISMATCH.value,
        "accuracy_drop": export_flags.ACCURACY_DROP_ALLOWED.value,
    }
    if recipe is not None:
        float_file = export_flags.FLOAT_FILE.value
        return export_recipe(model, recipe, float_file, **options)
    if _is_onnx(output):
        return export_onnx(model, output, **options)
    return export_tflite(
        model,
        output,
        containers=export_flags.CONTAINERS_KIND.value,
        reference_kernels=export_flags.REFERENCE_KERNELS.value,
        **options,
    )


def _weight_table(found: FileReport) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("weights of", overflow="fold")
    table.add_column("operator", no_wrap=True)
    # Another tool's file does not say.
    says_formats = any(row.asked is not None for row in found.rows)
    if says_formats:
        table.add_column("asked")
        table.add_column("input")
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("stored as")
    table.add_column("bits", justify="right", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("multiplied with")
    for row in found.rows:
        scale = row.input_scale
        formats = (row.asked or "", row.asked_input or "")
        table.add_row(
            row.name,
            row.operator + (f" x {row.uses}" if row.uses > 1 else ""),
            *(formats if says_formats else ()),
            f"{row.weights:,}",
            row.stored_type + (", decoded" if row.decoded else ""),
            f"{row.stored_bits:.3g}",
            f"{row.stored_bytes:,}",
            row.input_type + ("" if scale is None else f" * {scale:.4g}"),
        )
    return table


def run():
    """Entry point of the console script."""
    program.run(main)


if __name__ == "__main__":
    run()
