"""The search: files, interruptions, and what it refuses."""

import json
import os
import tempfile

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from tests.search_cases import SearchTestCase
from tests.search_cases import StopAfter
from tests.search_cases import make_data
from tests.search_cases import make_model
from tests.search_cases import make_search


class Crash(RuntimeError):
    pass


class CrashAt(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise Crash


class SavingTest(SearchTestCase):
    def _half_done(self, dropout=0.3):
        search = make_search(model=make_model(dropout=dropout))
        search.fit(
            make_data(),
            epochs=4,
            verbose=0,
            callbacks=[StopAfter(2)],
        )
        self.assertEqual(int(search.step), 8)
        self.assertEqual(int(search.frozen), 0)
        return search

    def _reload(self, search):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "search.keras")
            search.save(path)
            return keras.models.load_model(path)

    def test_file_restores_the_whole_search(self):
        search = self._half_done()
        search.optimizer.learning_rate = 0.003
        search.controller.optimizer.learning_rate = 0.03
        loaded = self._reload(search)
        self.assertIsInstance(loaded, fliqs.SearchModel)
        self.assert_same_state(loaded, search)
        # A file knows lists only.
        self.assertEqual(
            json.loads(json.dumps(loaded.get_config())),
            json.loads(json.dumps(search.get_config())),
        )
        self.assertEqual(
            loaded.controller.get_config(), search.controller.get_config()
        )
        for one, other in (
            (loaded.optimizer, search.optimizer),
            (loaded.controller.optimizer, search.controller.optimizer),
        ):
            self.assertIs(type(one), type(other))
            self.assertEqual(
                float(one.learning_rate), float(other.learning_rate)
            )
            self.assertGreater(int(one.iterations), 0)
        self.assertEqual(loaded.decisions, search.decisions)
        self.assertEqual(loaded.budget.target, search.budget.target)
        self.assertEqual(loaded.assignment(), search.assignment())
        data = make_data()
        np.testing.assert_array_equal(
            loaded.predict(data, verbose=0), search.predict(data, verbose=0)
        )
        self.assertEqual(
            loaded.evaluate(data, verbose=0), search.evaluate(data, verbose=0)
        )

    def test_loaded_search_goes_on_exactly(self):
        search = self._half_done()
        loaded = self._reload(search)
        for one in (search, loaded):
            one.stop_training = False
            one.fit(make_data(), initial_epoch=2, epochs=4, verbose=0)
        self.assertEqual(int(loaded.frozen), 1)
        self.assert_same_state(loaded, search)

    def test_file_of_a_finished_search(self):
        search = make_search()
        search.fit(make_data(), epochs=2, verbose=0)
        loaded = self._reload(search)
        self.assertEqual(int(loaded.frozen), 1)
        self.assertEqual(loaded.assignment(), search.assignment())

    def test_interrupted_run_resumes_exactly(self):
        def run(*callbacks):
            keras.backend.clear_session(free_memory=False)
            search = make_search(model=make_model(dropout=0.3))
            try:
                search.fit(
                    make_data(),
                    epochs=4,
                    verbose=0,
                    callbacks=[*callbacks],
                )
            except Crash:
                return None
            return search

        expected = run()
        with tempfile.TemporaryDirectory() as folder:
            # In the search, and again in the epoch of the freeze.
            for at in ((1, 2), (3, 2)):
                crashed = run(
                    keras.callbacks.BackupAndRestore(folder), CrashAt(*at)
                )
                self.assertIsNone(crashed)
            resumed = run(keras.callbacks.BackupAndRestore(folder))
        self.assertEqual(int(resumed.step), 16)
        self.assert_same_state(resumed, expected)

    def test_same_seed_gives_the_same_run(self):
        found = []
        for _ in range(2):
            keras.backend.clear_session(free_memory=False)
            search = make_search(seed=5)
            search.fit(make_data(), epochs=2, verbose=0)
            found.append(search)
        self.assert_same_state(*found)


class ErrorsTest(SearchTestCase):
    def test_unknown_number_of_steps(self):
        data = make_data().filter(lambda x, y: True)
        search = make_search()
        with self.assertRaisesRegex(ValueError, "steps_per_epoch"):
            search.fit(data, epochs=2, verbose=0)
        search.fit(data.repeat(), steps_per_epoch=4, epochs=2, verbose=0)
        self.assertEqual(int(search.frozen), 1)

    @parameterized.parameters(1, 4)
    def test_nan_in_the_data(self, steps):
        def poison(number, batch):
            x, y = batch
            return tf.where(number == 2, np.nan, x), y

        search = make_search(compile_with={"steps_per_execution": steps})
        with self.assertRaisesRegex(FloatingPointError, "Received: loss=nan"):
            search.fit(
                make_data().enumerate().map(poison),
                epochs=2,
                verbose=0,
            )

    def test_target_that_is_none(self):
        texts = ("0", "-1", "abc", "nan", "inf", "0xint4", "1.5xint99", "x", "")
        model = make_model()
        for target in (*texts, 0, -1.0, float("nan")):
            with self.subTest(repr(target)):
                with self.assertRaisesRegex(ValueError, "Received"):
                    make_search(cost_target=target, model=model)

    def test_target_out_of_reach(self):
        model = make_model()
        for target in ("0.99xint4", "1.01xint8", 1e-9, 1e9):
            with self.subTest(repr(target)):
                with self.assertRaises(ValueError) as context:
                    make_search(cost_target=target, model=model)
                # (576 + 576 + 48) MACs at 16 and at 64.
                self.assertIn("1.92e-05", str(context.exception))
                self.assertIn("7.68e-05", str(context.exception))

    def test_bad_argument(self):
        model = make_model()
        for arguments in (
            {"quality": "f1"},
            {"beta": -1.0},
            {"beta": float("nan")},
            {"reward": "linear"},
            {"reward": "soft_exponential"},
            {"cost": "energy"},
            {"space": None},
            {"space": "int_xl"},
            {"rules": [fliqs.Rule(path="nothing")]},
        ):
            with self.subTest(**arguments):
                with self.assertRaisesRegex(ValueError, "Received"):
                    make_search(**{"model": model, **arguments})

    def test_cost_samples_need_a_sum(self):
        with self.assertRaisesRegex(ValueError, "Received: reward="):
            make_search(
                reward="soft_exponential",
                quality="accuracy",
                controller=fliqs.Controller(cost_samples=4),
            )


if __name__ == "__main__":
    absltest.main()
