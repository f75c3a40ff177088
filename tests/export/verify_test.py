import keras
import numpy as np
import tensorflow as tf
from absl.testing import absltest
from absl.testing import parameterized

from fliqs_tf.export import verify
from fliqs_tf.export.agreement import MAX
from fliqs_tf.export.agreement import Bounds


def _linear(weights):
    inputs = keras.Input((len(weights),), name="x")
    layer = keras.layers.Dense(len(weights[0]), use_bias=False)
    model = keras.Model(inputs, layer(inputs))
    layer.set_weights([np.array(weights, "float32")])
    return model


class _Traced(keras.layers.Layer):
    """Counts how often Python runs it."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x


class _Sequence(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self._batches = batches

    def __len__(self):
        return len(self._batches)

    def __getitem__(self, index):
        return self._batches[index]


class _Endless(keras.utils.PyDataset):
    num_batches = None


class CompareTest(parameterized.TestCase):
    @parameterized.parameters(
        # Every batch, and building the model.
        (True, 12 + 1),
        # The first 8, and the trace.
        (False, 8 + 1 + 1),
    )
    def test_many_batches_are_called_compiled(self, is_exact, calls):
        inputs = {name: keras.Input((3, 2), name=name) for name in "ba"}
        layer = _Traced()
        outputs = layer(inputs["a"]) - keras.ops.relu(2.0 * inputs["b"])
        model = keras.Model(inputs, [outputs, inputs["a"]])
        random = np.random.default_rng(0)
        batches = [
            verify.Batch(
                list(random.standard_normal((2, size, 3, 2), "float32"))
            )
            for size in [4] * 11 + [1]
        ]

        def run(arrays):
            # Half of the last sample is wrong.
            self.assertLen(arrays, 2)
            order = [x.name for x in model.inputs]
            a, b = (arrays[order.index(name)] for name in "ab")
            difference = a - np.maximum(2.0 * b, 0.0)
            return [difference * (0.5 if len(a) == 1 else 1.0), a]

        found = verify.compare(
            run,
            {"verification": (model, Bounds(1e-6, MAX))},
            iter(batches),
            "given",
            is_exact=is_exact,
        )["verification"]
        self.assertEqual(layer.calls, calls)
        self.assertEqual(found.samples, 45)
        self.assertEqual(found.deviating_samples, 1)
        self.assertFalse(found.passed)


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
        lambda x: (part for part in [x]),
        lambda x: iter([({"x": x}, x)]),
        lambda x: iter(tf.data.Dataset.from_tensors((x, x))),
        lambda x: _Sequence([x]),
        lambda x: _Sequence([(x, x, x)]),
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
        # Of that width, and no one-hot rows.
        (lambda y: np.eye(3)[y] * 0.9 + 0.1 / 3, False),
        (lambda y: np.eye(3)[y] + np.eye(3)[0], False),
        (lambda y: np.stack([y, y + 1, y - 1], 1).astype("float32"), False),
        (lambda y: np.eye(3)[y] * (y[:, None] != 1), False),
    )
    def test_labels(self, form, are_labels):
        model = _linear([[1.0, 0.0, 2.0], [1.0, 1.0, 0.0]])
        y = np.arange(150) % 3
        pair = self.data, form(y)
        data = tf.data.Dataset.from_tensor_slices(pair)
        for given in (pair, data.batch(100)):
            batches = list(verify.batches_of(given, model))
            rows = np.concatenate([batch.inputs[0] for batch in batches])
            np.testing.assert_array_equal(rows, self.data)
            if are_labels:
                labels = np.concatenate([batch.labels for batch in batches])
                np.testing.assert_array_equal(labels, y)
            else:
                self.assertIsNone(batches[0].labels)

    @parameterized.parameters(-1, 3)
    def test_labels_that_are_no_classes(self, label):
        model = _linear([[1.0, 0.0, 2.0], [1.0, 1.0, 0.0]])
        pair = self.data, np.array([label, *[0] * 149])
        with self.assertRaisesRegex(ValueError, f"0 to 2. Received:.*{label}"):
            next(verify.batches_of(pair, model))

    @parameterized.parameters(
        lambda x: tf.data.Dataset.from_tensor_slices(x).repeat(),
        lambda x: _Endless(),
    )
    def test_endless_data(self, form):
        with self.assertRaisesRegex(ValueError, "infinite"):
            self._rows(form(self.data))

    @parameterized.parameters(
        (
            lambda x: tf.data.Dataset.from_tensor_slices((x, x[:, 0])),
            r"shape \(None, 2\). Received: shape=\(2,\). Leave the batch",
        ),
        (
            lambda x: np.array(["one", "two"]),
            r"arrays of numbers.*\['x'\]. Received: ndarray \(could not",
        ),
        (lambda x: [x.tolist() + [[1]]], r"Received: list \(.*inhomogeneous"),
        (lambda x: [map(abs, x)], r"Received: map \("),
        (lambda x: iter([]), "at least one sample. Received: none"),
    )
    def test_data_that_are_no_batches(self, form, message):
        with self.assertRaisesRegex(ValueError, message):
            self._rows(form(self.data))

    def test_inputs_without_a_size_are_batches(self):
        inputs = keras.Input(())
        model = keras.Model(inputs, 2.0 * inputs)
        with self.assertRaisesRegex(ValueError, r"\(None,\). Received: .*\(\)"):
            next(verify.batches_of(np.float32(3.0), model))

    def test_labels_of_some_samples(self):
        model = _linear([[1.0, 0.0], [1.0, 1.0]])
        pair = self.data, np.zeros(149, int)
        with self.assertRaisesRegex(ValueError, "149 labels of 150 samples"):
            next(verify.batches_of(pair, model))

    def test_random_inputs_need_a_size(self):
        inputs = keras.Input((None, 3))
        model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
        with self.assertRaisesRegex(ValueError, "verify_data"):
            next(verify.random_batches(model))


if __name__ == "__main__":
    absltest.main()
