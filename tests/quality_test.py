"""The accuracy of a batch, whatever the targets and the loss."""

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf import quality

_LOGITS = np.float32([[2, 1, 0], [0, 3, 1], [1, 0, 2], [0, 0, 1]])


class AccuracyTest(parameterized.TestCase):
    @parameterized.parameters(
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        keras.losses.sparse_categorical_crossentropy,
        lambda y, y_pred: y_pred[:, 0],
    )
    def test_class_numbers(self, loss):
        y = np.int32([0, 1, 2, 0])
        self.assertEqual(float(quality.accuracy(y, _LOGITS, loss)), 0.75)
        y = y[:, None]
        self.assertEqual(float(quality.accuracy(y, _LOGITS, loss)), 0.75)

    @parameterized.parameters(lambda loss: {"head": loss}, lambda loss: [loss])
    def test_losses_by_output(self, form):
        y = np.float32([[0], [1], [1], [1]])
        y_pred = np.float32([[-2], [0.2], [0.3], [3]])
        loss = form(keras.losses.BinaryCrossentropy(from_logits=True))
        self.assertEqual(float(quality.accuracy(y, y_pred, loss)), 1.0)

    @parameterized.parameters(
        lambda x: {"head": x}, lambda x: [x], lambda x: (x,)
    )
    def test_one_output_by_its_name_or_in_a_list(self, form):
        y, loss = np.int32([0, 1, 2, 0]), "sparse_categorical_crossentropy"
        for targets in (y, form(y)):
            found = quality.accuracy(targets, form(_LOGITS), form(loss))
            self.assertEqual(float(found), 0.75)

    def test_one_hot_rows(self):
        y = np.eye(3, dtype="float32")[[0, 1, 2, 0]]
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        self.assertEqual(float(quality.accuracy(y, _LOGITS, loss)), 0.75)

    @parameterized.parameters((True, 1.0), (False, 0.5))
    def test_binary_logits_are_cut_at_zero(self, from_logits, expected):
        y = np.float32([[0], [1], [1], [1]])
        y_pred = np.float32([[-2], [0.2], [0.3], [3]])
        loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
        self.assertEqual(float(quality.accuracy(y, y_pred, loss)), expected)

    def test_several_labels(self):
        y = np.float32([[1, 1, 0], [0, 0, 0]])
        y_pred = np.float32([[0.9, 0.8, 0.2], [0.1, 0.6, 0.1]])
        found = quality.accuracy(y, y_pred, "binary_crossentropy")
        self.assertAlmostEqual(float(found), 5 / 6)

    @parameterized.parameters("mse", keras.losses.Huber(), "hinge")
    def test_other_losses_are_refused(self, loss):
        with self.assertRaisesRegex(ValueError, "Received: 1 outputs, loss="):
            quality.accuracy(_LOGITS, _LOGITS, loss)

    def test_several_outputs_are_refused(self):
        inputs = keras.Input((4,))
        outputs = [keras.layers.Dense(3)(inputs), keras.layers.Dense(3)(inputs)]
        search = fliqs.SearchModel(
            keras.Model(inputs, outputs), "int_s", quality="accuracy"
        )
        search.compile(loss="sparse_categorical_crossentropy")
        y = np.zeros(8, "int32")
        with self.assertRaisesRegex(ValueError, "Received: 2 outputs"):
            search.fit(np.ones((8, 4)), [y, y], verbose=0)


if __name__ == "__main__":
    absltest.main()
