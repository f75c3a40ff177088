"""What a wheel holds, and that it works away from the checkout."""

import configparser
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def _run(*arguments, **options):
    """Runs the interpreter; a failure shows its output."""
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, **options
    )
    if result.returncode:
        raise AssertionError(f"{arguments}\n{result.stdout}\n{result.stderr}")
    return result.stdout


class MetadataTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.config = configparser.ConfigParser()
        self.config.read(_ROOT / "setup.cfg")

    def test_constraints_pin_every_requirement(self):
        extras = dict(self.config["options.extras_require"])
        lines = [self.config["options"]["install_requires"], *extras.values()]
        required = {
            re.match(r"[\w-]+", line).group().lower().replace("_", "-")
            for line in "\n".join(lines).splitlines()
            if line
        }
        pins = (_ROOT / "constraints.txt").read_text("utf-8").splitlines()
        pinned = {
            line.split("==")[0].lower().replace("_", "-")
            for line in pins
            if "==" in line
        }
        self.assertEmpty(required - pinned)

    def test_console_scripts_exist(self):
        scripts = self.config["options.entry_points"]["console_scripts"]
        for line in scripts.strip().splitlines():
            module, function = line.split("=")[1].strip().split(":")
            path = _ROOT / (module.replace(".", "/") + ".py")
            self.assertTrue(path.is_file(), f"{line}: {path} does not exist")
            self.assertRegex(path.read_text("utf-8"), rf"(?m)^def {function}\(")


class WheelTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        folder = pathlib.Path(temporary.name)
        # Built from a copy: a build writes into its source folder. The copy
        # keeps the links, as a clone does.
        source = folder / "source"
        _copy_tracked(source)
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
        pip = ["-m", "pip", "--disable-pip-version-check"]
        _run(*pip, "wheel", *options, f"--wheel-dir={folder}", str(source))
        (cls.wheel,) = folder.glob("*.whl")
        cls.installed = folder / "installed"
        _run(
            *[*pip, "install", "--no-deps", "--no-index", "--quiet"],
            *["--upgrade", f"--target={cls.installed}", str(cls.wheel)],
        )

    def test_only_one_top_level_name(self):
        with zipfile.ZipFile(self.wheel) as wheel:
            top = {name.split("/")[0] for name in wheel.namelist()}
        packages = {name for name in top if not name.endswith(".dist-info")}
        self.assertEqual(packages, {"fliqs_tf"})

    def test_holds_every_file_of_the_checkout(self):
        with zipfile.ZipFile(self.wheel) as wheel:
            names = set(wheel.namelist())
        expected = {"fliqs_tf/py.typed"}
        for path in _tracked():
            if path.suffix in (".py", ".flags"):
                for folder in ("models", "flags"):
                    if path.parts[0] == folder:
                        expected.add(f"fliqs_tf/{path.as_posix()}")
                if path.parts[0] == "fliqs_tf":
                    expected.add(path.as_posix())
        self.assertEmpty(expected - names)
        self.assertIn("fliqs_tf/models/__init__.py", expected)
        self.assertIn("fliqs_tf/flags/__init__.py", expected)

    def test_works_away_from_the_checkout(self):
        code = """
import importlib.resources, importlib.util, json
import fliqs_tf.models
presets = importlib.resources.files("fliqs_tf.flags") / "presets"
print(json.dumps({
    "models": fliqs_tf.models.__file__,
    "bare": [importlib.util.find_spec(n) is None for n in ("models", "flags")],
    "presets": sorted(p.name for p in presets.iterdir()),
}))
"""
        # -P: the current folder is no place to import from.
        output = _run(
            *["-P", "-c", code],
            cwd=self.create_tempdir().full_path,
            env={**os.environ, "PYTHONPATH": str(self.installed)},
        )
        found = json.loads(output.splitlines()[-1])
        self.assertEqual(
            found["models"], str(self.installed / "fliqs_tf/models/__init__.py")
        )
        self.assertEqual(found["bare"], [True, True])
        presets = [path.name for path in _tracked() if path.suffix == ".flags"]
        self.assertEqual(found["presets"], sorted(presets))
        self.assertIn("digits.flags", presets)


def _tracked():
    """Returns the relative paths that git has, or is about to have."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [pathlib.Path(line) for line in listed.stdout.splitlines()]
    return [path for path in paths if os.path.lexists(_ROOT / path)]


def _copy_tracked(target):
    for path in _tracked():
        destination = target / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        if (_ROOT / path).is_symlink():
            destination.symlink_to((_ROOT / path).readlink())
        else:
            destination.write_bytes((_ROOT / path).read_bytes())


if __name__ == "__main__":
    absltest.main()
