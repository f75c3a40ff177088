import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from keras import ops

from fliqs_tf import numerics
from fliqs_tf.export import rounding
from fliqs_tf.export.slots import Slots
from fliqs_tf.formats import get_format

_FORMATS = (
    *("int2", "int5", "int8", "int16", "e1m2", "e2m1", "e3m0", "e4m3"),
    *("e5m2", "e5m10", "e8m3", "bf16", "fp16"),
)


def _hard_values(fmt, scale):
    """Grid points, midpoints between them, their neighbours, and extremes."""
    grid = fmt.values()
    if len(grid) > 2000:
        grid = grid[np.linspace(0, len(grid) - 1, 2000).astype(int)]
    middle = (grid[1:] + grid[:-1]) / 2
    values = np.concatenate([grid, middle]) / fmt.unit * scale
    values = values[np.abs(values) < 3e38].astype(np.float32)
    around = [np.nextafter(values, np.float32(s)) for s in (-np.inf, np.inf)]
    extremes = np.array([0.0, -0.0, 1e-20, 3e38, -3e38], np.float32)
    return np.concatenate([values, *around, extremes])


class RoundingTest(parameterized.TestCase):
    @parameterized.parameters(*_FORMATS)
    def test_equals_the_training_kernel(self, name):
        fmt = get_format(name)
        scale = np.float32(0.0371 if fmt.is_scaled else 1.0)
        x = _hard_values(fmt, scale)
        row = fmt.row()
        expected = numerics.round_to_row(ops.convert_to_tensor(x) / scale, row)
        largest = float(row[2])
        grid = rounding.Grid(scale, rounding.step_of(fmt), -largest, largest)
        if not fmt.is_scaled:
            grid = None
        codes, rest = rounding.InputRounding(fmt, grid, Slots()).codes(
            ops.convert_to_tensor(x), False, {}
        )
        unit = rounding.step_of(fmt) if fmt.is_integer else 1.0
        np.testing.assert_array_equal(
            np.asarray(codes) * np.float32(unit), expected
        )
        self.assertEqual(float(rest), 1.0)

    @parameterized.parameters("int4", "e4m3")
    def test_dynamic_scale_equals_the_training_kernel(self, name):
        fmt = get_format(name)
        x = np.random.default_rng(0).standard_normal((50, 3)).astype("float32")
        row = ops.convert_to_tensor(fmt.row())
        scale = numerics.absmax_scale(x, row)
        expected = numerics.quantize(x, row, scale) * scale
        codes, scale = rounding.InputRounding(fmt, None, Slots()).codes(
            ops.convert_to_tensor(x), False, {}
        )
        np.testing.assert_array_equal(codes * scale, expected)

    @parameterized.parameters(
        ("int4", 7), ("int8", 127), ("e1m2", 7), ("e2m1", 12), ("e4m0", 16384)
    )
    def test_levels(self, name, levels):
        self.assertEqual(rounding.levels_of(get_format(name)), levels)


if __name__ == "__main__":
    absltest.main()
