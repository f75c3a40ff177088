"""The studies under `docs/results` are redrawn by the commands they name."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_COMMAND = re.compile(r"^    (python -m fliqs_tf\.bin\.study (.+))$", re.M)
# Folder -> the report in it, its command, and that command's arguments.
_STUDIES = {
    path.parent: (page, *match.groups())
    for path in sorted((_ROOT / "docs" / "results").glob("*/report.md"))
    if (match := _COMMAND.search(page := path.read_text("utf-8")))
}

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
        results = (_ROOT / "docs" / "results").glob("*/results")
        folders = {path.parent for path in results}
        self.assertNotEmpty(folders)
        self.assertEmpty(folders - set(_STUDIES))

    def test_reports_are_what_their_commands_make_of_their_results(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        jobs = []
        for study, (_, command, arguments) in _STUDIES.items():
            copy = folder / study.name
            shutil.copytree(study, copy)
            (copy / "report.md").unlink()
            jobs.append((command, arguments.split(), str(copy)))
        result = subprocess.run(
            [sys.executable, "-c", _REDRAW, json.dumps(jobs)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        for study, (page, _, _) in _STUDIES.items():
            with self.subTest(study.name):
                redrawn = folder / study.name / "report.md"
                self.assertEqual(redrawn.read_text("utf-8"), page)

    def test_ranks_are_those_of_their_trainings(self):
        folder = _ROOT / "docs" / "results" / "search_rank"
        result = json.loads((folder / "search_rank.json").read_text("utf-8"))
        losses = np.array([entry["loss"] for entry in result["random"]])
        rows = []
        for name, found in result["found"].items():
            own = [entry["loss"] for entry in found]
            ranks = ", ".join(str(1 + np.sum(losses < loss)) for loss in own)
            ends = [entry["in_the_search"] for entry in found]
            end = "-"
            if None not in ends:
                end = _mean([100 * scores["accuracy"] for scores in ends], 1)
            rows.append(f"| {name} | {ranks} | {_mean(own, 3)} | {end} |")
        page = (folder / "report.md").read_text("utf-8")
        self.assertEqual(
            re.findall(r"^\| (?:search|post).*$", page, re.M), rows
        )


def _mean(numbers, digits):
    """As the tables of the studies have it."""
    return (
        f"{np.mean(numbers):.{digits}f} ± {np.std(numbers, ddof=1):.{digits}f}"
    )


if __name__ == "__main__":
    absltest.main()
