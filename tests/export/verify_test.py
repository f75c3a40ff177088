import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import litert
from fliqs_tf.export import verify
from fliqs_tf.export.slots import Slots


def _linear(weights):
    inputs = keras.Input((len(weights),), name="x")
    layer = keras.layers.Dense(len(weights[0]), use_bias=False)
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([np.array(weights, "float32")])
    return model


class CompareTest(parameterized.TestCase):
    def _compare(self, file, reference, x):
        content = litert.convert(file, Slots(), file).to_bytes()
        batches = iter([[np.array(x, "float32")]])
        return verify.compare(content, reference, batches, "given", 0.01)

    def test_error_is_relative_to_the_largest_output(self):
        reference = _linear([[1.0, 0.0], [0.0, 1.0]])
        file = _linear([[1.0, 0.0], [0.0, 1.02]])
        result = self._compare(file, reference, [[10, 0], [0, 5], [1, 0.5]])
        # The largest difference is 5 * 0.02, the largest output 10.
        self.assertAlmostEqual(result.max_relative_error, 0.01, places=6)
        self.assertEqual(result.samples, 3)
        self.assertEqual(result.argmax_agreement, 3)

    def test_argmax_counts_by_itself(self):
        reference = _linear([[1.0, 0.999]])
        file = _linear([[0.999, 1.0]])
        result = self._compare(file, reference, [[1], [2], [-1]])
        self.assertLess(result.max_relative_error, 0.01)
        self.assertEqual(result.argmax_agreement, 0)
        self.assertEqual(result.deviating_samples, 3)
        self.assertFalse(result.passed)

    def test_equal_largest_values_are_no_disagreement(self):
        reference = _linear([[1.0, 1.0]])
        file = _linear([[1.0, 1.001]])
        result = self._compare(file, reference, [[1]])
        self.assertTrue(result.passed)

    def test_nan_is_an_infinite_error(self):
        model = _linear([[1.0, 1.0]])
        file = _linear([[np.nan, 1.0]])
        result = self._compare(file, model, [[1], [2]])
        self.assertEqual(result.max_relative_error, np.inf)
        self.assertEqual(result.deviating_samples, 2)
        self.assertTrue(self._compare(file, file, [[1]]).passed)

    def test_output_of_zeros(self):
        model = _linear([[0.0, 0.0]])
        self.assertTrue(self._compare(model, model, [[1]]).passed)
        self.assertFalse(
            self._compare(_linear([[1.0, 1.0]]), model, [[1]]).passed
        )

    def test_another_shape_is_an_error(self):
        with self.assertRaisesRegex(RuntimeError, r"\(1, 3\).*\(1, 2\)"):
            self._compare(_linear([[1.0] * 3]), _linear([[1.0] * 2]), [[1]])


class BatchesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.model = _linear([[1.0], [1.0]])
        self.data = np.arange(300).reshape(150, 2)

    def _rows(self, data):
        batches = list(verify.batches_of(data, self.model))
        sizes = [len(batch[0]) for batch in batches]
        return np.concatenate([batch[0] for batch in batches]), sizes

    @parameterized.parameters(
        lambda x: x,
        lambda x: x.tolist() and [x],
        lambda x: {"x": x},
        lambda x: tf.data.Dataset.from_tensor_slices(x).batch(150),
        lambda x: tf.data.Dataset.from_tensor_slices((x, x)).batch(150),
        lambda x: tf.data.Dataset.from_tensor_slices({"x": x}).batch(150),
    )
    def test_forms(self, form):
        rows, sizes = self._rows(form(self.data))
        np.testing.assert_array_equal(rows, self.data)
        self.assertEqual(rows.dtype, np.float32)
        self.assertEqual(sizes, [64, 64, 22])

    def test_random_batches_repeat(self):
        (first,), (second,) = (
            next(verify.random_batches(self.model)) for _ in range(2)
        )
        np.testing.assert_array_equal(first, second)

    def test_endless_data(self):
        data = tf.data.Dataset.from_tensor_slices(self.data).repeat()
        with self.assertRaisesRegex(ValueError, "infinite"):
            self._rows(data)

    def test_random_inputs_need_a_size(self):
        inputs = keras.Input((None, 3))
        model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
        with self.assertRaisesRegex(ValueError, "verify_data"):
            next(verify.random_batches(model))


if __name__ == "__main__":
    absltest.main()
