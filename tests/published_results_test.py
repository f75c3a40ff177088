"""The studies under `docs/results` are redrawn by the commands they name."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_COMMAND = re.compile(r"^    (python -m fliqs_tf\.bin\.study (.+))$", re.M)
_REPORTS = sorted(
    path
    for path in (_ROOT / "docs" / "results").glob("*/report.md")
    if _COMMAND.search(path.read_text("utf-8"))
)

# Flags are read in a process of their own: they are global.
_REDRAW = """
import json
import sys
from absl import flags
from absl.testing import flagsaver
from fliqs_tf.flags import study_flags
for command, arguments, folder in json.loads(sys.argv[1]):
    with flagsaver.flagsaver():
        flags.FLAGS(["study", *arguments, "--run_dir=" + folder])
        study_flags.study_from_flags().write_report(command)
"""


class PublishedResultsTest(absltest.TestCase):
    def test_every_folder_of_results_is_a_study(self):
        studies = {path.parent / "results" for path in _REPORTS}
        folders = set((_ROOT / "docs" / "results").glob("*/results"))
        self.assertNotEmpty(folders)
        self.assertEmpty(folders - studies)

    def test_reports_are_what_their_commands_make_of_their_results(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        jobs = []
        for path in _REPORTS:
            command, arguments = _COMMAND.search(
                path.read_text("utf-8")
            ).groups()
            copy = folder / path.parent.name
            shutil.copytree(path.parent, copy)
            (copy / "report.md").unlink()
            jobs.append((command, arguments.split(), str(copy)))
        result = subprocess.run(
            [sys.executable, "-c", _REDRAW, json.dumps(jobs)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        for path in _REPORTS:
            with self.subTest(path.parent.name):
                redrawn = folder / path.parent.name / "report.md"
                self.assertEqual(
                    redrawn.read_text("utf-8"), path.read_text("utf-8")
                )


if __name__ == "__main__":
    absltest.main()
