"""Assignments as values and as files."""

import json
import os
import pathlib
import tempfile
from unittest import mock

import keras
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs

_GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"


def make_model():
    inner = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Conv2D(2, 1, name="conv"),
            keras.layers.ReLU(),
        ],
        name="block",
    )
    x = keras.Input((6, 6, 1))
    y = keras.layers.Conv2D(2, 3, name="stem")(x)
    y = keras.layers.Flatten()(inner(y))
    return keras.Model(x, keras.layers.Dense(3, name="head")(y), name="outer")


class AssignmentTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = os.path.join(self.folder, "assignment.json")

    def test_is_an_ordered_mapping(self):
        found = fliqs.Assignment({"z": "int8", "a": "e2m1", "m": "int4"})
        self.assertEqual(list(found), ["z", "a", "m"])
        self.assertLen(found, 3)
        self.assertEqual(found["a"], "e2m1")
        self.assertIn("m", found)
        self.assertEqual(found, {"z": "int8", "a": "e2m1", "m": "int4"})
        self.assertEqual(found, fliqs.Assignment(found))
        self.assertEqual(eval(repr(found), {"Assignment": fliqs.Assignment}),
                         found)  # fmt: skip
        with self.assertRaises(TypeError):
            found["a"] = "int4"
        self.assertEmpty(fliqs.Assignment())

    def test_changing_the_dictionary_afterwards_changes_nothing(self):
        given = {"a": {"weight": "int4", "input": "int8"}}
        found = fliqs.Assignment(given)
        given["a"]["weight"] = "int8"
        given["b"] = "int4"
        self.assertEqual(found.formats("a"), ("int4", "int8"))
        self.assertLen(found, 1)

    def test_both_forms_of_an_entry(self):
        found = fliqs.Assignment(
            {
                "one": "int4",
                "two": {"weight": "int4", "input": "e4m3"},
                "none": {"weight": "int4", "input": None},
                "same": {"weight": "int5", "input": "int5"},
            }
        )
        self.assertEqual(found.formats("one"), ("int4", "int4"))
        self.assertEqual(found.formats("two"), ("int4", "e4m3"))
        self.assertEqual(found.formats("none"), ("int4", None))
        # The shorter form says the same.
        self.assertEqual(found["same"], "int5")

    def test_impossible_entry(self):
        for entry in (
            *("int9", "", None, 4, ["int4"], {}),
            {"weight": "int4"},
            {"weight": None, "input": "int4"},
            {"weight": None, "input": None},
            {"weight": "int4", "input": "int4", "width": 1},
            {"weight": "int9", "input": None},
            {"weight": "int4", "input": "x"},
        ):
            with self.subTest(repr(entry)):
                with self.assertRaisesRegex(ValueError, "Received"):
                    fliqs.Assignment({"a": entry})

    def test_file_round_trip(self):
        found = fliqs.Assignment(
            {
                "z": "int8",
                "a/b": {"weight": "int4", "input": None},
                "m": {"weight": "e2m1", "input": "int8"},
            }
        )
        found.save(self.path)
        loaded = fliqs.Assignment.load(pathlib.Path(self.path))
        self.assertEqual(loaded, found)
        self.assertEqual(list(loaded), list(found))
        with open(self.path, encoding="utf-8") as file:
            self.assertEqual(json.load(file)["version"], 1)
        self.assertEqual(os.listdir(self.folder), ["assignment.json"])

    def test_failed_save_leaves_the_old_file(self):
        fliqs.Assignment({"a": "int4"}).save(self.path)
        with mock.patch("os.replace", side_effect=OSError("full")):
            with self.assertRaises(OSError):
                fliqs.Assignment({"a": "int8"}).save(self.path)
        self.assertEqual(fliqs.Assignment.load(self.path), {"a": "int4"})

    def test_golden_file_of_version_1(self):
        found = fliqs.Assignment.load(_GOLDEN / "assignment_v1.json")
        self.assertEqual(list(found), ["stem", "block/conv", "head"])
        self.assertEqual(found.formats("stem"), ("int8", "int8"))
        self.assertEqual(found.formats("block/conv"), ("int4", "e4m3"))
        self.assertEqual(found.formats("head"), ("int5", None))
        # And a model of that time is still given these formats.
        model = fliqs.to_fixed(make_model(), found)
        layer = model.get_layer("block").get_layer("conv")
        self.assertEqual(layer.formats, ("int4",))
        self.assertEqual(layer.input_quantizer.formats, ("e4m3",))
        # Saving it again writes the same.
        found.save(self.path)
        with open(self.path, encoding="utf-8") as file:
            self.assertEqual(
                file.read(), (_GOLDEN / "assignment_v1.json").read_text("utf-8")
            )

    @parameterized.parameters(
        '{"version": 2, "layers": {}}', '{"layers": {}}', "[]", "4", "", "{",
        '{"version": 1, "layers": {"a": "int9"}}',
    )  # fmt: skip
    def test_other_files_are_refused(self, text):
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(text)
        with self.assertRaisesRegex(ValueError, "Received"):
            fliqs.Assignment.load(self.path)

    def test_missing_file(self):
        with self.assertRaises(FileNotFoundError):
            fliqs.Assignment.load(self.path)

    def test_uniform(self):
        model = make_model()
        paths = ["stem", "block/conv", "head"]
        searchable = fliqs.to_searchable(model, "int_s")
        fixed = fliqs.to_fixed(model, dict.fromkeys(paths, "int8"))
        for one in (model, searchable, fixed):
            found = fliqs.Assignment.uniform(one, "e2m1")
            self.assertEqual(list(found.items()), [(p, "e2m1") for p in paths])
            self.assertEqual(
                fliqs.Assignment.uniform(one, fliqs.get_format("e2m1")), found
            )
        with self.assertRaisesRegex(ValueError, "Received: 'int9'"):
            fliqs.Assignment.uniform(model, "int9")

    def test_uniform_of_what_rules_left(self):
        """A uniform assignment is one that the model takes."""
        searchable = fliqs.to_searchable(
            make_model(), "int_s", rules=[fliqs.Rule(path="head")]
        )
        found = fliqs.Assignment.uniform(searchable, "int4")
        fixed = fliqs.to_fixed(searchable, found)
        self.assertIsInstance(fixed.get_layer("stem"), fliqs.layers.Conv2D)


if __name__ == "__main__":
    absltest.main()
