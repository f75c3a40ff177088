"""Times every layer of a network in every format, in LiteRT on this machine.

Example:
  python -m fliqs_tf.bin.latency --model=mlperf_tiny_resnet8 \
      --dataset=cifar10 --space=int_s --output=latency.json
  python -m fliqs_tf.bin.search --cost=table:latency.json \
      --cost_target=0.9xint8 ...

The table is of this network, this machine and this runtime. A layer is timed
alone, so the sum of its layers is not a network's latency; both are printed.
"""

import platform

import rich
from rich.table import Table

import fliqs_tf
from fliqs_tf import costs
from fliqs_tf import datasets
from fliqs_tf.bin import initial_model
from fliqs_tf.bin import program
from fliqs_tf.export import checks
from fliqs_tf.export import timing
from fliqs_tf.files import write_json
from fliqs_tf.flags import latency_flags
from fliqs_tf.space import get_space


def main(argv):
    """Measures what the flags describe and writes the table."""
    program.refuse_arguments(argv)
    output = latency_flags.OUTPUT.value
    # Before minutes of measuring.
    checks.check_path(output)
    model = _model()
    formats = get_space(latency_flags.SPACE.value)
    arguments = {
        "activations": latency_flags.ACTIVATIONS_MODE.value,
        "rounds": latency_flags.ROUNDS.value,
        "threads": latency_flags.THREADS.value,
    }
    source = (
        f"Medians of {arguments['rounds']} measurements of {model.name} in "
        f"LiteRT, {arguments['threads']} threads, activations="
        f"{arguments['activations']}, on {platform.machine()} "
        f"({platform.system()}), fliqs_tf {fliqs_tf.__version__}."
    )
    table = timing.latency_table(model, formats, source=source, **arguments)
    write_json(output, table)
    cost = costs.get(f"table:{output}")
    whole = timing.model_time(model, formats, **arguments)
    lines = Table("format", "sum of layers (us)", "whole network (us)")
    for fmt in formats:
        lines.add_row(fmt, f"{cost(model, fmt):.1f}", f"{whole[fmt]:.1f}")
    rich.print(lines)
    rich.print(f"{len(table['layers'])} layers are in {output}")


def _model():
    if latency_flags.MODEL_FILE.value:
        return initial_model.read(latency_flags.MODEL_FILE.value)
    info = datasets.info(latency_flags.DATASET.value)
    width = latency_flags.WIDTH.value
    return fliqs_tf.models.get(
        latency_flags.MODEL.value,
        input_shape=info.image_shape,
        classes=info.num_classes,
        **({} if width is None else {"width": width}),
    )


def run():
    """Entry point of the console script."""
    program.run(main)


if __name__ == "__main__":
    run()
