import dataclasses
import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import study as studies
from fliqs_tf.config import SearchConfig
from fliqs_tf.files import read_json
from fliqs_tf.files import write_json
from fliqs_tf.flags import study_flags


def _report(config, accuracy=0.5, cost=2.0):
    """Returns as much of a `report.json` as a study reads."""
    target = None if config.method.startswith("uniform") else 4.0
    return {
        "config": config.to_dict(),
        "versions": {"fliqs_tf": "1"},
        "result": {
            "accuracy": accuracy,
            "cost": cost,
            "cost_unit": "GBOPs",
            "cost_target": target,
            "cost_ratio": cost / target if target else None,
            "size_mib": 0.25,
            "seconds": 10.0,
        },
        "layers": [
            {"path": "stem", "weight_format": "int4", "input_format": "int8"}
        ],
        "export": {"file_bytes": 100, "verification": {"samples": 360}},
        "history": [{"epoch": 0}],
    }


class StudyTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path) / "study"
        self.base = SearchConfig(run_dir=str(self.root), epochs=5)

    def _study(self, methods=("fliqs", "uniform:int4"), seeds=(0, 1), **base):
        study = studies.Study(
            dataclasses.replace(self.base, **base),
            methods,
            ["1.25xint4", "0.01"],
            seeds,
        )
        study.create()
        return study

    def test_methods_times_targets_times_seeds(self):
        study = self._study()
        self.assertEqual(
            [study.name(config) for config in study.runs],
            [
                "fliqs_1.25xint4_seed0",
                "fliqs_0.01_seed0",
                # Knows no target: once a seed.
                "uniform-int4_seed0",
                "fliqs_1.25xint4_seed1",
                "fliqs_0.01_seed1",
                "uniform-int4_seed1",
            ],
        )
        folders = {config.run_dir for config in study.runs}
        self.assertLen(folders, 6)
        self.assertIn(str(self.root / "runs" / "fliqs_0.01_seed1"), folders)

    def test_variants_are_rows_of_fliqs_alone(self):
        study = studies.Study(
            dataclasses.replace(self.base, freeze=0.7),
            ["fliqs", "manual"],
            ["1.25xint4"],
            [0],
            {"early": {"freeze": "0.5", "warmup": "0.2"}},
        )
        study.create()
        own, early, manual = study.runs
        self.assertEqual(study.name(early), "fliqs_early_1.25xint4_seed0")
        self.assertEqual(
            (own.freeze, early.freeze, early.warmup), (0.7, 0.5, 0.2)
        )
        # What manual precision does not read is at its defaults, so that its
        # results stand when the controller is set otherwise.
        self.assertEqual(manual.freeze, SearchConfig(run_dir="x").freeze)
        for config in study.runs:
            study.add(config, _report(config))
        self.assertEqual(
            [row["method"] for row in studies.summarize(study.results())],
            ["fliqs", "fliqs (early)", "manual"],
        )

    def test_spaces_are_rows_of_fliqs_alone(self):
        study = studies.Study(
            dataclasses.replace(self.base, space="int_s"),
            ["fliqs", "manual"],
            ["1.25xint4"],
            [0],
            {"floats": {"space": "fp_s", "input_formats": "apart"}},
        )
        own, floats, manual = study.runs
        self.assertEqual(
            [(run.space, run.input_formats) for run in (own, floats, manual)],
            [("int_s", "tied"), ("fp_s", "apart"), ("int_s", "tied")],
        )

    def test_one_format_for_all_has_nothing_apart(self):
        study = studies.Study(
            dataclasses.replace(self.base, input_formats="apart"),
            ["fliqs", "ptq", "uniform:int4"],
            ["1.25xint4"],
            [0],
        )
        self.assertEqual(
            [run.input_formats for run in study.runs],
            ["apart", "apart", "tied"],
        )

    @parameterized.parameters(
        ({"epochs": "3"}, "one of space, input_for.*Received: epochs=3"),
        ({"freeze": "soon"}, "type float.*Received: freeze=soon"),
        ({"space": "int_xl"}, "int_xl"),
    )
    def test_bad_variants(self, settings, message):
        with self.assertRaisesRegex(ValueError, message):
            self.base.override(settings)

    @parameterized.parameters(
        ({"freeze": "2"}, "freeze=2.0"),
        ({"freeze": "0.1"}, "warmup=0.25, freeze=0.1"),
        ({"quality": "abc"}, "quality='abc'"),
        ({"input_formats": "foo"}, "foo"),
        ({"input_range": "wide"}, "range='wide'"),
        ({"reward": "none"}, "reward='none'"),
        ({"credit": "decision"}, "credit='decision', cost_samples=1"),
        ({"cost_samples": "0"}, "cost_samples=0"),
    )
    def test_settings_that_no_run_can_have(self, settings, received):
        with self.assertRaisesRegex(ValueError, received):
            studies.Study(
                *(self.base, ["fliqs"], ["1.25xint4"], [0]), {"bad": settings}
            )

    @parameterized.parameters(
        (["ptq", "ptq"], ["0.01"], [0]),
        (["ptq"], ["0.01", "0.01"], [0]),
        (["ptq"], ["0.01"], [0, 0]),
    )
    def test_repeated_runs_are_refused(self, methods, targets, seeds):
        with self.assertRaisesRegex(
            ValueError, "Received: more than once ptq_0.01_seed0"
        ):
            studies.Study(self.base, methods, targets, seeds)

    def test_repeated_variants_are_refused(self):
        variants = ["a:freeze=0.6,warmup=0.2", "b:freeze=0.8"]
        self.assertEqual(
            study_flags.parse_variants(variants),
            {"a": {"freeze": "0.6", "warmup": "0.2"}, "b": {"freeze": "0.8"}},
        )
        with self.assertRaisesRegex(ValueError, "Received: variant='a:"):
            study_flags.parse_variants([*variants, "a:freeze=0.8"])

    def test_variants_name_formats_with_commas(self):
        self.assertEqual(
            study_flags.parse_variants(["few:space=int4, int8,freeze=0.8"]),
            {"few": {"space": "int4, int8", "freeze": "0.8"}},
        )

    def test_results_are_small_and_name_no_place(self):
        study = self._study(data_dir="/secret", model_file="/secret/m.h5")
        config = study.runs[0]
        study.add(config, _report(config))
        text = study.result_path(config).read_text("utf-8")
        self.assertNotIn("/secret", text)
        self.assertNotIn(str(self.root), text)
        self.assertNotIn("history", text)
        self.assertIn("m.h5", text)
        self.assertTrue(study.is_finished(config))
        elsewhere = dataclasses.replace(config, model_file="models/m.h5")
        self.assertTrue(study.is_finished(elsewhere))
        with self.assertRaisesRegex(ValueError, "model_file='other.h5'"):
            study.is_finished(
                dataclasses.replace(config, model_file="other.h5")
            )
        self.assertEqual(
            study.result(config)["formats"],
            {"stem": {"weight": "int4", "input": "int8"}},
        )

    def test_finished_runs_stand_when_the_study_grows(self):
        study = self._study(seeds=[0])
        study.add(study.runs[0], _report(study.runs[0]))
        larger = self._study(methods=["manual", "fliqs"], seeds=[0, 1])
        finished = [
            larger.name(c) for c in larger.runs if larger.is_finished(c)
        ]
        self.assertEqual(finished, ["fliqs_1.25xint4_seed0"])

    def test_another_study_is_refused(self):
        study = self._study()
        study.add(study.runs[0], _report(study.runs[0]))
        with self.assertRaisesRegex(ValueError, r"epochs=6 \(there: 5\)"):
            self._study(epochs=6)

    def test_folder_of_something_else_is_refused(self):
        self.root.mkdir()
        (self.root / "report.md").write_text("of a search", "utf-8")
        with self.assertRaisesRegex(ValueError, "Received: run_dir=.*else"):
            self._study()

    def test_file_is_refused(self):
        self.root.touch()
        with self.assertRaisesRegex(ValueError, "Received: run_dir="):
            self._study()

    def test_counts_epochs(self):
        study = self._study()
        first, second, third = study.runs[:3]
        study.add(first, _report(first))
        history = pathlib.Path(second.run_dir) / "checkpoint" / "history.json"
        history.parent.mkdir(parents=True)
        write_json(history, [{"epoch": 0}, {"epoch": 1}])
        write_json(
            pathlib.Path(second.run_dir) / "config.json", second.to_dict()
        )
        self.assertEqual(
            [study.epochs_done(c) for c in (first, second, third)], [5, 2, 0]
        )

    def test_summary(self):
        study = self._study(seeds=[0, 1, 2])
        for config in study.runs:
            # 0.5, 0.6, 0.7: mean 0.6, deviation of the sample 0.1.
            study.add(config, _report(config, 0.5 + 0.1 * config.seed))
        rows = studies.summarize(study.results())
        self.assertEqual(
            [(row["method"], row["target"], row["runs"]) for row in rows],
            [
                ("fliqs", "1.25xint4", 3),
                ("fliqs", "0.01", 3),
                ("uniform:int4", None, 3),
            ],
        )
        mean, deviation = rows[0]["accuracy"]
        self.assertAlmostEqual(mean, 0.6)
        self.assertAlmostEqual(deviation, 0.1)
        self.assertEqual(rows[0]["cost_ratio"], (0.5, 0.0))
        self.assertIsNone(rows[2]["cost_ratio"])

    def test_one_seed_has_no_deviation(self):
        study = self._study(methods=["uniform:int4"], seeds=[0])
        study.add(study.runs[0], _report(study.runs[0]))
        (row,) = studies.summarize(study.results())
        self.assertEqual(row["accuracy"], (0.5, None))

    def test_report_of_a_study_that_is_half_done(self):
        study = self._study()
        for config in study.runs[:4]:
            study.add(config, _report(config))
        study.write_report("python -m fliqs_tf.bin.study --seeds=0,1")
        page = (self.root / "report.md").read_text("utf-8")
        self.assertIn("4 of 6 runs are finished", page)
        self.assertIn("--seeds=0,1", page)
        self.assertIn("| uniform:int4 | - | 1 | 50.00 |", page)
        for name in ("pareto.png", "pareto_size.png"):
            self.assertIn(f"({name})", page)
            self.assertGreater(os.path.getsize(self.root / name), 1000)
        self.assertEqual(
            read_json(study.result_path(study.runs[0]))["file_bytes"], 100
        )

    def test_findings_outlive_a_new_report(self):
        study = self._study(methods=["uniform:int4"], seeds=[0])
        study.add(study.runs[0], _report(study.runs[0]))
        (self.root / "findings.md").write_text("## Found\n\nÄ 4.\n", "utf-8")
        for _ in range(2):
            study.write_report("command")
        page = (self.root / "report.md").read_text("utf-8")
        self.assertEndsWith(page, "](pareto_size.png)\n\n## Found\n\nÄ 4.\n")


if __name__ == "__main__":
    absltest.main()
