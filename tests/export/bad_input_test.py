"""What both exporters do when they cannot do what they were asked to."""

import errno
import os
import pathlib
from unittest import mock

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import export_onnx
from fliqs_tf.export import export_tflite
from fliqs_tf.export import modes
from tests.export import small_models

_EXPORTS = (export_tflite, export_onnx)


class _BadInputTestCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)
        self.path = self.folder / "model"
        self.model = keras.Sequential(
            [keras.Input((4,), name="x"), keras.layers.Dense(2, name="dense")]
        )

    def assert_only(self, content):
        self.assertEqual(os.listdir(self.folder), ["model"])
        self.assertEqual(self.path.read_bytes(), content)


class DiskTest(_BadInputTestCase):
    @parameterized.product(export=_EXPORTS, number=(1, 2))
    def test_disk_that_fills_up(self, export, number):
        """At the file's first writing, and at that with the metadata."""
        self.path.write_bytes(b"older")
        write_bytes = pathlib.Path.write_bytes
        calls = []

        def fill(path, content):
            calls.append(path)
            if len(calls) < number:
                return write_bytes(path, content)
            # What fits is there, as on a real disk.
            write_bytes(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with (
            mock.patch.object(pathlib.Path, "write_bytes", fill),
            self.assertRaisesRegex(
                OSError,
                r"must fit on the disk.*Received: path='.*model' \(No space "
                r"left on device\) for [\d,]+ bytes. Free some room",
            ) as caught,
        ):
            export(self.model, self.path)
        self.assertEqual(caught.exception.errno, errno.ENOSPC)
        self.assertLen(calls, number)
        self.assert_only(b"older")

    @parameterized.parameters(*_EXPORTS)
    def test_folder_that_cannot_be_written(self, export):
        refusal = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with (
            mock.patch("os.open", side_effect=refusal),
            self.assertRaisesRegex(
                ValueError, r"can be written.*\(Permission denied\)"
            ),
        ):
            export(self.model, self.path)
        self.assertEmpty(os.listdir(self.folder))

    @parameterized.parameters(*_EXPORTS)
    def test_path_that_is_a_folder_or_in_none(self, export):
        with self.assertRaisesRegex(ValueError, "Received: path='.*a folder"):
            export(self.model, self.folder)
        with self.assertRaisesRegex(ValueError, "in an existing folder"):
            export(self.model, self.folder / "none" / "model")

    @parameterized.parameters(*_EXPORTS)
    def test_others_may_read_the_file_as_any_other(self, export):
        export(self.model, self.path)
        beside = self.folder / "beside"
        beside.write_bytes(b"")
        self.assertEqual(self.path.stat().st_mode, beside.stat().st_mode)

    @parameterized.parameters(*_EXPORTS)
    def test_link_stays_a_link(self, export):
        (self.folder / "target").mkdir()
        target = self.folder / "target" / "file"
        target.write_bytes(b"older")
        self.path.symlink_to(target)
        export(self.model, self.path)
        self.assertEqual(self.path.readlink(), target)
        self.assertNotEqual(target.read_bytes(), b"older")
        self.assertEqual(os.listdir(target.parent), ["file"])
        self.assertCountEqual(os.listdir(self.folder), ["model", "target"])


class DataTest(_BadInputTestCase):
    @parameterized.product(
        export=_EXPORTS,
        case=(
            (np.zeros((0, 4)), "at least one sample. Received: none"),
            (np.zeros((3, 5)), r"shape \(None, 4\). Received: shape=\(3, 5\)"),
            (np.zeros(4), r"shape \(None, 4\). Received: shape=\(4,\)"),
            ([np.zeros((2, 4))] * 2, "one array for each.*Received: 2 arrays"),
            # Of which any file would be right.
            (np.full((3, 4), np.nan), "finite numbers. Received: 3 of 3 sam"),
            (np.diag([1, 1, 1, np.inf]), "finite numbers. Received: 1 of 4"),
        ),
    )
    def test_verify_data(self, export, case):
        data, message = case
        with self.assertRaisesRegex(ValueError, message):
            export(self.model, self.path, verify_data=data)
        self.assertEmpty(os.listdir(self.folder))

    @parameterized.parameters(*_EXPORTS)
    def test_model_without_a_finite_output(self, export):
        self.model.set_weights([np.full((4, 2), np.nan), np.zeros(2)])
        with self.assertRaisesRegex(ValueError, r"none in outputs \[0\]"):
            export(self.model, self.path)
        self.assertEmpty(os.listdir(self.folder))

    @parameterized.parameters(*_EXPORTS)
    def test_image_size_that_is_open(self, export):
        inputs = keras.Input((None, None, 3), name="image")
        x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
        x = keras.layers.GlobalAveragePooling2D()(x)
        images = small_models.images()
        model = keras.Model(inputs, keras.layers.Dense(2)(x))
        model = small_models.fixed(model, "int8", images)
        with self.assertRaisesRegex(ValueError, "open sizes.*verify_data"):
            export(model, self.path)
        report = export(model, self.path, verify_data=images)
        self.assertLess(report.max_relative_error, 2e-6)
        # Another size than it was measured with.
        report = export(model, self.path, verify_data=images[:, :6, :5])
        self.assertLess(report.max_relative_error, 2e-6)

    @parameterized.parameters(
        *[(export_tflite, mode) for mode in modes.ACTIVATIONS],
        (export_onnx, "float"),
    )
    def test_open_image_size_that_needs_a_least_one(self, export, activations):
        """A file's placeholders have the size 1, less than the kernel's 3."""
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3)(inputs)
        x = keras.layers.GlobalAveragePooling2D()(x)
        images = small_models.images()
        model = keras.Model(inputs, keras.layers.Dense(2)(x))
        model = small_models.fixed(model, "int8", images)
        report = export(model, self.path, activations, images)
        self.assertLess(report.verification.rms_error, 0.1)

    @parameterized.parameters(*_EXPORTS)
    def test_inputs_that_are_whole_numbers(self, export):
        inputs = keras.Input((3,), dtype="int32", name="words")
        x = keras.layers.Embedding(7, 4)(inputs)
        outputs = keras.layers.Dense(2)(keras.layers.Flatten()(x))
        data = np.arange(21).reshape(7, 3) % 7
        model = keras.Model(inputs, outputs)
        model = small_models.fixed(model, "int8", data)
        with self.assertRaisesRegex(ValueError, "'words' of dtype='int32'"):
            export(model, self.path)
        report = export(model, self.path, verify_data=data)
        self.assertLess(report.max_relative_error, 2e-6)

    @parameterized.parameters(*_EXPORTS)
    def test_inputs_that_are_strings(self, export):
        inputs = keras.Input((1,), dtype="string", name="text")
        outputs = keras.layers.Lambda(
            lambda x: keras.ops.ones((1, 2)), output_shape=(2,)
        )(inputs)
        with self.assertRaisesRegex(ValueError, "'text' of dtype='string'"):
            export(keras.Model(inputs, outputs), self.path)

    @parameterized.parameters(*_EXPORTS)
    def test_batch_size_that_is_fixed(self, export):
        inputs = keras.Input(batch_shape=(3, 4))
        model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
        with self.assertRaisesRegex(ValueError, r"batch dimension.*\(3, 4\)"):
            export(model, self.path)

    @parameterized.parameters(
        (export_tflite, "int8"), (export_onnx, "fake_quant")
    )
    def test_model_that_was_never_trained(self, export, activations):
        model = small_models.fixed(small_models.residual(), "int8")
        for variable in model.get_layer("down")._input_state.values():
            variable.assign(0.0)
        with self.assertRaisesRegex(
            ValueError, r"without data in \['down'\]. Train the model"
        ):
            export(model, self.path, activations)
        self.assertEmpty(os.listdir(self.folder))


if __name__ == "__main__":
    absltest.main()
