"""A run of a search: how long it is, and what callbacks and data do to it."""

import os
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf.search_run import inputs_of
from tests.search_cases import SearchTestCase
from tests.search_cases import StopAfter
from tests.search_cases import make_data
from tests.search_cases import make_search


class TraceTest(SearchTestCase):
    """A Python step runs only as it is traced."""

    def _traces(self, search, x, y):
        with mock.patch.object(
            search, "train_step", wraps=search.train_step
        ) as step:
            search.fit(x, y, epochs=2, verbose=0)
        return step.call_count

    def test_once_for_a_data_set(self):
        self.assertEqual(self._traces(make_search(), make_data(), None), 1)

    def test_once_for_arrays_and_a_chain_of_layers(self):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        search = make_search("int_s", model=model)
        x, y = np.ones((32, 4)), np.zeros(32)
        self.assertEqual(self._traces(search, x, y), 1)

    def test_once_for_several_losses(self):
        x = keras.Input((4,))
        model = keras.Model(
            x, {"a": keras.layers.Dense(1)(x), "b": keras.layers.Dense(2)(x)}
        )
        search = fliqs.SearchModel(model, "int_s", cost_target="1.5xint4")
        search.compile("adam", "mse", metrics={"a": ["mae"]})
        labels = {"a": np.zeros((8, 1)), "b": np.zeros((8, 2))}
        self.assertEqual(self._traces(search, np.ones((8, 4)), labels), 1)


class LengthTest(SearchTestCase):
    @parameterized.parameters(
        {"epochs": 3}, {"epochs": 5, "initial_epoch": 2}, {"epochs": 8}
    )
    @pytest.mark.one_in(3)
    def test_a_loaded_search_goes_on(self, **options):
        search = make_search()
        search.fit(make_data(), epochs=5, verbose=0, callbacks=[StopAfter(2)])
        path = os.path.join(self.create_tempdir(), "search.keras")
        search.save(path)
        loaded = keras.models.load_model(path)
        history = loaded.fit(make_data(), verbose=0, **options).history
        # 4 steps an epoch, 8 of them done.
        total = 8 + 4 * (options["epochs"] - options.get("initial_epoch", 0))
        self.assertEqual(int(loaded.total_steps), total)
        self.assertEqual(int(loaded.step), total)
        self.assertEqual(int(loaded.frozen), 1)
        # The freeze is in the last epoch, and not in its first.
        self.assertTrue(np.all(np.array(history["entropy"][:-1]) > 0))

    def test_best_weights_of_before_the_freeze(self):
        class Restore(keras.callbacks.Callback):
            """As `EarlyStopping(restore_best_weights=True)` does."""

            def on_epoch_end(self, epoch, logs=None):
                if epoch == 0:
                    self.best = self.model.get_weights()

            def on_train_end(self, logs=None):
                self.model.set_weights(self.best)

        search = make_search()
        with self.assertLogs("absl", level="WARNING") as logs:
            search.fit(make_data(), epochs=4, verbose=0, callbacks=[Restore()])
        self.assertIn("weights of step 4", logs.output[0])
        self.assertIn("start_from_epoch", logs.output[0])
        self.assertEqual(int(search.step), 16)
        self.assertEqual(int(search.frozen), 1)
        self.assert_kept_its_promise(search)
        self.assertEqual(
            [int(i) for i in search.most_probable()],
            [
                decision.options.index(search.assignment()[decision.path])
                for decision in search.decisions
            ],
        )

    def test_best_model_of_a_search_that_has_not_ended(self):
        search = make_search()
        search.fit(make_data(), epochs=4, verbose=0, callbacks=[StopAfter(2)])
        with self.assertLogs("absl", level="WARNING") as logs:
            search.best_model()
        self.assertIn("step 8 of 16", logs.output[0])


class StatisticsTest(SearchTestCase):
    @parameterized.parameters({"freeze": 0.5}, {"freeze": 1.0})
    @pytest.mark.one_in(2)
    def test_are_of_the_trained_weights(self, freeze):
        data = make_data()
        search = make_search(
            controller=fliqs.Controller(warmup=0.2, freeze=freeze),
            # Running ranges would see the data once more below.
            input_range="dynamic",
        )
        history = search.fit(
            data, epochs=4, verbose=0, validation_data=data
        ).history
        fixed = search.best_model()
        norm = fixed.get_layer("norm")
        kept = [v.numpy() for v in (norm.moving_mean, norm.moving_variance)]
        fixed.compile(loss=search.loss)
        loss = fixed.evaluate(data, verbose=0)
        self.assertAlmostEqual(history["val_loss"][-1], loss, places=5)
        fliqs.recalibrate(fixed, data)
        np.testing.assert_allclose(norm.moving_mean, kept[0], rtol=1e-4)
        np.testing.assert_allclose(norm.moving_variance, kept[1], rtol=1e-4)

    def test_a_generator_is_warned_of_once(self):
        def batches():
            while True:
                yield from make_data()

        search = make_search()
        with self.assertLogs("absl", level="WARNING") as logs:
            search.fit(batches(), steps_per_epoch=4, epochs=3, verbose=0)
        self.assertLen(logs.output, 1)
        self.assertIn("after the last step", logs.output[0])


