"""Every preset parses, and describes a run that the networks can take."""

import inspect
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest

import fliqs_tf as fliqs
from fliqs_tf import costs
from fliqs_tf import rewards
from fliqs_tf import search_recipe
from fliqs_tf.budget import Budget
from fliqs_tf.config import SearchConfig
from fliqs_tf.formats import get_format
from fliqs_tf.policy import Policy
from fliqs_tf.space import Decision
from fliqs_tf.space import get_space
from tests import budget_test

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_PRESETS = sorted((_ROOT / "flags" / "presets").glob("*.flags"))
# Settings to be included by other presets: no run of their own.
_INCLUDED = (
    "fashion_mnist",
    "fliqs",
    "mlperf_tiny_resnet8_trained",
    "resnet20_trained",
    "trained_model",
)

# Flags are read in a process of their own: they are global. Some presets want a
# trained model, which their users give.
_READ = """
import json
import sys
from absl import flags
from absl.testing import flagsaver
from fliqs_tf.flags import search_flags
from fliqs_tf.flags import study_flags
for path in sys.argv[1:]:
    with flagsaver.flagsaver():
        given = ["--run_dir=unnamed", "--model_file=trained.h5"]
        flags.FLAGS(["program", *given, "--flagfile=" + path])
        config = search_flags.search_config_from_flags()
        print(json.dumps(config.to_dict()))
"""


class PresetsTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        result = subprocess.run(
            [sys.executable, "-c", _READ, *map(str, _PRESETS)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise AssertionError(result.stderr)
        lines = result.stdout.splitlines()[-len(_PRESETS) :]
        cls.configs = {}
        for path, line in zip(_PRESETS, lines, strict=True):
            data = json.loads(line)
            del data["kind"]
            cls.configs[path.stem] = SearchConfig(**data)

    def test_every_network_has_one(self):
        found = {config.model for config in self.configs.values()}
        self.assertContainsSubset(fliqs.models.names(), found)

    def test_runs_are_of_networks_and_spaces_that_exist(self):
        for name, config in self.configs.items():
            with self.subTest(name):
                self.assertNotEmpty(get_space(config.space))
                costs.parse_bounds(config.bounds)
                builder = fliqs.models._BUILDERS[config.model]
                self.assertContainsSubset(
                    config.network_arguments(),
                    inspect.signature(builder).parameters,
                )

    def test_folders_differ(self):
        folders = [
            config.run_dir
            for name, config in self.configs.items()
            if name not in _INCLUDED
        ]
        self.assertNotIn("unnamed", folders)
        self.assertLen(set(folders), len(folders))

    def test_images_have_the_size_of_the_network(self):
        for name, config in self.configs.items():
            if config.dataset != "imagenet2012":
                continue
            with self.subTest(name):
                builder = fliqs.models._BUILDERS[config.model]
                shape = inspect.signature(builder).parameters["input_shape"]
                self.assertEqual(shape.default[0], config.image_size)

    def test_what_papers_state(self):
        """Spot checks against the papers that the presets cite."""
        for name, expected in {
            "resnet50": {"optimizer": "sgd", "batch_size": 256},
            "mobilenet_v2": {"optimizer": "rmsprop", "schedule_decay": 0.98},
            "efficientnet_b4": {"learning_rate": 0.256, "weight_ema": 0.9999},
            "inception_v3": {"optimizer_epsilon": 1.0, "clip_norm": 2.0},
            "deit": {
                "batch_size": 1024,
                "epochs": 300,
                "learning_rate": 1e-3,
                "learning_rate_warmup": 5.0,
                "weight_decay": 0.05,
                "label_smoothing": 0.1,
                "mixup": 0.8,
                "cutmix": 1.0,
                "random_erasing": 0.25,
            },
            "resnet20": {"epochs": 164, "schedule": "step"},
            "mlperf_tiny_resnet8": {"schedule_decay": 0.99, "epochs": 500},
        }.items():
            config = self.configs[name].to_dict()
            self.assertEqual({k: config[k] for k in expected}, expected)

    def test_trained_model_s_policy_decides_between_formats_alike(self):
        """Planted qualities: of a format's bits alone, up to two percent."""
        config = self.configs["trained_model"]
        self.assertEqual(config.quality, "loss")
        options = get_space("fp_l")
        bits = np.array([get_format(option).bits for option in options])
        steps = 1170  # 3 epochs of CIFAR-10.
        for seed in range(2):
            rng = np.random.default_rng(seed)
            keras.utils.set_random_seed(seed)
            sizes = rng.lognormal(size=10)
            sensitivities = 10 ** rng.uniform(-2.5, 0.5, size=(10, 1))
            values = -sensitivities * 4.0 ** (4 - bits)
            values *= rng.lognormal(sigma=0.02, size=values.shape)
            decisions = [
                Decision(f"layer{d}", "format", options) for d in range(10)
            ]
            terms = [
                budget_test.tied(d, size * bits**2)
                for d, size in enumerate(sizes)
            ]
            budget = Budget(
                *(costs.get("bitops"), terms, decisions),
                target=1.25 * 4**2 * sizes.sum(),
            )
            policy = Policy(decisions, seed=seed)
            controller = search_recipe.make_controller(config, values)
            controller.prepare(policy, budget, config.beta)

            @tf.function
            def step(progress):
                sample = policy.sample()[0]
                quality = tf.reduce_sum(policy.one_hot(sample) * values)
                quality += tf.random.normal((), stddev=0.1)
                simulated = policy.sample(config.cost_samples)
                ratios = budget.of_tensor(simulated) / budget.target
                reward = rewards.absolute(0.0, ratios, config.beta)
                controller.update(
                    *(policy, sample, quality, progress, False),
                    simulated=(simulated, reward),
                )

            for number in range(round(config.freeze * steps)):
                step(tf.constant(number / steps))
            with self.subTest(seed=seed):
                entropy = float(tf.reduce_mean(policy.entropy()))
                self.assertBetween(entropy, 0.0, 0.05)


if __name__ == "__main__":
    absltest.main()
