"""Holds the code to BUILD: who may import what, and what an import may do.

A file may import from the libraries its own library lists in `deps`, from
theirs, and from files that stand before it in its own `srcs`.
"""

import ast
import fnmatch
import functools
import json
import pathlib
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# Folder in the checkout -> where it is imported from.
_FOLDERS = {
    "fliqs_tf": "fliqs_tf",
    "models": "fliqs_tf/models",
    "flags": "fliqs_tf/flags",
}
_LINE_LIMIT = 500

_TFDS_FILES = ("fliqs_tf/datasets.py", "fliqs_tf/digits.py")
_EXPORT_FILES = ("fliqs_tf/export/*",)
# Package -> the files that may import it. Packages not named are free.
_ONLY_IN = {
    "absl.flags": ("fliqs_tf/flags/*", "fliqs_tf/bin/*"),
    "ai_edge_litert": _EXPORT_FILES,
    "ai_edge_quantizer": _EXPORT_FILES,
    "keras.src": (),
    "matplotlib": ("fliqs_tf/plots.py",),
    "rich": ("fliqs_tf/report.py", "fliqs_tf/bin/*"),
    "sklearn": ("fliqs_tf/digits.py",),
    "tensorflow": (
        "fliqs_tf/augmentations.py",
        "fliqs_tf/baselines/*",
        "fliqs_tf/batches.py",
        "fliqs_tf/bin/*",
        "fliqs_tf/callbacks.py",
        "fliqs_tf/datasets.py",
        "fliqs_tf/fusion.py",
        "fliqs_tf/layers/calibration.py",
        "fliqs_tf/preprocessing.py",
        "fliqs_tf/recalibrate.py",
        "fliqs_tf/search_model.py",
        "fliqs_tf/search_run.py",
        "fliqs_tf/tfmot.py",
        *_EXPORT_FILES,
    ),
    "tensorflow_datasets": _TFDS_FILES,
    "tensorflow_model_optimization": ("fliqs_tf/tfmot.py",),
    "tf_keras": ("fliqs_tf/tfmot.py",),
}
# What the library `values` must do without.
_NOT_IN_VALUES = ("keras", "tensorflow")


def read_sources():
    """Returns import path (`fliqs_tf/...`) -> text of every source file."""
    sources = {}
    for folder, target in _FOLDERS.items():
        # rglob does not follow the two links: no file comes twice.
        for path in (_ROOT / folder).rglob("*.py"):
            relative = path.relative_to(_ROOT / folder).as_posix()
            sources[f"{target}/{relative}"] = path.read_text("utf-8")
    return sources


def parse_build(text):
    """Returns library name -> (srcs, deps), in the order of the file."""
    libraries = {}
    for statement in ast.parse(text).body:
        call = getattr(statement, "value", None)
        if not isinstance(call, ast.Call) or call.func.id != "py_library":
            continue
        fields = {keyword.arg: keyword.value for keyword in call.keywords}
        if "testonly" in fields:
            continue
        libraries[ast.literal_eval(fields["name"])] = tuple(
            ast.literal_eval(fields[key]) if key in fields else []
            for key in ("srcs", "deps")
        )
    return libraries


