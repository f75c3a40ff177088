"""The entry points from end to end, on a tiny network and the digits."""

import contextlib
import dataclasses
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf
from fliqs_tf import baselines
from fliqs_tf import datasets
from fliqs_tf.bin import experiment
from fliqs_tf.bin import program
from fliqs_tf.bin import run
from fliqs_tf.callbacks import FiniteLoss
from fliqs_tf.config import SearchConfig
from fliqs_tf.config import TrainConfig
from fliqs_tf.controller import Controller
from fliqs_tf.files import read_json
from fliqs_tf.run_folder import RunFolder
from tests.refusals import refusals

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_TINY = {"width": 0.25, "epochs": 2, "batch_size": 128}
_FILES = {
    "assignment.json",
    "checkpoint",
    "config.json",
    "events",
    "model.keras",
    "model.tflite",
    "plots",
    "report.json",
    "report.md",
}


def _start(program, *arguments):
    """Starts an entry point."""
    return subprocess.Popen(
        [sys.executable, "-m", f"fliqs_tf.bin.{program}", *arguments],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _flags(config):
    """Returns the flags of a configuration."""
    values = config.to_dict()
    del values["kind"], values["formats"], values["variant"]
    return [f"--{k}={v}" for k, v in values.items() if v is not None]


def _wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


class RunTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = pathlib.Path(temporary.name)
        cls.data_dir = str(cls.folder / "data")

    def _config(self, name, kind=SearchConfig, **changes):
        return kind(
            run_dir=str(self.folder / name),
            data_dir=self.data_dir,
            **{**_TINY, **changes},
        )

    # The freeze, with which the second epoch ends or not.
    @parameterized.parameters(0.9, 0.5)
    @pytest.mark.slow
    def test_search_that_is_stopped_goes_on_as_if_it_had_not_been(self, freeze):
        whole = self._config(
            f"whole_{freeze}",
            epochs=4,
            cost_samples=8,
            credit="decision",
            freeze=freeze,
        )
        stopped = dataclasses.replace(
            whole, run_dir=str(self.folder / f"stopped_{freeze}")
        )
        report = experiment.search(whole)
        self.assertEqual(set(os.listdir(whole.run_dir)), _FILES)
        self.assertLessEqual(report["result"]["cost_ratio"], 1.0)

        steps = []

        def stop(callback, batch, logs=None):
            steps.append(batch)
            if len(steps) == 30:  # In the third epoch, of 11 steps each.
                raise KeyboardInterrupt

        with mock.patch.object(FiniteLoss, "on_train_batch_end", stop):
            with self.assertRaises(KeyboardInterrupt):
                experiment.search(stopped)
        self.assertNoFile(stopped, "report.json")
        resumed = experiment.search(stopped)
        for one, other in zip(
            report["history"], resumed["history"], strict=True
        ):
            self.assertEqual(one["probabilities"], other["probabilities"])
            for name, value in one["logs"].items():
                self.assertAlmostEqual(value, other["logs"][name], places=4)
        self.assertEqual(report["layers"], resumed["layers"])

    @pytest.mark.slow
    def test_train_and_what_post_training_search_makes_of_it(self):
        config = self._config("float", TrainConfig, formats="fp32")
        report = experiment.train(config)
        self.assertEqual(set(os.listdir(config.run_dir)), _FILES)
        # Statistics of batch norms are new before the last epoch is judged.
        self.assertAlmostEqual(
            report["history"][-1]["logs"]["val_loss"],
            report["result"]["loss"],
            places=5,
        )
        self.assertIsNone(report["result"]["cost_ratio"])

        model = str(pathlib.Path(config.run_dir) / "model.keras")
        report = experiment.search(
            self._config("ptq", method="ptq", model_file=model, epochs=0)
        )
        self.assertBetween(report["result"]["cost_ratio"], 0.9, 1.0)
        self.assertEmpty(report["history"])
        assignment = self.folder / "ptq" / "assignment.json"
        report = experiment.train(
            self._config(
                "given", TrainConfig, epochs=1, formats=str(assignment)
            )
        )
        formats = {r["path"]: r["weight_format"] for r in report["layers"]}
        self.assertEqual(read_json(assignment)["layers"], formats)

        # A search that starts from what post-training search knows.
        controllers = []
        start = Controller.prepare

        def prepare(controller, policy, budget, beta):
            start(controller, policy, budget, beta)
            known = controller.prior
            best = budget.most_probable(known)
            given_up = np.mean(known.max(1) - known[np.arange(len(best)), best])
            controllers.append((known, np.array(policy.logits), given_up))

        with (
            mock.patch.object(Controller, "prepare", prepare),
            mock.patch.object(
                baselines, "sensitivities", wraps=baselines.sensitivities
            ) as measured,
        ):
            for inputs in ("tied", "apart"):
                experiment.search(
                    self._config(
                        f"prior_{inputs}",
                        model_file=model,
                        epochs=2,
                        input_formats=inputs,
                        prior_weight=2.0,
                    )
                )
        self.assertLen(measured.call_args_list, 2)
        for call in measured.call_args_list:
            self.assertTrue(call.kwargs["is_fine_tuned"])
        for (known, logits, given_up), each in zip(
            controllers, (1, 2), strict=True
        ):
            # Beside what is known of it, an option's price.
            prices = known - logits * given_up / 2.0
            self.assertGreater(prices.min(), -1e-4)
            np.testing.assert_array_less(prices[:, :-1], prices[:, 1:] + 1e-4)
            # No format does less to a trained model than the widest one.
            self.assertEqual(logits.shape, (each * len(formats), 5))
            self.assertLess(known[:, 0].sum(), known[:, -1].sum())

    def test_somebody_else_s_model_from_pixels_to_an_integer_file(self):
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Rescaling(1 / 255),
                keras.layers.Conv2D(8, 3, strides=2, activation="relu"),
                keras.layers.Flatten(),
                keras.layers.Dense(10, activation="softmax"),
            ]
        )
        path = str(self.folder / "theirs.h5")
        model.save(path)
        report = experiment.search(
            self._config(
                "theirs",
                model_file=path,
                normalize=False,
                input_range="percentile",
                input_signedness="unsigned",
                space="int_s",
                input_formats="int8",
                cost="size",
                cost_target="1.5xint4",
                activations="int8",
                learning_rate=0.01,
                epochs=4,
                warmup=0.2,
                freeze=0.5,
            )
        )
        self.assertEqual(
            {r["input_format"] for r in report["layers"]}, {"int8"}
        )
        # Logits taken for probabilities, or the other way, learn nothing.
        self.assertGreater(report["result"]["accuracy"], 0.6)
        trained = report["export"]["trained"]
        self.assertLess(
            abs(trained["accuracy"] - report["result"]["accuracy"]), 0.02
        )
        # At the freeze: which decisions were open.
        result = report["result"]
        last = report["history"][-1]["probabilities"]
        self.assertEqual(set(result["entropies"]), set(last))
        entropies = np.array(list(result["entropies"].values()))
        self.assertAlmostEqual(entropies.mean(), result["entropy"], places=5)
        self.assertBetween(entropies.max(), 1e-4, np.log(2))
        page = (self.folder / "theirs" / "report.md").read_text("utf-8")
        self.assertIn("The file's accuracy is", page)

    @parameterized.parameters(
        ({"model_file": "seven.keras"}, "`model_file` must take images of"),
        ({"model_arguments": '{"depth": 3}'}, "Received: .*'depth'"),
        ({"teacher": "seven.keras"}, "teacher must have one output"),
        ({"teacher": "none.keras"}, "none.keras"),
        ({"method": "ptq", "cost_target": "9xint8"}, "target must lie between"),
    )
    def test_run_that_cannot_start_leaves_no_folder(self, changes, message):
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(7),
            ]
        )
        model.save(self.folder / "seven.keras")
        for name in ("model_file", "teacher"):
            if name in changes:
                changes = {name: str(self.folder / changes[name])}
        config = self._config("never", **changes)
        with self.assertRaisesRegex(ValueError, message):
            experiment.search(config)
        self.assertFalse((self.folder / "never").exists())

    @pytest.mark.slow
    def test_bounds_are_kept_and_reported(self):
        self._check_bounds("fliqs")

    @pytest.mark.slow
    def test_bounds_are_kept_by_another_method(self):
        self._check_bounds("random")

    def _check_bounds(self, method):
        config = self._config(
            f"bounds_{method}",
            method=method,
            epochs=1,
            cost_target="3.5xint4",
            bounds="size:1.1xint4,memory:1.5xint4",
        )
        with mock.patch.object(experiment.rich, "print") as printed:
            result = experiment.search(config)["result"]
        for bound in result["bounds"].values():
            self.assertLessEqual(bound["value"], bound["target"])
        self.assertLess(result["cost_highest"], result["cost_target"])
        lines = [str(call.args[0]) for call in printed.mock_calls]
        self.assertRegex(lines[0], "^Cost between .* and .* GBOPs, target")
        self.assertRegex(lines[1], "^Bound of size: .* MiB, of at least")
        self.assertRegex(lines[2], "^Bound of memory: .* KiB, of at least")

    @parameterized.parameters("fliqs", "differentiable")
    @pytest.mark.slow
    def test_every_part_of_a_recipe_together(self, method):
        teacher = fliqs_tf.models.get("residual_small", width=0.25)
        path = str(self.folder / f"teacher_{method}.keras")
        teacher.save(path)
        config = self._config(
            f"recipe_{method}",
            method=method,
            space="int_s",
            cost_target="1.5xint4",
            optimizer="rmsprop",
            optimizer_epsilon=1.0,
            learning_rate_warmup=0.5,
            schedule="exponential",
            weight_decay=1e-5,
            clip_norm=2.0,
            weight_ema=0.9,
            label_smoothing=0.1,
            random_erasing=0.25,
            mixup=0.8,
            cutmix=1.0,
            teacher=path,
        )
        with mock.patch.object(run, "distill", wraps=run.distill) as distill:
            report = experiment.search(config)
        # Once a fit: the differentiable search trains anew after it.
        self.assertEqual(distill.call_count, 1 + (method != "fliqs"))
        self.assertLessEqual(report["result"]["cost_ratio"], 1.0)
        self.assertLess(report["result"]["loss"], 100.0)

    def test_folder_of_another_run_is_refused(self):
        config = self._config("other", TrainConfig)
        RunFolder(config).create()
        with self.assertRaisesRegex(ValueError, r"seed=1 \(there: 0\)"):
            experiment.train(dataclasses.replace(config, seed=1))

    @parameterized.parameters("search", "train")
    @pytest.mark.one_in(2)
    def test_nan_stops_the_run_and_leaves_the_last_good_state(self, program):
        load = datasets.load

        def load_with_nan(name, split, first_epoch=0, **arguments):
            data = load(name, split, first_epoch=first_epoch, **arguments)
            if split != "train":
                return data
            passes = np.array([first_epoch])

            def spoil(x, y):
                return x + np.float32(np.nan), y

            # Clean in the first epoch.
            def batches():
                passes[0] += 1
                return iter(data.map(spoil) if passes[0] > 1 else data)

            return tf.data.Dataset.from_generator(
                batches, output_signature=data.element_spec
            ).apply(tf.data.experimental.assert_cardinality(len(data)))

        kind = {"search": SearchConfig, "train": TrainConfig}[program]
        config = self._config(f"nan_{program}", kind)
        with mock.patch.object(datasets, "load", load_with_nan):
            with self.assertRaisesRegex(FloatingPointError, "loss=nan"):
                getattr(experiment, program)(config)
        states = list(pathlib.Path(config.run_dir).glob("checkpoint/*/*.h5"))
        self.assertEqual([s.name for s in states], ["epoch1.weights.h5"])
        self.assertNoFile(config, "model.keras")

    @pytest.mark.slow
    def test_study_that_is_killed_does_not_redo_what_is_finished(self):
        base = self._config("study", epochs=1)
        arguments = [
            *_flags(base),
            "--methods=uniform:int4,manual",
            "--seeds=0,1",
            "--workers=2",
        ]
        results = pathlib.Path(base.run_dir) / "results"
        process = _start("study", *arguments)
        _wait_for(lambda: len(list(results.glob("*.json"))) >= 2)
        process.kill()
        process.communicate()
        # The runs end with their study.
        time.sleep(1.0)
        before = {p: p.stat().st_mtime_ns for p in results.glob("*.json")}

        process = _start("study", *arguments)
        output, errors = process.communicate()
        self.assertEqual(process.returncode, 0, errors)
        self.assertIn(f"4 runs, {len(before)} of them finished", output)
        self.assertIn("[4/4]", output)
        self.assertLen(list(results.glob("*.json")), 4)
        for path, time_of_change in before.items():
            self.assertEqual(path.stat().st_mtime_ns, time_of_change)
        page = (pathlib.Path(base.run_dir) / "report.md").read_text("utf-8")
        self.assertIn("4 of 4 runs are finished", page)
        self.assertNotIn(str(self.folder), page)

    def test_report_of_a_study_without_results(self):
        process = _start("study", *_flags(self._config("none")), "--workers=0")
        _, errors = process.communicate()
        self.assertEqual(process.returncode, 1)
        self.assertIn("A report needs a run that is finished", errors)
        self.assertFalse((self.folder / "none").exists())

    def test_study_tries_what_it_is_to_run_before_it_begins(self):
        arguments = _flags(self._config("hours"))
        process = _start(
            "study",
            *arguments,
            "--methods=uniform:int4,manual",
            "--targets=1xint4,9xint8",
        )
        _, errors = process.communicate()
        self.assertEqual(process.returncode, 1)
        self.assertIn("Error: The cost target must lie between", errors)
        self.assertFalse((self.folder / "hours").exists())

    def assertNoFile(self, config, name):
        self.assertFalse((pathlib.Path(config.run_dir) / name).exists())


