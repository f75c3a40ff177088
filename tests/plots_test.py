import os
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest
from matplotlib import image

from fliqs_tf import plots


class PlotsTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.create_tempdir().full_path) / "plot.png"

    def assertIsPicture(self):
        self.assertEqual(os.listdir(self.path.parent), ["plot.png"])
        pixels = image.imread(self.path)
        self.assertGreater(np.std(pixels[..., :3]), 0.01)

    def test_layer_formats(self):
        rows = [
            {
                "path": name,
                "weight_format": fmt,
                "input_format": fmt,
                "macs": 10,
            }
            for name, fmt in (("stem", "int8"), ("head", "e4m3"))
        ]
        with mock.patch.object(plots, "_save", wraps=plots._save) as save:
            plots.layer_formats(rows, self.path)
            # Inputs of their own format, or of none.
            rows[1]["input_format"] = None
            plots.layer_formats(rows, self.path)
        texts = [
            {text.get_text() for text in call.args[0].axes[0].texts}
            for call in save.mock_calls
        ]
        self.assertEqual(
            texts, [{"int8", "e4m3"}, {"int8 / int8", "e4m3 / float"}]
        )
        self.assertIsPicture()

    def test_probabilities_of_decisions_of_different_sizes(self):
        epochs = [
            {
                "epoch": epoch,
                "probabilities": {
                    "stem": {"int4": 0.5, "int8": 0.5},
                    "head": {"e2m1": 0.2, "int5": 0.3, "e4m3": 0.5},
                },
            }
            for epoch in range(3)
        ]
        plots.probabilities(epochs, self.path)
        self.assertIsPicture()
        # A run of one epoch, too.
        plots.probabilities(epochs[:1], self.path)

    def test_search_curves(self):
        logs = {"reward": -1.0, "cost_ratio": 1.1, "entropy": 0.5}
        epochs = [{"epoch": epoch, "logs": logs} for epoch in range(3)]
        plots.search_curves(epochs, self.path, {"warmup": 0.75})
        self.assertIsPicture()

    def test_switching_errors_of_one_search_and_of_several(self):
        epochs = [
            {"epoch": n, "switching_errors": {"stem": 0.2 / (1 + n), "head": 0}}
            for n in range(3)
        ]
        plots.switching_errors({"a search": epochs}, self.path)
        self.assertIsPicture()
        plots.switching_errors(
            {"a": epochs, "b": epochs, "c": epochs}, self.path
        )
        self.assertIsPicture()

    def test_pareto(self):
        points = [
            {"method": "a", "target": "1", "cost": 1.0, "quality": 90.0},
            {"method": "a", "target": "1", "cost": 1.1, "quality": 91.0},
            {"method": "b", "cost": 20.0, "quality": 92.0, "label": "fp32"},
        ]
        plots.pareto(points, self.path, "cost (GBOPs)", "accuracy (%)")
        self.assertIsPicture()

    def _pareto_axis(self, costs):
        """The axes of a plot of points of these costs."""
        points = [
            {"method": "a", "cost": cost, "quality": 90.0} for cost in costs
        ]
        with mock.patch.object(plots, "_save") as save:
            plots.pareto(points, self.path)
        figure, _ = save.call_args.args
        return figure.axes[0]

    def test_pareto_of_costs_far_apart_is_logarithmic(self):
        for dearest, scale in ((5.0, "linear"), (5.1, "log")):
            axis = self._pareto_axis([1.0, dearest])
            self.assertEqual(axis.get_xscale(), scale)

    def test_pareto_does_not_zoom_into_costs_of_one_target(self):
        # Of 50, and room for labels at both sides.
        for other, span in ((99.9, 10.0), (50.0, 60.0)):
            low, high = self._pareto_axis([100.0, other]).get_xlim()
            self.assertAlmostEqual(high - low, span)
            self.assertAlmostEqual((low + high) / 2, (100.0 + other) / 2)

    def test_pareto_without_points(self):
        with self.assertRaisesRegex(ValueError, "Received: none"):
            plots.pareto([], self.path)

    def test_front_has_what_nothing_cheaper_equals_or_beats(self):
        points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.5), (2.5, 0.4), (3.0, 0.8)]
        self.assertEqual(plots._front(points), [(1.0, 0.5), (3.0, 0.9)])

    def test_a_failure_leaves_the_old_picture(self):
        self.path.write_bytes(b"old")
        with self.assertRaises(KeyError):
            plots.search_curves([{"epoch": 0, "logs": {}}], self.path)
        self.assertEqual(self.path.read_bytes(), b"old")


if __name__ == "__main__":
    absltest.main()
