import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import agreement
from fliqs_tf.export.agreement import Bounds
from fliqs_tf.export.agreement import Tally


def _compare(received, expected, bounds, labels=None):
    tally = Tally()
    # Batch by batch, as it is used.
    for index, (row, other) in enumerate(zip(received, expected, strict=True)):
        tally.add(
            [np.array([row], "float32")],
            [np.array([other], "float32")],
            None if labels is None else np.array(labels[index : index + 1]),
        )
    return tally.result("given", bounds)


class MaxTest(parameterized.TestCase):
    bounds = Bounds(0.01)

    def test_error_is_relative_to_the_largest_output(self):
        result = _compare(
            [[10, 0], [0, 5.1], [1, 0.51]],
            [[10, 0], [0, 5.0], [1, 0.50]],
            self.bounds,
        )
        # The largest difference is 0.1, the largest output 10.
        self.assertAlmostEqual(result.max_relative_error, 0.01, places=6)
        self.assertEqual(result.samples, 3)
        self.assertEqual(result.argmax_agreement, 3)

    def test_argmax_counts_by_itself(self):
        result = _compare([[0.999, 1]] * 3, [[1, 0.999]] * 3, self.bounds)
        self.assertLess(result.max_relative_error, 0.01)
        self.assertEqual(result.argmax_agreement, 0)
        self.assertEqual(result.deviating_samples, 3)
        self.assertFalse(result.passed)

    def test_equal_largest_values_are_no_disagreement(self):
        self.assertTrue(_compare([[1, 1.001]], [[1, 1]], self.bounds).passed)

    def test_nan_is_an_infinite_error(self):
        nan = float("nan")
        for measure in (agreement.MAX, agreement.RMS):
            bounds = Bounds(0.01, measure)
            result = _compare([[nan, 1]] * 2, [[1, 1]] * 2, bounds)
            self.assertEqual(result.max_relative_error, np.inf)
            self.assertEqual(result.rms_error, np.inf)
            self.assertEqual(result.deviating_samples, 2)
            self.assertFalse(result.passed)
            self.assertTrue(_compare([[nan, 1]], [[nan, 1]], bounds).passed)

    def test_output_of_zeros(self):
        self.assertTrue(_compare([[0, 0]], [[0, 0]], self.bounds).passed)
        self.assertFalse(_compare([[1, 1]], [[0, 0]], self.bounds).passed)

    def test_another_shape_is_an_error(self):
        with self.assertRaisesRegex(RuntimeError, r"\(1, 3\).*\(1, 2\)"):
            _compare([[1, 1, 1]], [[1, 1]], self.bounds)


class RmsTest(absltest.TestCase):
    def test_error_is_relative_to_the_norm(self):
        bounds = Bounds(0.11, agreement.RMS)
        result = _compare([[3, 4.4], [0, 1]], [[3, 4], [0, 0]], bounds)
        self.assertAlmostEqual(result.rms_error, (0.16 + 1) ** 0.5 / 5, 6)
        self.assertFalse(result.passed)
        # One value far off counts only by its square.
        self.assertTrue(_compare([[3, 4.5]], [[3, 4]], bounds).passed)

    def test_accuracy(self):
        outputs = [[1, 0], [1, 0], [0, 1], [0, 1]]
        other = [[1, 0], [0, 1], [0, 1], [0, 1]]
        bounds = Bounds(np.inf, agreement.RMS, accuracy_drop=0.2)
        result = _compare(other, outputs, bounds, [0, 0, 1, 1])
        self.assertEqual(result.accuracy, 0.75)
        self.assertEqual(result.reference_accuracy, 1.0)
        self.assertEqual(result.accuracy_drop, 0.25)
        self.assertFalse(result.passed)
        # A sample that no replay was made of, though any error is allowed.
        self.assertEqual(result.deviating_samples, 1)
        self.assertEqual(result.replayed_samples, 0)
        self.assertNotIn("between two codes", str(result))
        self.assertTrue(_compare(outputs, other, bounds, [0, 0, 1, 1]).passed)
        self.assertTrue(_compare(other, outputs, bounds).passed)


if __name__ == "__main__":
    absltest.main()
