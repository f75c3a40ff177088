"""What commands say of flags that they refuse."""

import json
import os
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parent.parent

# Flags are global, and most of the time of a process is to start.
_CODE = """
import importlib
import json
import sys
from absl import flags
from absl.testing import flagsaver
main = getattr(importlib.import_module(sys.argv[1]), "main", lambda argv: None)
messages = {}
for name, arguments in json.loads(sys.argv[2]).items():
    with flagsaver.flagsaver():
        try:
            main(flags.FLAGS(["program", *arguments]))
        except (flags.Error, ValueError) as error:
            messages[name] = str(error)
print(json.dumps(messages))
"""


def refusals(module, cases, folder):
    """Parses flags in one other process, and runs the module's `main` if any.

    Args:
        module: Name of a module that defines flags.
        cases: Name of a case -> arguments.
        folder: Where the process runs.

    Returns:
        Name of each case that was refused -> message.
    """
    result = subprocess.run(
        [sys.executable, "-c", _CODE, module, json.dumps(cases)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])
