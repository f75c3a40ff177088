"""The search: what a run promises, and that it finds what was planted."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

import fliqs_tf as fliqs

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_STEPS = 4


def make_data(steps=_STEPS, batch_size=16):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps * batch_size, 6, 6, 1)).astype("float32")
    y = (x.mean((1, 2, 3)) > 0).astype("int32") + (x[:, 0, 0, 0] > 0.5)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)


def make_model(norm=True, dropout=0.0):
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 1))
    y = keras.layers.Conv2D(4, 3, name="stem")(x)
    if norm:
        y = keras.layers.BatchNormalization(name="norm")(y)
    y = keras.layers.ReLU()(y)
    if dropout:
        y = keras.layers.Dropout(dropout, seed=3)(y)
    y = keras.layers.Conv2D(4, 3, name="body")(y)
    y = keras.layers.Flatten()(y)
    return keras.Model(x, keras.layers.Dense(3, name="head")(y))


def make_search(
    space="int_l",
    cost_target="1.5xint4",
    controller=None,
    model=None,
    metrics=("accuracy",),
    compile_with=(),
    **kwargs,
):
    search = fliqs.SearchModel(
        model or make_model(), space, cost_target=cost_target, **kwargs
    )
    search.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        list(metrics),
        controller=controller
        or fliqs.Controller(
            keras.optimizers.Adam(0.05), warmup=0.2, activation_delay=0.1
        ),
        **dict(compile_with),
    )
    return search


def state_of(search):
    """Everything that a run hands from step to step."""
    variables = [
        *search.variables,
        *search.optimizer.variables,
        *search.controller.optimizer.variables,
    ]
    return [(v.name, ops.convert_to_numpy(v)) for v in variables]


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch + 1 == self.epoch


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


class SearchModelTestCase(parameterized.TestCase):
    def assert_same_state(self, one, other):
        one, other = state_of(one), state_of(other)
        self.assertEqual([name for name, _ in one], [n for n, _ in other])
        for (name, value), (_, expected) in zip(one, other, strict=True):
            np.testing.assert_array_equal(value, expected, err_msg=name)

    def assert_kept_its_promise(self, search):
        found = search.assignment()
        cost = search.cost(search.searchable_model, found)
        self.assertLessEqual(cost, search.budget.target * (1 + 1e-9))


class FitTest(SearchModelTestCase):
    def test_history_has_the_quantities_of_the_search(self):
        data = make_data()
        search = make_search()
        history = search.fit(
            data, validation_data=data, epochs=3, verbose=0
        ).history
        for key in ("reward", "cost", "cost_ratio", "entropy"):
            self.assertLen(history[key], 3)
            self.assertTrue(np.isfinite(history[key]).all())
        for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
            self.assertLen(history[key], 3)
        for prefix in ("", "val_"):
            np.testing.assert_allclose(
                np.array(history[prefix + "cost"]) / search.budget.target,
                history[prefix + "cost_ratio"],
                rtol=1e-5,
            )
        # A uniform policy over five formats.
        self.assertAlmostEqual(
            make_search().policy.entropy()[0], np.log(5), places=5
        )
        # After the freeze nothing is open, and the budget is kept.
        self.assertLessEqual(history["val_cost_ratio"][-1], 1 + 1e-6)
        self.assertNotIn("val_reward", history)
        self.assertNotIn("val_entropy", history)

    def test_reward_is_that_of_the_logged_loss_and_cost(self):
        # One step an epoch, so that the means are of one value.
        search = make_search(beta=0.5)
        history = search.fit(make_data(steps=1), epochs=5, verbose=0).history
        np.testing.assert_allclose(
            history["reward"],
            -np.array(history["loss"])
            - 0.5 * np.abs(1 - np.array(history["cost_ratio"])),
            rtol=1e-5,
        )

    def test_reward_of_the_accuracy(self):
        search = make_search(
            reward="hard_exponential", beta=0.3, quality="accuracy"
        )
        history = search.fit(make_data(steps=1), epochs=5, verbose=0).history
        ratio = np.array(history["cost_ratio"])
        np.testing.assert_allclose(
            history["reward"],
            np.array(history["accuracy"]) * np.maximum(ratio, 1) ** -0.3,
            rtol=1e-5,
        )

    @parameterized.product(
        reward=("absolute", "one_sided"), cost=("bitops", "size")
    )
    def test_cost_never_exceeds_the_target(self, reward, cost):
        rng = np.random.default_rng(0)
        model = fliqs.to_searchable(make_model(), "int_l")
        for target in ("1.05xint4", "1.5xint4", "1.0xint4", "1.0xint8"):
            search = make_search(
                None, model=model, reward=reward, cost=cost, cost_target=target
            )
            # Whatever the policy wants, without a step of training.
            for _ in range(5):
                search.policy.logits.assign(
                    rng.normal(size=search.policy.logits.shape) * 5
                )
                self.assert_kept_its_promise(search)
            search.freeze()
            self.assert_kept_its_promise(search)

    def test_result_of_a_run(self):
        data = make_data()
        search = make_search()
        search.fit(data, epochs=3, verbose=0)
        self.assertEqual(int(search.step), 12)
        self.assertEqual(int(search.total_steps), 12)
        self.assertEqual(int(search.frozen), 1)
        self.assert_kept_its_promise(search)
        self.assertEqual(list(search.assignment()), ["stem", "body", "head"])
        best = search.best_model()
        np.testing.assert_array_equal(
            best.predict(data, verbose=0), search.predict(data, verbose=0)
        )
        for path, name in search.assignment().items():
            self.assertEqual(best.get_layer(path).formats, (name,))
        # Training goes on under the formats found.
        found = search.assignment()
        logits = ops.convert_to_numpy(search.policy.logits)
        weights = ops.convert_to_numpy(search.get_weights()[0])
        search.fit(data, epochs=1, verbose=0)
        self.assertEqual(search.assignment(), found)
        self.assertEqual(int(search.step), 16)
        np.testing.assert_array_equal(search.policy.logits, logits)
        self.assertTrue(np.any(weights != search.get_weights()[0]))

    def test_phases(self):
        steps, epochs = 4, 5

        class Watch(keras.callbacks.Callback):
            def __init__(self):
                super().__init__()
                self.seen = []

            def on_train_batch_end(self, batch, logs=None):
                model = self.model
                layers = model.searchable_model
                self.seen.append(
                    (
                        ops.convert_to_numpy(model.policy.logits),
                        [
                            int(layers.get_layer(n)._kernel_state["choice"])
                            for n in ("stem", "body", "head")
                        ],
                        [
                            int(layers.get_layer(n)._input_state["choice"])
                            for n in ("stem", "body", "head")
                        ],
                        int(model.frozen),
                    )
                )

        watch = Watch()
        search = make_search(
            controller=fliqs.Controller(
                keras.optimizers.SGD(0.1),
                activation_delay=0.2,
                warmup=0.4,
                freeze=0.8,
            )
        )
        search.fit(
            make_data(steps), epochs=epochs, verbose=0, callbacks=[watch]
        )
        logits, kernels, inputs, frozen = zip(*watch.seen, strict=True)
        # Of 20 steps: 4 without quantized inputs (option 5 is to leave them),
        # 8 of warm-up, the formats fixed after 16.
        self.assertEqual(inputs[:4], ([5, 5, 5],) * 4)
        self.assertEqual(inputs[4:], kernels[4:])
        for number in range(8):
            self.assertFalse(np.any(logits[number]))
        for number in range(8, 16):
            self.assertTrue(np.any(logits[number] != logits[number - 1]))
        for number in range(16, 20):
            np.testing.assert_array_equal(logits[number], logits[15])
            self.assertEqual(
                kernels[number],
                ops.convert_to_numpy(search.frozen_sample).tolist(),
            )
        self.assertEqual(frozen[:15], (0,) * 15)
        self.assertEqual(frozen[16:], (1,) * 4)
        # More than one format was tried.
        self.assertGreater(len({tuple(k) for k in kernels[:16]}), 4)

    def test_only_weights_of_the_model_are_trained(self):
        search = make_search()
        names = [v.name for v in search.trainable_variables]
        self.assertEqual(
            names,
            [v.name for v in search.searchable_model.trainable_variables],
        )
        self.assertNotIn("logits", names)

    def test_evaluation_is_of_the_most_probable_formats(self):
        data = make_data()
        search = make_search(metrics=())
        search.fit(data, epochs=3, verbose=0, callbacks=[StopAfter(1)])
        search.frozen.assign(0)
        search.policy.logits.assign(
            [[0, 9, 0, 0, 0], [0, 0, 0, 9, 0], [9, 0, 0, 0, 0]]
        )
        fixed = fliqs.to_fixed(
            search, {"stem": "int5", "body": "int7", "head": "int4"}
        )
        np.testing.assert_array_equal(
            search.predict(data, verbose=0), fixed.predict(data, verbose=0)
        )
        fixed.compile(
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        logs = search.evaluate(data, verbose=0, return_dict=True)
        self.assertAlmostEqual(
            logs["loss"], fixed.evaluate(data, verbose=0), places=5
        )
        # MACs: 4*4*4*9 of the stem, 2*2*4*36 of the body, 16*3 of the head.
        cost = (576 * 25 + 576 * 49 + 48 * 16) / 1e9
        self.assertAlmostEqual(logs["cost"] / cost, 1, places=5)

    @parameterized.parameters("int4", "e2m1")
    def test_space_of_one_format(self, name):
        search = make_search(space=name, cost_target=None)
        search.fit(make_data(), epochs=2, verbose=0)
        self.assertEqual(
            dict(search.assignment()),
            {"stem": name, "body": name, "head": name},
        )
        self.assertFalse(np.any(search.policy.logits))

    def test_rules_and_own_decisions(self):
        search = make_search(
            cost_target=None,
            rules=[
                fliqs.Rule(path="stem", formats="int8"),
                fliqs.Rule(path="head"),
            ],
        )
        search.fit(make_data(), epochs=2, verbose=0)
        found = search.assignment()
        self.assertEqual(list(found), ["stem", "body"])
        self.assertEqual(found["stem"], "int8")
        self.assertIs(type(search.best_model().get_layer("head")),
                      keras.layers.Dense)  # fmt: skip

    def test_searchable_model_with_untied_layers(self):
        model = keras.Sequential(
            [
                keras.Input((6, 6, 1)),
                fliqs.layers.Conv2D(
                    2, 3, formats="int_s", input_formats="fp_s", name="a"
                ),
                keras.layers.Flatten(),
                fliqs.layers.Dense(
                    3, formats="int_l", input_formats=None, name="b"
                ),
            ]
        )
        search = make_search(space=None, model=model, cost_target=None)
        self.assertEqual(
            [d.name for d in search.decisions],
            ["a:weight_format", "a:input_format", "b:weight_format"],
        )
        data = make_data()
        search.fit(data, epochs=2, verbose=0)
        found = search.assignment()
        self.assertIn(found.formats("a")[0], ("int4", "int8"))
        self.assertIn(found.formats("a")[1], ("e2m1", "e4m3"))
        self.assertIsNone(found.formats("b")[1])
        np.testing.assert_array_equal(
            search.best_model().predict(data, verbose=0),
            search.predict(data, verbose=0),
        )


class ModesTest(SearchModelTestCase):
    @parameterized.named_parameters(
        ("steps_per_execution", {"steps_per_execution": 4}, None),
        ("jit_compile", {"jit_compile": True}, None),
        ("eager", {"run_eagerly": True}, None),
        ("bfloat16", {}, "mixed_bfloat16"),
        ("float16", {}, "mixed_float16"),
    )
    def test_mode(self, compile_with, policy):
        if policy:
            keras.config.set_dtype_policy(policy)
            self.addCleanup(keras.config.set_dtype_policy, "float32")
        data = make_data()
        search = make_search(compile_with=compile_with)
        history = search.fit(data, epochs=3, verbose=0).history
        self.assertTrue(np.isfinite(history["loss"]).all())
        self.assertLess(history["loss"][-1], history["loss"][0])
        self.assertEqual(int(search.step), 12)
        self.assertEqual(int(search.frozen), 1)
        self.assert_kept_its_promise(search)
        np.testing.assert_allclose(
            search.best_model().predict(data, verbose=0),
            search.predict(data, verbose=0),
            rtol=1e-6,
        )
        self.assertTrue(np.any(search.policy.logits))

    def test_several_steps_in_one_call_change_nothing(self):
        # Freezing is looked at between calls; here it falls on a boundary.
        found = []
        for steps in (1, 4):
            search = make_search(
                compile_with={"steps_per_execution": steps},
                controller=fliqs.Controller(warmup=0.2, freeze=2 / 3),
            )
            search.fit(make_data(), epochs=3, verbose=0)
            found.append(search)
        for (name, one), (_, other) in zip(
            *(state_of(s) for s in found), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6,
                                       err_msg=name)  # fmt: skip

    def test_replicas(self):
        """Two replicas sample each their own formats, and stay in step."""
        code = f"""