class FlagsTest(absltest.TestCase):
    def test_every_program_explains_itself(self):
        expected = {
            "search": "--cost_target",
            "train": "--formats",
            "export": "--verify_dataset",
            "study": "--methods",
        }
        processes = {name: _start(name, "--helpshort") for name in expected}
        for name, process in processes.items():
            output, _ = process.communicate()
            self.assertIn("Example:", output)
            self.assertIn(expected[name], output)

    def test_bad_flags(self):
        """Each is refused with a message that names the flag."""
        cases = {
            "run_dir": [],
            "model": ["--run_dir=r", "--model=resnet19"],
            "space": ["--run_dir=r", "--space=int1"],
            "method": ["--run_dir=r", "--method=magic"],
            "methods": ["--run_dir=r", "--methods=fliqs,magic"],
            "seeds": ["--run_dir=r", "--seeds=0,x"],
            "workers": ["--run_dir=r", "--workers=-1"],
            "epochs": ["--run_dir=r", "--epochs=-1"],
            "freeze": ["--run_dir=r", "--freeze=0.1"],
            "learning_rate": ["--run_dir=r", "--learning_rate=0"],
        }
        messages = refusals("fliqs_tf.flags.study_flags", cases, _ROOT)
        self.assertEqual(set(messages), set(cases))
        for name, message in messages.items():
            self.assertIn(name, message)

    def test_errors_that_a_user_can_mend(self):
        """A data set to prepare, a package to install: one line says so."""
        for error in (datasets.DatasetError("no set"), ImportError("no PIL")):

            def fail(argv, error=error):
                raise error

            errors = io.StringIO()
            with (
                mock.patch.object(
                    program.app, "run", lambda main: main(["program"])
                ),
                contextlib.redirect_stderr(errors),
                self.assertRaisesRegex(SystemExit, "1"),
            ):
                program.run(fail)
            self.assertEqual(errors.getvalue(), f"Error: {error}\n")

    def test_errors_of_a_run_are_messages_and_not_tracebacks(self):
        process = _start("train", f"--run_dir={_ROOT}/README.md")
        _, errors = process.communicate()
        self.assertEqual(process.returncode, 1)
        self.assertIn("Error: `run_dir` must be a folder. Received:", errors)
        self.assertNotIn("Traceback", errors)


if __name__ == "__main__":
    absltest.main()
