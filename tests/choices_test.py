"""Tests of arguments that are one of a few names."""

import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.choices import check_choice


class CheckChoiceTest(parameterized.TestCase):
    def test_takes_each_of_the_choices(self):
        for name in ("one", "two"):
            check_choice("number", name, ("one", "two"))

    @parameterized.parameters(
        ("three", "number='three'"),
        ("", "number=''"),
        (None, "number=None"),
        # Neither is hashed nor compared element by element.
        ([], r"number=\[\]"),
        (np.zeros(2), "number=array"),
    )
    def test_refuses_all_else_by_name(self, value, received):
        with self.assertRaisesRegex(
            ValueError,
            f"`number` must be one of one, two. Received: {received}",
        ):
            check_choice("number", value, {"one": 1, "two": 2})


if __name__ == "__main__":
    absltest.main()
