"""The studies under `docs/results` are redrawn by the commands they name."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

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


class PublishedResultsTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = pathlib.Path(absltest.get_default_test_tmpdir())
        jobs = []
        for path in _REPORTS:
            command, arguments = _COMMAND.search(
                path.read_text("utf-8")
            ).groups()
            copy = cls.folder / path.parent.name
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path.parent, copy)
            (copy / "report.md").unlink()
            jobs.append((command, arguments.split(), str(copy)))
        result = subprocess.run(
            [sys.executable, "-c", _REDRAW, json.dumps(jobs)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise AssertionError(result.stderr)

    def test_every_folder_of_results_is_a_study(self):
        studies = {path.parent / "results" for path in _REPORTS}
        folders = set((_ROOT / "docs" / "results").glob("*/results"))
        self.assertNotEmpty(folders)
        self.assertEmpty(folders - studies)

    @parameterized.named_parameters(
        (path.parent.name, path) for path in _REPORTS
    )
    def test_a_report_is_what_its_command_makes_of_its_results(self, path):
        redrawn = self.folder / path.parent.name / "report.md"
        self.assertEqual(redrawn.read_text("utf-8"), path.read_text("utf-8"))


if __name__ == "__main__":
    absltest.main()
