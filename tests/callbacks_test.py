import os
import pathlib
from unittest import mock

import h5py
import keras
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf import callbacks
from fliqs_tf import costs
from fliqs_tf.baselines.choice import Choice
from fliqs_tf.baselines.differentiable import MixtureModel
from fliqs_tf.files import read_json


def _model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", "mse", jit_compile=False)
    return model


def _fit(model, epochs, first=0, with_callbacks=()):
    x = np.arange(12.0).reshape(4, 3) / 12
    model.fit(
        *(x, x[:, :2]),
        initial_epoch=first,
        epochs=epochs,
        batch_size=2,
        shuffle=False,
        callbacks=list(with_callbacks),
        verbose=0,
    )


class BackupTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = pathlib.Path(self.create_tempdir().full_path)

    def test_goes_on_exactly(self):
        keras.utils.set_random_seed(1)
        whole = _model()
        start = whole.get_weights()
        _fit(whole, 5)

        first = _model()
        first.set_weights(start)
        _fit(first, 2, with_callbacks=[callbacks.Backup(self.folder)])
        second = _model()
        backup = callbacks.Backup(self.folder)
        epoch = backup.restore(second)
        self.assertEqual(epoch, 2)
        _fit(second, 5, epoch, [backup])
        for a, b in zip(whole.get_weights(), second.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        self.assertEqual(os.listdir(self.folder), ["epoch5.weights.h5"])

    @parameterized.parameters("dropout", "mixture")
    @pytest.mark.one_in(2)
    def test_random_numbers_go_on(self, kind):
        def make():
            keras.utils.set_random_seed(1)
            layers = [keras.Input((3,)), keras.layers.Dense(8)]
            if kind == "dropout":
                layers.append(keras.layers.Dropout(0.5))
            model = keras.Sequential([*layers, keras.layers.Dense(2)])
            if kind == "mixture":
                choice = Choice(
                    model, ("int2", "int8"), costs.get("bitops"), None
                )
                model = MixtureModel(choice, 10)
            model.compile("adam", "mse", jit_compile=False)
            return model

        whole = make()
        _fit(whole, 4)
        _fit(make(), 2, with_callbacks=[callbacks.Backup(self.folder)])
        resumed = make()
        _fit(resumed, 4, callbacks.Backup(self.folder).restore(resumed))
        for a, b in zip(
            whole.get_weights(), resumed.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(a, b)

    def test_random_numbers_of_a_search_are_stored_once(self):
        model = keras.Sequential(
            [
                keras.Input((3,)),
                keras.layers.Dropout(0.5),
                keras.layers.Dense(2),
            ]
        )
        search = fliqs.SearchModel(model, "int4,int8")
        search.compile("adam", "mse", jit_compile=False)
        _fit(search, 1, with_callbacks=[callbacks.Backup(self.folder)])
        with h5py.File(self.folder / "epoch1.weights.h5") as file:
            self.assertNotIn("random_states", file)

    def test_starts_at_the_beginning_without_a_state(self):
        backup = callbacks.Backup(self.folder / "new")
        self.assertEqual(backup.restore(_model()), 0)

    def test_a_stop_while_saving_leaves_the_state_before(self):
        backup = callbacks.Backup(self.folder)
        model = _model()
        _fit(model, 1, with_callbacks=[backup])
        with mock.patch.object(os, "replace", side_effect=KeyboardInterrupt):
            with self.assertRaises(KeyboardInterrupt):
                _fit(model, 2, 1, [backup])
        self.assertEqual(callbacks.Backup(self.folder).restore(_model()), 1)

    def test_a_state_that_is_broken_is_named(self):
        backup = callbacks.Backup(self.folder)
        _fit(_model(), 1, with_callbacks=[backup])
        (path,) = self.folder.glob("epoch1.weights.h5")
        path.write_bytes(path.read_bytes()[:3000])
        with self.assertRaisesRegex(OSError, "Received: .*epoch1.weights.h5"):
            backup.restore(_model())


class FiniteLossTest(absltest.TestCase):
    def test_stops_before_the_state_is_saved(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        backup = callbacks.Backup(folder)
        model = _model()
        _fit(model, 1, with_callbacks=[callbacks.FiniteLoss(), backup])
        model.set_weights([w * np.nan for w in model.get_weights()])
        with self.assertRaisesRegex(FloatingPointError, "Received: loss=nan"):
            _fit(model, 2, 1, [callbacks.FiniteLoss(), backup])
        self.assertEqual(backup.epoch(), 1)


class SearchHistoryTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.path = os.path.join(self.create_tempdir().full_path, "h.json")

    def test_keeps_epochs_before_a_restart_and_repeats_none(self):
        _fit(_model(), 3, with_callbacks=[callbacks.SearchHistory(self.path)])
        # Epoch 2 was recorded, but not saved: it is done again.
        recorder = callbacks.SearchHistory(self.path)
        _fit(_model(), 4, 2, [recorder])
        self.assertEqual([e["epoch"] for e in recorder.epochs], [0, 1, 2, 3])
        self.assertEqual(read_json(self.path), recorder.epochs)
        self.assertGreater(recorder.epochs[0]["seconds"], 0)

    def test_records_probabilities(self):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        search = fliqs.SearchModel(model, "int4,int8")
        search.compile("adam", "mse", jit_compile=False)
        recorder = callbacks.SearchHistory(self.path)
        _fit(search, 4, with_callbacks=[recorder])
        (first,) = recorder.epochs[0]["probabilities"].values()
        self.assertEqual(first, {"int4": 0.5, "int8": 0.5})
        (last,) = recorder.epochs[-1]["probabilities"].values()
        self.assertIn(last, ({"int4": 1, "int8": 0}, {"int4": 0, "int8": 1}))


if __name__ == "__main__":
    absltest.main()
