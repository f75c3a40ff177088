"""The search: what a run promises, in every mode of Keras."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

import fliqs_tf as fliqs
from fliqs_tf.recalibrate import Recalibration
from tests.search_cases import SearchTestCase
from tests.search_cases import StopAfter
from tests.search_cases import make_data
from tests.search_cases import make_model
from tests.search_cases import make_search
from tests.search_cases import state_of

_ROOT = pathlib.Path(__file__).resolve().parent.parent


class FitTest(SearchTestCase):
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

    @parameterized.parameters(("absolute", "int5"), ("one_sided", "int4"))
    def test_what_is_left_of_the_target_widens(self, reward, head):
        search = make_search(reward=reward, cost_target="2.48xint4")
        # It is sure of stem and body; of the head it knows but noise, which is
        # for the narrowest.
        search.policy.logits.assign(
            [[0, 0, 0, 0, 9], [9, 0, 0, 0, 0], [0.1, 0, 0, 0, 0]]
        )
        # MACs: 576, 576 and 48. INT8, INT4 and INT4 cost 46,848 of 47,616, an
        # INT5 in the head 432 more, an INT6 960 more.
        self.assertEqual(
            dict(search.assignment()),
            {"stem": "int8", "body": "int4", "head": head},
        )

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
        logits = ops.convert_to_numpy(search.policy.logits).copy()
        kernel = search.searchable_model.get_layer("stem").kernel
        before = ops.convert_to_numpy(kernel).copy()
        search.fit(data, epochs=1, verbose=0)
        self.assertEqual(search.assignment(), found)
        self.assertEqual(int(search.step), 16)
        np.testing.assert_array_equal(search.policy.logits, logits)
        self.assertTrue(np.any(ops.convert_to_numpy(kernel) != before))

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
            make_data(steps),
            epochs=epochs,
            verbose=0,
            callbacks=[watch],
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

    def test_trains_as_the_fixed_model_does_once_frozen(self):
        """To the last bit: no weight learns otherwise for being searched."""
        for arguments in (
            {
                "space": "int_l",
                "input_range": "percentile",
                "input_signedness": "affine",
            },
            {
                "space": "mixed_s",
                "input_range": "lsq",
                "rules": [fliqs.Rule(input_formats="apart")],
            },
        ):
            data, model = make_data(), make_model()
            search = make_search(model=model, **arguments)
            search.freeze()
            conversion = {
                key: value
                for key, value in arguments.items()
                if key.startswith("input")
            }
            fixed = fliqs.to_fixed(model, search.assignment(), **conversion)
            fixed.compile(
                keras.optimizers.Adam(0.01), search.loss, jit_compile=False
            )
            losses = [
                trained.fit(
                    data, epochs=3, verbose=0, callbacks=callbacks
                ).history["loss"]
                for trained, callbacks in (
                    (search, []),
                    (fixed, [Recalibration(data)]),
                )
            ]
            self.assertEqual(*losses)
            found = search.best_model().get_weights()
            for one, other in zip(found, fixed.get_weights(), strict=True):
                np.testing.assert_array_equal(one, other)

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

    @pytest.mark.slow
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


class ModesTest(SearchTestCase):
    @parameterized.named_parameters(
        ("jit_compile", {"jit_compile": True}, None),
        ("float16", {}, "mixed_float16"),
    )
    def test_mode(self, compile_with, policy):
        self._check_mode(compile_with, policy)

    @parameterized.named_parameters(
        ("steps_per_execution", {"steps_per_execution": 4}, None),
        ("eager", {"run_eagerly": True}, None),
        ("bfloat16", {}, "mixed_bfloat16"),
    )
    @pytest.mark.slow
    def test_other_mode(self, compile_with, policy):
        self._check_mode(compile_with, policy)

    def _check_mode(self, compile_with, policy):
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

    @pytest.mark.slow
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
from tests import search_cases as t
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


if __name__ == "__main__":
    absltest.main()
