"""Trains a network under given number formats.

Example:
  python -m fliqs_tf.bin.train --formats=int4 --run_dir=runs/int4

--formats takes one format for all layers (fp32 for a float model) or an
assignment.json. The run folder is as a search writes it.
"""

from absl import flags

from fliqs_tf.bin import experiment
from fliqs_tf.bin import program
from fliqs_tf.flags import train_flags

# Shown by --helpshort.
flags.adopt_module_key_flags(train_flags)


def main(argv):
    """Runs the training that the flags describe."""
    program.refuse_arguments(argv)
    experiment.train(train_flags.train_config_from_flags())


def run():
    """Entry point of the console script."""
    program.run(main)


if __name__ == "__main__":
    run()
