"""Searches the number format of every layer of a network while it trains.

Example:
  python -m fliqs_tf.bin.search --flagfile=flags/presets/digits.flags

A run writes one folder: config.json, assignment.json, model.keras (the fixed
model), model.tflite, report.json, report.md, plots, TensorBoard events and a
checkpoint. A run that was stopped goes on when it is started again.
"""

from absl import flags

from fliqs_tf.bin import experiment
from fliqs_tf.bin import program
from fliqs_tf.flags import search_flags

# Shown by --helpshort.
flags.adopt_module_key_flags(search_flags)


def main(argv):
    """Runs the search that the flags describe."""
    program.refuse_arguments(argv)
    experiment.search(search_flags.search_config_from_flags())


def run():
    """Entry point of the console script."""
    program.run(main)


if __name__ == "__main__":
    run()
