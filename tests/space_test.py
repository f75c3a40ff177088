"""Spaces, decisions and rules as plain data."""

from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf import space
from fliqs_tf.formats import get_format


class SpaceTest(parameterized.TestCase):
    def test_named_spaces(self):
        self.assertEqual(space.SPACES["int_s"], ("int4", "int8"))
        self.assertEqual(
            space.SPACES["int_l"], ("int4", "int5", "int6", "int7", "int8")
        )
        self.assertEqual(space.SPACES["fp_s"], ("e2m1", "e4m3"))
        # All ExMy of 4 to 8 bits, without the E1My and those of E > 5, which
        # no one builds: 2 + 3 + 3 + 4 + 4.
        found = [get_format(name) for name in space.SPACES["fp_l"]]
        self.assertLen({fmt.name for fmt in found}, 16)
        self.assertEqual(
            [sum(f.bits == b for f in found) for b in (4, 5, 6, 7, 8)],
            [2, 3, 3, 4, 4],
        )
        self.assertEqual(
            space.SPACES["mixed_s"], ("int4", "int8", "e2m1", "e4m3")
        )
        self.assertLen(set(space.SPACES["mixed_l"]), 21)

    @parameterized.parameters(
        ("int_s", ("int4", "int8")),
        ("int4", ("int4",)),
        ("int4,e2m1", ("int4", "e2m1")),
        (" e2m1 , int4 ,", ("e2m1", "int4")),
        (("int8", "int4"), ("int8", "int4")),
        (["int8"], ("int8",)),
        ((get_format("e4m3"), "int4"), ("e4m3", "int4")),
    )
    def test_forms(self, given, expected):
        self.assertEqual(space.get_space(given), expected)

    @parameterized.parameters(
        "", ",", (()), "int_xl", "int4,int9", (("int4", "int4"),), "int4 int8"
    )
    def test_impossible_space(self, *given):
        with self.assertRaisesRegex(ValueError, "Received"):
            space.get_space(given[0] if given else ())

    def test_unknown_name_lists_the_spaces(self):
        with self.assertRaisesRegex(ValueError, "int_s, int_l, fp_s, fp_l"):
            space.get_space("int_m")

    def test_decision_names_are_unique(self):
        options = ("int4",)
        names = [
            space.Decision("a/b", kind, options).name
            for kind in ("format", "weight_format", "input_format")
        ]
        self.assertEqual(
            names, ["a/b", "a/b:weight_format", "a/b:input_format"]
        )

    def test_rule_matches_the_whole_path(self):
        rule = space.Rule(path="block/.*", formats="int_s")
        self.assertEqual(rule.formats, ("int4", "int8"))
        for path, expected in (
            ("block/conv", True),
            ("my_block/conv", False),
            ("block", False),
        ):
            self.assertEqual(rule.matches(path, "Conv2D", None), expected)
        self.assertFalse(space.Rule(path="conv").matches("conv1", "", None))

    def test_rule_matches_by_all_that_it_says(self):
        rule = space.Rule(
            path="a.*", kind="Conv.*", predicate=lambda path, layer: layer
        )
        for path, kind, layer, expected in (
            ("ab", "Conv2D", True, True),
            ("ba", "Conv2D", True, False),
            ("ab", "Dense", True, False),
            ("ab", "SeparableConv2D", True, False),
            ("ab", "Conv2D", False, False),
        ):
            self.assertEqual(rule.matches(path, kind, layer), expected)

    def test_rule_that_leaves_alone(self):
        self.assertTrue(space.Rule(path="a").leaves_alone)
        for said in (
            {"formats": "int4"},
            {"input_formats": None},
            {"input_formats": "apart"},
            {"tie": "b"},
        ):
            self.assertFalse(space.Rule(path="a", **said).leaves_alone)

    @parameterized.parameters("(", "*", "[a")
    def test_rule_of_a_bad_expression(self, path):
        with self.assertRaisesRegex(ValueError, "Received: path="):
            space.Rule(path=path)

    def test_rule_whose_formats_are_apart(self):
        with self.assertRaisesRegex(ValueError, "go with `input_formats`"):
            space.Rule(path="a", formats="apart")

    def test_rule_of_a_bad_space(self):
        with self.assertRaisesRegex(ValueError, "Received"):
            space.Rule(path="a", formats="int9")

    def test_nearest(self):
        names = ["stem", "body/conv", "body/dense", "head"]
        self.assertStartsWith(space.nearest("steam", names), "stem")
        self.assertEqual(
            space.nearest("zzz", names), "stem, body/conv, body/dense, head"
        )
        self.assertEqual(space.nearest("a", []), "none")


if __name__ == "__main__":
    absltest.main()
