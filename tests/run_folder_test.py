import os
import pathlib
from unittest import mock

import keras
from absl.testing import absltest

from fliqs_tf.config import SearchConfig
from fliqs_tf.config import TrainConfig
from fliqs_tf.files import read_json
from fliqs_tf.run_folder import RunFolder


class RunFolderTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path) / "run"
        self.config = TrainConfig(run_dir=str(self.root))

    def test_is_created_when_asked_only(self):
        folder = RunFolder(self.config)
        self.assertFalse(self.root.exists())
        folder.create()
        self.assertEqual(read_json(folder.config), self.config.to_dict())
        self.assertTrue(folder.plots.is_dir())

    def test_the_same_run_is_let_in(self):
        RunFolder(self.config).create()
        RunFolder(self.config).create()

    def test_another_run_is_refused_by_name_of_what_differs(self):
        RunFolder(self.config).create()
        other = TrainConfig(run_dir=str(self.root), seed=3)
        with self.assertRaisesRegex(ValueError, r"seed=3 \(there: 0\)"):
            RunFolder(other)

    def test_a_folder_of_other_files_is_refused(self):
        self.root.mkdir()
        (self.root / "thesis.tex").touch()
        with self.assertRaisesRegex(ValueError, "Received: run_dir=.*other"):
            RunFolder(self.config)

    def test_a_run_of_another_kind_is_told_by_its_kind(self):
        RunFolder(self.config).create()
        other = SearchConfig(run_dir=str(self.root))
        with self.assertRaisesRegex(
            ValueError,
            r"run: kind='SearchConfig' \(there: 'TrainConfig'\)\. Choose",
        ):
            RunFolder(other)

    def test_a_configuration_of_something_else_is_refused(self):
        self.root.mkdir()
        (self.root / "config.json").write_text("[]", "utf-8")
        with self.assertRaisesRegex(ValueError, "Received: run_dir=.*other"):
            RunFolder(self.config)

    def test_an_empty_folder_is_taken(self):
        self.root.mkdir()
        RunFolder(self.config).create()

    def test_a_run_that_was_stopped_at_once_is_let_in(self):
        for name in ("mkdir", "replace"):
            with mock.patch.object(os, name, side_effect=KeyboardInterrupt):
                with self.assertRaises(KeyboardInterrupt):
                    RunFolder(self.config).create()
        self.assertEqual(os.listdir(self.root), ["config.json.partial"])
        RunFolder(self.config).create()
        self.assertIn("plots", os.listdir(self.root))
        self.assertNotIn("config.json.partial", os.listdir(self.root))

    def test_a_file_is_refused(self):
        self.root.touch()
        with self.assertRaisesRegex(ValueError, "Received: run_dir=.*file"):
            RunFolder(self.config)

    def test_saves_a_model_whole(self):
        folder = RunFolder(self.config)
        folder.create()
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        folder.save_model(model)
        loaded = keras.models.load_model(folder.model)
        self.assertAllClose(loaded, model)
        self.assertEmpty(list(self.root.glob("*partial*")))

    def assertAllClose(self, one, other):
        for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
            self.assertEqual(a.tolist(), b.tolist())


if __name__ == "__main__":
    absltest.main()
