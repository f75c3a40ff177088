import io

import keras
import rich.console
from absl.testing import absltest

import fliqs_tf as fliqs
from fliqs_tf import report


def _text(table):
    stream = io.StringIO()
    rich.console.Console(file=stream, width=200).print(table)
    return stream.getvalue()


class LayersTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(4, 3, name="stem"),
                keras.layers.Flatten(),
                keras.layers.Dense(2, name="head"),
            ]
        )

    def test_rows_of_a_fixed_model(self):
        fixed = fliqs.to_fixed(
            self.model,
            {"stem": "int4", "head": {"weight": "int8", "input": None}},
        )
        stem, head = report.layer_rows(fixed)
        # 6 x 6 positions, 3 x 3 kernel, 4 filters; 144 inputs, 2 outputs.
        self.assertEqual((stem["macs"], stem["weights"]), (36 * 36, 36))
        self.assertEqual((head["macs"], head["weights"]), (288, 288))
        self.assertEqual(
            (stem["weight_format"], stem["input_format"]), ("int4", "int4")
        )
        self.assertEqual(
            (head["weight_format"], head["input_format"]), ("int8", None)
        )
        self.assertIsNone(stem["stored_type"])
        text = _text(report.layer_table(fixed))
        self.assertIn("int8, inputs float", text)
        self.assertNotIn("Stored as", text)

    def test_rows_of_a_plain_model_are_float(self):
        formats = {
            row["weight_format"] for row in report.layer_rows(self.model)
        }
        self.assertEqual(formats, {"fp32"})

    def test_a_searchable_model_is_refused(self):
        model = fliqs.to_searchable(self.model, "int_s")
        with self.assertRaisesRegex(ValueError, "'stem' with options int4"):
            report.layer_table(model)


class ResultLineTest(absltest.TestCase):
    def test_with_and_without_a_target(self):
        result = {
            "accuracy": 0.9876,
            "test_samples": 360,
            "cost": 0.0123,
            "cost_unit": "GBOPs",
            "cost_target": 0.0125,
            "cost_ratio": 0.984,
        }
        self.assertEqual(
            report.result_line(result),
            "Accuracy 98.76% on 360 test images; cost 0.0123 GBOPs, 98.4% of "
            "the target of 0.0125.",
        )
        result["cost_target"] = result["cost_ratio"] = None
        self.assertEndsWith(report.result_line(result), "cost 0.0123 GBOPs.")


class StudyTableTest(absltest.TestCase):
    def test_shows_mean_and_deviation(self):
        row = {
            "method": "uniform:int4",
            "target": None,
            "runs": 3,
            "cost_unit": "GBOPs",
            "accuracy": (0.98765, 0.00125),
            "cost": (0.0099978, 0.0000012),
            "cost_ratio": None,
            "size_mib": (0.5, None),
            "seconds": (65.4, 23.6),
            "entropy": None,
            "peak_memory_mib": (812.4, 10.0),
        }
        text = " ".join(_text(report.study_table([row])).split())
        for cell in (
            "98.77 ± 0.12",
            "0.009998 ± 0.000001",
            " 512.0 65 ± 24 812 ± 10",
            "Cost (GBOPs)",
        ):
            self.assertIn(cell, text)
        # Nothing here has an entropy.
        self.assertNotIn("Entropy", text)


if __name__ == "__main__":
    absltest.main()
