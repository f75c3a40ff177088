import dataclasses
import json

from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.config import SearchConfig
from fliqs_tf.config import TrainConfig


class ConfigTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"run_dir": ""}, "run_dir"),
        ({"optimizer": "lion"}, "optimizer='lion'"),
        ({"activations": "int4"}, "activations='int4'"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": -1, "model_file": "m.keras"}, "epochs=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    )
    def test_refuses(self, changes, received):
        with self.assertRaisesRegex(ValueError, f"Received: .*{received}"):
            TrainConfig(**{"run_dir": "run", **changes})

    @parameterized.parameters(
        ({}, "model_file=None"),
        (
            {"model_file": "m.keras", "input_formats": "int8"},
            "input_formats='int8'",
        ),
    )
    def test_refuses_a_prior_of_nothing(self, changes, received):
        with self.assertRaisesRegex(
            ValueError, f"Received: prior_weight=10.0, .*{received}"
        ):
            SearchConfig(run_dir="run", prior_weight=10.0, **changes)

    @parameterized.parameters(
        ("ptq", "float"), ("ptq", "int8"), ("differentiable", "apart")
    )
    def test_refuses_inputs_that_a_method_does_not_know(self, method, inputs):
        with self.assertRaisesRegex(
            ValueError, f"'{method}'. Received: input_formats='{inputs}'"
        ):
            SearchConfig(run_dir="run", method=method, input_formats=inputs)

    def test_no_epochs_are_allowed_for_a_model_from_a_file(self):
        config = TrainConfig(run_dir="run", epochs=0, model_file="m.keras")
        self.assertEqual(config.epochs, 0)

    def test_refuses_a_search_that_neither_learns_nor_knows(self):
        start = {"run_dir": "run", "epochs": 0, "model_file": "m.keras"}
        with self.assertRaisesRegex(ValueError, "Received: epochs=0"):
            SearchConfig(**start)
        self.assertEqual(SearchConfig(**start, prior_weight=1.0).epochs, 0)
        self.assertEqual(SearchConfig(**start, method="ptq").epochs, 0)

    def test_same_run_elsewhere_does_not_differ(self):
        config = SearchConfig(run_dir="here", data_dir="data", width=0.5)
        stored = json.loads(json.dumps(config.to_dict()))
        moved = dataclasses.replace(config, run_dir="there", data_dir=None)
        self.assertEmpty(moved.differences(stored))

    def test_differences_name_both_values(self):
        stored = SearchConfig(run_dir="run", seed=1).to_dict()
        config = SearchConfig(run_dir="run", seed=2, space="int_s")
        self.assertEqual(
            config.differences(stored),
            {"seed": (2, 1), "space": ("int_s", "int_l")},
        )

    def test_kinds_differ(self):
        stored = TrainConfig(run_dir="run").to_dict()
        self.assertEqual(
            SearchConfig(run_dir="run").differences(stored)["kind"],
            ("SearchConfig", "TrainConfig"),
        )

    def test_what_an_older_version_lacked_is_at_its_default(self):
        stored = SearchConfig(run_dir="run").to_dict()
        del stored["method"]
        self.assertEmpty(SearchConfig(run_dir="run").differences(stored))
        self.assertEqual(
            SearchConfig(run_dir="run", method="ptq").differences(stored),
            {"method": ("ptq", "fliqs")},
        )


if __name__ == "__main__":
    absltest.main()
