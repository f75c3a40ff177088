from absl.testing import absltest

from fliqs_tf.models import arguments

_SHAPE = (8, 8, 1)


class ArgumentsTest(absltest.TestCase):
    def _check_refused(self, message, values, call):
        for value in values:
            with (
                self.subTest(value=value),
                self.assertRaisesRegex(ValueError, message),
            ):
                call(value)

    def test_accepts(self):
        arguments.check_arguments(_SHAPE, 10, 1.0)
        arguments.check_arguments([1, 2, 3], 1, 2)

    def test_input_shape(self):
        self._check_refused(
            "three positive integers.* Received: input_shape=",
            (
                None,
                8,
                "888",
                (8, 8),
                (8, 8, 1, 1),
                (None, None, 3),
                (0, 8, 3),
                (8.0, 8, 3),
                (True, 8, 3),
            ),
            lambda value: arguments.check_arguments(value, 10),
        )

    def test_min_size(self):
        arguments.check_arguments((75, 75, 3), 10, min_size=75)
        with self.assertRaisesRegex(
            ValueError, r"at least 75. Received: input_shape=\(80, 74, 3\)"
        ):
            arguments.check_arguments((80, 74, 3), 10, min_size=75)

    def test_classes(self):
        self._check_refused(
            "positive integer. Received: classes=",
            (0, -1, 1.5, "10", None, True),
            lambda value: arguments.check_arguments(_SHAPE, value),
        )

    def test_width(self):
        self._check_refused(
            "positive, finite number. Received: width=",
            (0, -0.5, float("inf"), float("nan"), "1", None, True),
            lambda value: arguments.check_arguments(_SHAPE, 10, value),
        )


if __name__ == "__main__":
    absltest.main()