import sys
import keras
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
sys.path.insert(0, {os.fspath(_ROOT)!r})
from tests import search_model_test as t
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
choices = []

def local(variable):
    return [
        value.numpy()
        for value in strategy.experimental_local_results(variable._value)
    ]

class Watch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        choices.append([local(vs[0]) for vs in self.model._choices])

with strategy.scope():
    search = t.make_search(model=t.make_model(norm=False))
data = t.make_data()
search.fit(data, validation_data=data, epochs=5, verbose=0,
           callbacks=[Watch()])
for variable in (search.policy.logits, search.controller.baseline,
                 search.step, search.policy.seed_generator.state,
                 *search.trainable_variables):
    one, other = local(variable)
    np.testing.assert_array_equal(one, other, err_msg=variable.path)
assert np.any(search.policy.logits)
choices = np.array(choices)  # (steps, decisions, replicas)
different = np.any(choices[..., 0] != choices[..., 1], axis=1)
# Of 20 steps 18 are free; three decisions of five options agree in 1 of 125.
assert different[:17].sum() > 12, different
assert not different[18:].any(), different
found = search.assignment()
assert search.cost(search.searchable_model, found) <= search.budget.target
np.testing.assert_allclose(search.best_model().predict(data, verbose=0),
                           search.predict(data, verbose=0), rtol=1e-5)