class DataTest(SearchTestCase):
    def test_arrays_are_drawn_from_at_random(self):
        # Sorted, as class by class.
        x = np.arange(3200, dtype="float32")
        drawn = np.concatenate(list(inputs_of(x, 16).as_numpy_iterator()))
        self.assertLen(drawn, 50 * 16)
        self.assertLen(set(drawn), 50 * 16)
        # Of the first 800 the mean would be 400; the deviation is 28 of these.
        self.assertAlmostEqual(drawn.mean(), 1600, delta=4 * 28)

    @parameterized.parameters(list, tuple, dict)
    @pytest.mark.one_in(3)
    def test_several_inputs(self, kind):
        names = ("left", "right")
        rng = np.random.default_rng(0)
        arrays = [rng.normal(i, 1, (64, 3)).astype("float32") for i in (2, 5)]
        inputs = {name: keras.Input((3,), name=name) for name in names}
        x = keras.layers.Concatenate()(list(inputs.values()))
        x = keras.layers.BatchNormalization(momentum=0.999, name="norm")(x)
        x = keras.layers.Dense(2, name="head")(x)
        given = dict(zip(names, arrays, strict=True))
        if kind is not dict:
            inputs, given = kind(inputs.values()), kind(arrays)
        search = make_search(
            model=keras.Model(inputs, x), cost_target=None, metrics=()
        )
        y = np.zeros(64, "int32")
        with self.assertNoLogs("absl", level="WARNING"):
            search.fit(given, y, batch_size=16, epochs=4, verbose=0)
        norm = search.searchable_model.get_layer("norm")
        # Means over batches, that a momentum of 0.999 would have left near 0.
        np.testing.assert_allclose(
            norm.moving_mean,
            np.concatenate([a.mean(axis=0) for a in arrays]),
            rtol=1e-3,
        )

    @parameterized.parameters(False, True)
    @pytest.mark.one_in(2)
    def test_held_out_samples_leave_no_trace(self, positional):
        x, y = np.ones((32, 3), "float32"), np.zeros(32, "int32")
        found = []
        for shift in (0.0, 1e3):
            x[26:] += shift
            keras.utils.set_random_seed(0)
            model = keras.Sequential(
                [
                    keras.Input((3,)),
                    keras.layers.BatchNormalization(name="norm"),
                    keras.layers.Dense(2),
                ]
            )
            search = make_search(model=model, metrics=())
            if positional:
                search.fit(x, y, 8, 2, 0, [StopAfter(9)], 0.19)
            else:
                search.fit(
                    x, y, batch_size=8, epochs=2, verbose=0,
                    validation_split=0.19,
                )  # fmt: skip
            self.assertEqual(int(search.frozen), 1)
            found.append(search.searchable_model.get_layer("norm").moving_mean)
        np.testing.assert_allclose(found[0], [1.0] * 3, rtol=1e-6)
        np.testing.assert_array_equal(*found)

    def test_validation_data_stand_before_a_split(self):
        x = np.arange(20, dtype="float32")
        (kept,) = inputs_of(x, 32, held_out=0.25)
        self.assertCountEqual(kept.numpy(), range(15))
        # Keras then holds nothing out.
        x = np.ones((8, 3), "float32")
        x[4:] = 5.0
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.BatchNormalization(name="norm"),
             keras.layers.Dense(2)]
        )  # fmt: skip
        search = make_search(model=model, metrics=())
        y = np.zeros(8, "int32")
        search.fit(
            x, y, verbose=0, validation_split=0.5, validation_data=(x, y)
        )
        norm = search.searchable_model.get_layer("norm")
        np.testing.assert_allclose(norm.moving_mean, [3.0] * 3, rtol=1e-6)

    @parameterized.parameters(True, False)
    def test_what_is_read_once(self, norm):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        if norm:
            model.add(keras.layers.BatchNormalization())
        search = make_search(model=model, metrics=())

        def batches():
            while True:
                yield np.ones((8, 3), "float32"), np.zeros(8, "int32")

        def fit():
            search.fit(batches(), steps_per_epoch=2, epochs=2, verbose=0)

        if norm:
            with self.assertLogs("absl", level="WARNING") as logs:
                fit()
            self.assertIn("fliqs.recalibrate", logs.output[0])
        else:
            with self.assertNoLogs("absl", level="WARNING"):
                fit()
        self.assertEqual(int(search.frozen), 1)


class OutputsTest(SearchTestCase):
    def test_losses_by_the_names_of_outputs(self):
        inputs = keras.Input((4,))
        outputs = [
            keras.layers.Dense(3, name="kind")(inputs),
            keras.layers.Dense(1, name="size")(inputs),
        ]
        search = fliqs.SearchModel(keras.Model(inputs, outputs), "int_s")
        search.compile(
            loss={
                "kind": keras.losses.SparseCategoricalCrossentropy(True),
                "size": "mse",
            },
            metrics={"size": ["mae"]},
            loss_weights={"kind": 1.0, "size": 0.5},
        )
        x = tf.random.stateless_normal((16, 4), (0, 1))
        y = [np.zeros(16, "int32"), np.ones((16, 1), "float32")]
        history = search.fit(x, y, batch_size=8, epochs=2, verbose=0).history
        self.assertContainsSubset(
            {"loss", "kind_loss", "size_loss", "size_mae"}, history
        )
        np.testing.assert_allclose(
            history["loss"],
            np.array(history["kind_loss"])
            + 0.5 * np.array(history["size_loss"]),
            rtol=1e-5,
        )


if __name__ == "__main__":
    absltest.main()
