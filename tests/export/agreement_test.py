import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import agreement
from fliqs_tf.export import output_errors
from fliqs_tf.export.agreement import Bounds
from fliqs_tf.export.tally import Tally


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

    @parameterized.parameters("-inf", "inf", "nan")
    def test_output_without_a_finite_number_proves_nothing(self, value):
        outputs = [[float(value)] * 2] * 3
        with self.assertRaisesRegex(ValueError, r"none in outputs \[0\]"):
            _compare(outputs, outputs, self.bounds)

    @parameterized.parameters("-inf", "inf", "nan")
    def test_values_that_are_not_finite_give_no_scale(self, value):
        value = float(value)
        # An error of 0.1 where the largest finite output is 2.
        received = [[value, 1.0], [1.0, 2.1]]
        expected = [[value, 1.0], [1.0, 2.0]]
        result = _compare(received, expected, Bounds(0.06))
        self.assertAlmostEqual(result.max_relative_error, 0.05, places=6)
        self.assertEqual(result.deviating_samples, 0)
        result = _compare(received, expected, Bounds(0.04))
        self.assertEqual(result.deviating_samples, 1)
        received, expected = (np.array(y) for y in (received, expected))
        for tolerance, found in ((0.06, []), (0.04, [1])):
            deviating = output_errors.deviating(
                [received], [expected], tolerance
            )
            self.assertEqual(deviating, found)

    @parameterized.parameters(5.0, np.inf, np.nan)
    def test_infinity_that_is_missed_is_an_infinite_error(self, value):
        result = _compare([[value, 1]], [[-np.inf, 1]], Bounds(1e9))
        self.assertEqual(result.max_relative_error, np.inf)
        self.assertEqual(result.rms_error, np.inf)
        self.assertFalse(result.passed)

    @parameterized.parameters("bool", "uint8", "int64")
    def test_outputs_that_are_no_floats(self, dtype):
        tally = Tally()
        received, expected = (
            np.array(y, dtype) for y in ([[0, 1], [1, 0]], [[0, 1], [1, 1]])
        )
        tally.add([received], [expected], None)
        result = tally.result("given", self.bounds)
        self.assertEqual(result.max_relative_error, 1.0)
        self.assertEqual(result.deviating_samples, 1)
        self.assertEqual(result.argmax_agreement, 2)

    def test_output_of_zeros(self):
        self.assertTrue(_compare([[0, 0]], [[0, 0]], self.bounds).passed)
        self.assertFalse(_compare([[1, 1]], [[0, 0]], self.bounds).passed)

    def test_another_shape_is_an_error(self):
        with self.assertRaisesRegex(RuntimeError, r"\(1, 3\).*\(1, 2\)"):
            _compare([[1, 1, 1]], [[1, 1]], self.bounds)

    def test_another_element_type_is_an_error(self):
        pair = [np.ones((1, 2), "int8")], [np.ones((1, 2), "float32")]
        with self.assertRaisesRegex(RuntimeError, "int8.*float32"):
            Tally().add(*pair, None)


class BoundsTest(parameterized.TestCase):
    @parameterized.product(
        name=("tolerance", "accuracy_drop"), value=(-1.0, float("nan"))
    )
    def test_numbers_that_bound_nothing(self, name, value):
        with self.assertRaisesRegex(ValueError, f"Received: {name}={value}"):
            Bounds(**{"tolerance": 0.1, name: value})


class RmsTest(parameterized.TestCase):
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

    def test_accuracy_drop_at_the_very_limit(self):
        outputs = np.eye(2)[[0] * 90 + [1] * 10]
        other = np.eye(2)[[0] * 89 + [1] * 11]
        labels = [0] * 100
        bounds = Bounds(np.inf, agreement.RMS, accuracy_drop=0.01)
        # 0.9 - 0.89 is 0.010000000000000009 in floating point.
        self.assertTrue(_compare(other, outputs, bounds, labels).passed)
        other = np.eye(2)[[0] * 88 + [1] * 12]
        self.assertFalse(_compare(other, outputs, bounds, labels).passed)

    @parameterized.parameters(
        # Accuracies of the file, of the reference and of naming one class.
        (19, 20, 10, True),
        (20, 19, 10, True),
        (15, 20, 10, True),
        (14, 20, 10, False),
        (10, 20, 10, False),
        # A rare class, of which the file knows half or less.
        (19, 20, 18, True),
        (18, 20, 18, False),
        # Labels of another model, and of one class.
        (14, 0, 10, False),
        (20, 20, 20, False),
    )
    def test_labels_that_tell_nothing(self, right, reference, constant, passed):
        """Then the RMS decides, though no accuracy is lost."""
        labels = np.arange(20) >= constant
        # The last are wrong, so that whoever names one class is right first.
        received, expected = (
            np.eye(2)[
                np.where(np.arange(20) < count, labels, ~labels).astype(int)
            ]
            for count in (right, reference)
        )
        bounds = Bounds(0.1, agreement.ACCURACY)
        result = _compare(2 * received, expected, bounds, labels.astype(int))
        self.assertEqual(result.constant_accuracy, constant / 20)
        self.assertGreater(result.rms_error, 0.1)
        self.assertEqual(result.passed, passed)
        close = _compare(expected, expected, bounds, labels.astype(int))
        self.assertTrue(close.passed)

    def test_labels_of_some_batches_are_none(self):
        tally = Tally()
        outputs = np.eye(2, dtype="float32")
        tally.add([outputs], [outputs], np.array([0, 1]))
        tally.add([outputs[::-1]], [outputs], None)
        result = tally.result("given", Bounds(0.1, agreement.ACCURACY))
        self.assertIsNone(result.accuracy)
        self.assertFalse(result.passed)


if __name__ == "__main__":
    absltest.main()
