"""What the entry points share: how a program starts and how it fails."""

import sys
from collections.abc import Callable
from collections.abc import Sequence

from absl import app
from absl import flags
from absl import logging

from fliqs_tf.datasets import DatasetError

# What a user can mend (a package that is missing can be installed); anything
# else is a defect and keeps its traceback.
_USER_ERRORS = (
    ValueError,
    OSError,
    FloatingPointError,
    ImportError,
    DatasetError,
)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a program; errors a user can mend end it with their message."""

    def guarded(argv):
        if not flags.FLAGS["verbosity"].present:
            # TFDS tells every file it opens.
            logging.set_verbosity(logging.WARNING)
        try:
            main(argv)
        except _USER_ERRORS as error:
            logging.debug("The error's origin:", exc_info=True)
            print(f"Error: {error}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded)


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises if there are arguments that are no flags."""
    if len(argv) > 1:
        # No `app.UsageError`: the message would stand behind pages of help.
        raise ValueError(
            f"Expected flags only. Received: {' '.join(argv[1:])}. Write "
            "--flag=value; --help lists the flags."
        )