@functools.cache
def imported_names(text):
    """Returns a list of (line, dotted name, imported attribute or None)."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(node.lineno, module, alias.name) for alias in node.names]
    return found


def find_violations(sources, build):
    """Returns one line of text for everything that BUILD does not allow."""
    libraries = parse_build(build)
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): (
            path
        )
        for path in sources
    }
    violations = []
    homes = {}
    reachable = {}
    for name, (srcs, deps) in libraries.items():
        reachable[name] = set()
        for dependency in (label.removeprefix(":") for label in deps):
            if dependency not in reachable or dependency == name:
                violations.append(f"BUILD: {name} stands below {dependency}")
                continue
            reachable[name] |= reachable[dependency]
            reachable[name] |= set(libraries[dependency][0])
        for index, source in enumerate(srcs):
            if source not in sources:
                violations.append(f"BUILD: {name} lists {source}: no such file")
            if source in homes:
                violations.append(f"BUILD: {source} is in two libraries")
            homes[source] = (name, set(srcs[:index]))

    for path, text in sorted(sources.items()):
        if path not in homes:
            violations.append(f"{path}: in no library of BUILD")
            continue
        library, before = homes[path]
        for line, module, attribute in imported_names(text):
            full = f"{module}.{attribute}" if attribute else module
            where = f"{path}:{line}"
            if module.startswith("."):
                violations.append(f"{where}: relative import of {full}")
            elif module.split(".")[0] in ("models", "flags"):
                violations.append(f"{where}: {full} without fliqs_tf")
            elif module.split(".")[0] == "fliqs_tf":
                target = modules.get(full) or modules.get(module)
                if target is None:
                    violations.append(f"{where}: {full} is no module")
                elif target not in reachable[library] | before:
                    violations.append(
                        f"{where}: {library} may not import {target}"
                    )
            else:
                violations += [
                    f"{where}: may not import {package}"
                    for package in _banned(path, library)
                    if f"{full}.".startswith(f"{package}.")
                ]
    return violations


def _banned(path, library):
    """Returns the foreign packages that a file may not import."""
    banned = {
        package
        for package, patterns in _ONLY_IN.items()
        if not any(fnmatch.fnmatch(path, pattern) for pattern in patterns)
    }
    return banned | set(_NOT_IN_VALUES if library == "values" else ())


@functools.cache
def _after_import(statement):
    """Returns what a fresh process holds after one import statement."""
    code = (
        f"{statement}\n"
        "import json, os, sys\n"
        "from absl import flags\n"
        "print(json.dumps({'flags': sorted(flags.FLAGS),\n"
        "    'environment': dict(os.environ), 'modules': list(sys.modules)}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


class BuildTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.sources = read_sources()
        self.build = (_ROOT / "BUILD").read_text("utf-8")

    def _planted(self, path, text):
        """Returns what is reported because of one added or changed file."""
        planted = find_violations({**self.sources, path: text}, self.build)
        present = find_violations(self.sources, self.build)
        return [line for line in planted if line not in present]

    def test_the_code_keeps_to_build(self):
        violations = find_violations(self.sources, self.build)
        self.assertEmpty(violations, "\n".join(violations))

    @parameterized.parameters(
        "from fliqs_tf import costs",
        "from fliqs_tf import get_format",
        "from fliqs_tf.costs import get",
        "import fliqs_tf",
        "import fliqs_tf as fliqs",
        "import fliqs_tf.layers.conv",
        "from fliqs_tf.layers import Conv2D",
        "def late():\n    from fliqs_tf import quantizers",
        "from fliqs_tf import rewards",  # Same floor, but listed later.
        "from fliqs_tf import numerics",  # Itself.
        "from fliqs_tf.nowhere import thing",
        "from . import formats",
        "from .formats import get_format",
        "import models",
        "from flags import search_flags",
        "import tensorflow as tf",
        "from tensorflow import math",
        "import tensorflow.math",
        "import tensorflow_model_optimization as tfmot",
        "import tf_keras",
        "from keras.src import ops",
        "from absl import flags",
        "import matplotlib.pyplot as plt",
    )
    def test_planted_import_is_reported(self, statement):
        found = self._planted("fliqs_tf/numerics.py", statement)
        self.assertLen(found, 1)
        self.assertStartsWith(found[0], "fliqs_tf/numerics.py:")

    @parameterized.parameters(
        "from fliqs_tf import formats",
        "from fliqs_tf.formats import get_format",
        "import fliqs_tf.space",
        "import keras",
        "from absl import logging",
        "import numpy as np",
    )
    def test_import_from_a_lower_floor_is_allowed(self, statement):
        self.assertEmpty(self._planted("fliqs_tf/numerics.py", statement))

    def test_planted_keras_in_values_is_reported(self):
        self.assertEqual(
            self._planted("fliqs_tf/formats.py", "import keras"),
            ["fliqs_tf/formats.py:1: may not import keras"],
        )

    @parameterized.parameters(
        "fliqs_tf/new.py", "fliqs_tf/models/new.py", "fliqs_tf/flags/new.py"
    )
    def test_planted_unlisted_file_is_reported(self, path):
        self.assertEqual(
            self._planted(path, ""), [f"{path}: in no library of BUILD"]
        )

    def test_planted_faults_in_build_are_reported(self):
        build = """
py_library(name = "low", srcs = ["a.py", "gone.py"], deps = [":high"])
py_library(name = "high", srcs = ["a.py"], deps = [":low"])
"""
        self.assertEqual(
            find_violations({"a.py": ""}, build),
            [
                "BUILD: low stands below high",
                "BUILD: low lists gone.py: no such file",
                "BUILD: a.py is in two libraries",
            ],
        )

    @parameterized.parameters("models", "flags")
    def test_folder_is_linked_into_the_package(self, folder):
        link = _ROOT / "fliqs_tf" / folder
        self.assertTrue(link.is_symlink(), f"{link}: see CONTRIBUTING.md")
        self.assertEqual(link.readlink(), pathlib.Path("..", folder))


class ImportTest(absltest.TestCase):
    """What `import fliqs_tf` does, beside what TensorFlow and Keras do."""

    def setUp(self):
        super().setUp()
        self.before = _after_import("import tensorflow, keras")
        self.after = _after_import("import fliqs_tf")

    def test_defines_no_flag(self):
        self.assertEmpty(set(self.after["flags"]) - set(self.before["flags"]))

    def test_changes_no_environment_variable(self):
        self.assertEqual(self.after["environment"], self.before["environment"])

    def test_loads_no_heavy_package(self):
        # Keras itself loads Matplotlib where it is installed, hence "added".
        added = set(self.after["modules"]) - set(self.before["modules"])
        packages = {module.split(".")[0] for module in added}
        heavy = {
            "ai_edge_quantizer",
            "matplotlib",
            "sklearn",
            "tensorflow_datasets",
            "tensorflow_model_optimization",
            "tf_keras",
        }
        self.assertEmpty(packages & heavy)
        self.assertNotIn("fliqs_tf.flags", added)


class FilesTest(absltest.TestCase):
    def test_no_file_is_too_long(self):
        folders = [*_FOLDERS, "tests", "benchmarks"]
        lines = {
            path: len(path.read_text("utf-8").splitlines())
            for folder in folders
            for path in (_ROOT / folder).rglob("*.py")
        }
        self.assertEmpty(
            {path: n for path, n in lines.items() if n > _LINE_LIMIT}
        )

    def test_every_file_with_tests_is_collected(self):
        """Tests elsewhere than in `*_test.py` would never run.

        `*_contract.py` holds tests that test files inherit.
        """
        lost = [
            path
            for path in (_ROOT / "tests").rglob("*.py")
            if not path.name.endswith(("_test.py", "_contract.py"))
            and any(
                isinstance(node, ast.FunctionDef)
                and node.name.startswith("test")
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
            )
        ]
        self.assertEmpty(lost)


if __name__ == "__main__":
    absltest.main()
