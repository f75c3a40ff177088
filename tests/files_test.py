import json
import os
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import files


class FilesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.path = os.path.join(self.folder, "data.json")

    def test_reads_what_it_wrote(self):
        data = {"accuracy": 0.5, "name": "Größe", "none": None, "list": [1]}
        files.write_json(self.path, data)
        self.assertEqual(files.read_json(self.path), data)

    def test_what_json_cannot_say_is_null(self):
        data = {"a": [float("inf"), 1.0], "b": ({"c": float("nan")}, 2)}
        files.write_json(self.path, data)
        with open(self.path, encoding="utf-8") as file:
            text = file.read()
        self.assertEqual(
            json.loads(text), {"a": [None, 1.0], "b": [{"c": None}, 2]}
        )

    def test_data_that_is_no_json_leaves_the_old_file(self):
        files.write_json(self.path, {"old": 1})
        with self.assertRaises(TypeError):
            files.write_json(self.path, {"new": object()})
        self.assertEqual(files.read_json(self.path), {"old": 1})

    @parameterized.parameters('{"a": [1, ', "", "\x00")
    def test_a_file_that_is_no_json_is_named(self, text):
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(text)
        with self.assertRaisesRegex(ValueError, "Received: .*data.json"):
            files.read_json(self.path)

    def test_a_stop_before_the_rename_leaves_the_old_file(self):
        files.write_text(self.path, "old")
        with mock.patch.object(os, "replace", side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                files.write_text(self.path, "new")
        with open(self.path, encoding="utf-8") as file:
            self.assertEqual(file.read(), "old")


if __name__ == "__main__":
    absltest.main()
