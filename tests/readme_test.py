"""The README's Python runs as it is printed, but for fewer epochs."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[1]


class ReadmeTest(absltest.TestCase):
    def test_example_runs(self):
        text = (_ROOT / "README.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        self.assertEqual(code.count("epochs=20"), 1)
        code = code.replace("epochs=20", "epochs=2")
        with tempfile.TemporaryDirectory() as folder:
            result = subprocess.run(
                [sys.executable, "-c", code],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
            self.assertEqual(result.returncode, 0, result.stderr[-3000:])
            self.assertIn("Assignment({'stem': ", result.stdout)
            self.assertIn("0 deviate", result.stdout)
            self.assertGreater(
                (pathlib.Path(folder) / "model.tflite").stat().st_size, 0
            )


if __name__ == "__main__":
    absltest.main()
