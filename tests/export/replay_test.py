"""Values between two codes are told from defects."""

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import litert
from fliqs_tf.export import modes
from fliqs_tf.export import twin
from fliqs_tf.export import verify
from fliqs_tf.export import weights
from fliqs_tf.export.agreement import MAX
from fliqs_tf.export.agreement import Bounds
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.replay import Replay
from fliqs_tf.export.runner import Runner
from fliqs_tf.export.slots import Slots
from fliqs_tf.formats import get_format
from tests.export import small_models

_BOUNDS = Bounds(1e-4, MAX)


def _model(fmt):
    """`y = second(first(x) + shift)`, the last two rounded to `fmt`."""
    inputs = keras.Input((4,), name="x")
    shift = keras.layers.Dense(
        4, kernel_initializer="identity", name="shift", use_bias=True
    )
    second = keras.layers.Dense(3, name="second")
    model = keras.Model(inputs, second(shift(inputs)))
    # The range is 7: INT4 codes are whole numbers.
    data = np.array([[7.0, -7.0, 0.0, 1.0]], "float32")
    return small_models.fixed(model, {"shift": "fp32", "second": fmt}, data)


class ReplayTest(parameterized.TestCase):
    def _compare(self, sample, moved, fmt="int4"):
        """A file whose bias is moved, against the model."""
        model = _model(fmt)
        reference = twin.float32_reference(model)
        bias = model.get_layer("shift").bias
        bias.assign(bias + moved)
        content = modes.convert(
            model, "fake_quant", "small", [[sample]]
        ).to_bytes()
        bias.assign(bias - moved)
        replay = Replay(content, reference, _BOUNDS.tolerance)
        batch = verify.Batch([sample])
        found = verify.compare(
            Runner(content),
            {"verification": (reference, _BOUNDS)},
            iter([batch]),
            "given",
            replay,
            is_exact=True,
        )
        # The model has its own quantizers again.
        self.assertEqual(
            model.get_layer("second").input_quantizer.formats, (fmt,)
        )
        return found["verification"]

    @parameterized.parameters("int4", "e2m1")
    def test_value_between_two_codes(self, fmt):
        # 2.5 lies between the codes 2 and 3 of both, in steps of the range 7.
        between = (2.5 - 2e-5) * {"int4": 1, "e2m1": 7 / 6}[fmt]
        sample = np.array(
            [[between, 7.0, 1.0, -7.0], [1.0, 7.0, -1.0, 7.0]], "float32"
        )
        found = self._compare(sample, 7e-5, fmt)
        self.assertEqual(found.deviating_samples, 1)
        self.assertEqual(found.replayed_samples, 1)
        self.assertGreater(found.max_relative_error, 1e-3)
        self.assertLess(found.replayed_error, 1e-6)
        self.assertTrue(found.passed)
        self.assertRegex(str(found), "1 deviate, 1 of them by values between")

    def test_value_too_far_from_the_boundary(self):
        sample = np.array([[2.4, 7.0, 1.0, -7.0]], "float32")
        found = self._compare(sample, 0.2)
        self.assertEqual(found.deviating_samples, 1)
        self.assertEqual(found.replayed_samples, 0)
        self.assertFalse(found.passed)

    def test_what_is_no_code(self):
        """Not to round at all is nearest to the value, and yet wrong."""
        model = _model("int4")
        reference = twin.float32_reference(model)
        graph = litert.convert(twin.float_twin(model), Slots(), model)
        kernels = [
            weights.Kernel(path, *_format_and_codes(layer))
            for path, layer in twin.fixed_layers(model).items()
        ]
        weights.store(graph, kernels)
        content = Graph(graph.to_bytes()).to_bytes()
        sample = np.array([[2.4, 7.0, 1.0, -7.0]], "float32")
        replay = Replay(content, reference, _BOUNDS.tolerance)
        self.assertIsNone(replay([sample]))


def _format_and_codes(layer):
    return get_format(layer.formats[0]), twin.normalized_codes(layer)[0]


if __name__ == "__main__":
    absltest.main()
