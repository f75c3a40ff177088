import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import verify


def _linear(weights):
    inputs = keras.Input((len(weights),), name="x")
    layer = keras.layers.Dense(len(weights[0]), use_bias=False)
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([np.array(weights, "float32")])
    return model


class BatchesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.model = _linear([[1.0], [1.0]])
        self.data = np.arange(300).reshape(150, 2)

    def _rows(self, data):
        batches = list(verify.batches_of(data, self.model))
        sizes = [len(batch.inputs[0]) for batch in batches]
        return np.concatenate([b.inputs[0] for b in batches]), sizes

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
            next(verify.random_batches(self.model)).inputs for _ in range(2)
        )
        np.testing.assert_array_equal(first, second)

    @parameterized.parameters(
        (lambda y: y, True),
        (lambda y: y[:, None], True),
        (lambda y: np.eye(3)[y], True),
        # Neither class numbers nor one row of the output's width.
        (lambda y: y.astype("float32"), False),
        (lambda y: np.eye(4)[y], False),
    )
    def test_labels(self, form, are_labels):
        model = _linear([[1.0, 0.0, 2.0], [1.0, 1.0, 0.0]])
        y = np.arange(150) % 3
        data = tf.data.Dataset.from_tensor_slices((self.data, form(y)))
        batches = list(verify.batches_of(data.batch(100), model))
        if are_labels:
            labels = np.concatenate([batch.labels for batch in batches])
            np.testing.assert_array_equal(labels, y)
        else:
            self.assertIsNone(batches[0].labels)

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