print("kept")
"""
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=_ROOT,
            capture_output=True,
            text=True,
        )
        self.assertEqual(result.returncode, 0, result.stderr[-3000:])
        self.assertIn("kept", result.stdout)


class SavingTest(SearchModelTestCase):
    def _half_done(self, dropout=0.3):
        search = make_search(model=make_model(dropout=dropout))
        search.fit(make_data(), epochs=4, verbose=0, callbacks=[StopAfter(2)])
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
                    make_data(), epochs=4, verbose=0, callbacks=[*callbacks]
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


class ErrorsTest(SearchModelTestCase):
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
            search.fit(make_data().enumerate().map(poison), epochs=2, verbose=0)

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


class RecordedTest(SearchModelTestCase):
    def test_arrays_and_sample_weights(self):
        x, y = next(iter(make_data(batch_size=64)))
        search = make_search()
        search.fit(
            x.numpy(),
            y.numpy(),
            sample_weight=np.ones(64),
            batch_size=16,
            epochs=2,
            verbose=0,
        )
        self.assertEqual(int(search.frozen), 1)

    def test_simulated_costs(self):
        search = make_search(controller=fliqs.Controller(cost_samples=8))
        search.fit(make_data(), epochs=3, verbose=0)
        self.assert_kept_its_promise(search)


_WIDTH = 8


def plant(seed):
    """A regression of which one layer needs 8 bits, and two need none.

    Returns:
        The model, of the true weights, and the data.
    """
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    names = ["first", "second", "third"]
    fine = int(rng.integers(3))
    rows = 64 * 50
    x, true = {}, {}
    for number, name in enumerate(names):
        if number == fine:
            x[name] = rng.integers(-127, 128, (rows, _WIDTH)) / 127
        else:
            x[name] = rng.choice([-1.0, 1.0], (rows, _WIDTH))
        true[name] = rng.choice([-1.0, 1.0], (_WIDTH, 1))
    y = sum(x[name] @ true[name] for name in names)
    inputs = {name: keras.Input((_WIDTH,), name=f"x_{name}") for name in names}
    outputs = [
        keras.layers.Dense(1, use_bias=False, name=name)(inputs[name])
        for name in names
    ]
    model = keras.Model(list(inputs.values()), keras.layers.Add()(outputs))
    for name in names:
        model.get_layer(name).set_weights([true[name]])
    data = tf.data.Dataset.from_tensor_slices(
        (tuple(x[n].astype("float32") for n in names), y.astype("float32"))
    )
    return model, data.batch(64), names[fine]


class PlantedTest(SearchModelTestCase):
    """The search finds the layer that needs its bits.

    `y = sum_l a_l . x_l` over three layers of 8 inputs, `a` of +-1. Two layers
    have inputs of +-1: inputs and weights are codes of INT2 (-1, 0, 1 at scale
    1), so that no format changes their part by anything. The third has inputs
    spread evenly over the 255 codes of INT8 in [-1, 1]. At INT8 they are
    exact. At INT2 each becomes one of three numbers, each standing for a third
    of [-1, 1]: whatever the weights, the prediction can be no better than the
    mean given these numbers, and the mean squared error is at least that of 8
    independent inputs with an even spread over 2/3,

        8 * (2/3)^2 / 12 = 0.296,

    against 0 at INT8. The target is the cost of one layer at INT8 and two at
    INT2 (all have 8 MACs: 8 * (64 + 4 + 4) bit operations), so that the best
    reward, 0, is that of the planted assignment alone.
    """

    def _found(self, seed):
        model, data, fine = plant(seed)
        planted = dict.fromkeys(["first", "second", "third"], "int2")
        planted[fine] = "int8"
        search = fliqs.SearchModel(
            model,
            ("int2", "int8"),
            cost_target=8 * (64 + 4 + 4) / 1e9,
            seed=seed,
        )
        search.compile(
            keras.optimizers.SGD(1e-4),
            "mse",
            controller=fliqs.Controller(keras.optimizers.Adam(0.1)),
        )
        search.fit(data, epochs=5, verbose=0)
        best = search.best_model()
        best.compile(loss="mse")
        return (
            dict(search.assignment()) == planted
            and best.evaluate(data, verbose=0) < 1e-3
        )

    def test_bound_of_the_docstring(self):
        model, data, fine = plant(0)
        losses = {}
        for name in ("int2", "int8"):
            fixed = fliqs.to_fixed(
                model,
                {
                    **dict.fromkeys(["first", "second", "third"], "int2"),
                    fine: name,
                },
            )
            fixed.compile(loss="mse")
            losses[name] = fixed.evaluate(data, verbose=0)
        self.assertGreater(losses["int2"], 0.25)
        self.assertLess(losses["int8"], 1e-6)

    @parameterized.parameters(0, 1, 2)
    def test_finds_what_is_planted(self, seed):
        self.assertTrue(self._found(seed))

    @pytest.mark.slow
    def test_finds_what_is_planted_nine_times_of_ten(self):
        found = [self._found(seed) for seed in range(100, 110)]
        self.assertGreaterEqual(sum(found), 9, found)


if __name__ == "__main__":
    absltest.main()
