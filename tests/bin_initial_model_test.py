"""Models from files: every weight arrives, and no format stays."""

import os

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf.bin import initial_model
from fliqs_tf.layers.composite import Composite
from fliqs_tf.layers.searchable_layer import SearchableLayer
from tests import any_models


class InitialModelTest(parameterized.TestCase):
    # Within layers made of layers, names of weights repeat.
    @parameterized.product(
        make=[any_models.recurrent, any_models.attention],
        is_fixed=[False, True],
    )
    def test_outputs_are_those_of_the_model_in_the_file(self, make, is_fixed):
        model = make()
        path = os.path.join(self.create_tempdir().full_path, "m.keras")
        (fliqs.to_fixed(model, "fp32") if is_fixed else model).save(path)
        loaded = initial_model.load(path)
        for layer in loaded._flatten_layers():
            self.assertNotIsInstance(layer, SearchableLayer | Composite)
        rng = np.random.default_rng(0)
        x = rng.normal(size=(4, *model.input_shape[1:])).astype("float32")
        np.testing.assert_array_equal(
            loaded.predict(x, verbose=0), model.predict(x, verbose=0)
        )

    @parameterized.parameters(
        # Wrong sides, channels, classes, outputs.
        ([(8, 8, 1)], [(10,)], (9, 9, 1), 10, False),
        ([(8, 8, 1)], [(10,)], (8, 8, 3), 10, False),
        ([(8, 8, 1)], [(10,)], (8, 8, 1), 7, False),
        ([(8, 8, 1)], [(10,), (10,)], (8, 8, 1), 10, False),
        ([(8, 8, 1), (8, 8, 1)], [(10,)], (8, 8, 1), 10, False),
        ([(64,)], [(10,)], (8, 8, 1), 10, False),
        ([(8, 8, 1)], [(10,)], (8, 8, 1), 10, True),
        ([(None, None, 1)], [(10,)], (8, 8, 1), 10, True),
    )
    def test_model_must_fit_the_data(
        self, inputs, outputs, image_shape, classes, fits
    ):
        tensors = [keras.Input(shape) for shape in inputs]
        pooled = [keras.ops.sum(t, axis=range(1, t.ndim)) for t in tensors]
        x = keras.ops.stack(pooled, axis=-1)
        model = keras.Model(
            tensors, [keras.layers.Dense(*shape)(x) for shape in outputs]
        )
        if fits:
            initial_model.check(model, image_shape, classes)
            return
        with self.assertRaisesRegex(
            ValueError, rf"images of \({image_shape[0]}.* Received: inputs of"
        ):
            initial_model.check(model, image_shape, classes)

    def test_model_of_many_labels_is_refused(self):
        # Its sigmoids would train as logits of one label.
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
                keras.layers.Activation("sigmoid"),
            ]
        )
        with self.assertRaisesRegex(ValueError, "Received: one that ends in s"):
            initial_model.check(model, (8, 8, 1), 10)

    def test_class_that_only_its_author_has_is_refused(self):
        class Unknown(keras.layers.Dense):
            pass

        model = keras.Sequential([keras.Input((3,)), Unknown(2)])
        path = os.path.join(self.create_tempdir().full_path, "m.keras")
        model.save(path)
        with self.assertRaisesRegex(
            ValueError, "m.keras: Could not locate class 'Unknown'\\."
        ):
            initial_model.load(path)

    def test_layer_of_one_s_own_becomes_its_own_class(self):
        @fliqs.layers.searchable(_Doubled)
        class SearchableDoubled(SearchableLayer, _Doubled):
            pass

        model = keras.Sequential([keras.Input((3,)), SearchableDoubled(2)])
        path = os.path.join(self.create_tempdir().full_path, "m.keras")
        model.save(path)
        (layer,) = initial_model.load(path).layers
        self.assertIs(type(layer), _Doubled)
        np.testing.assert_array_equal(layer.kernel, model.layers[0].kernel)


@keras.saving.register_keras_serializable(package="tests")
class _Doubled(keras.layers.Dense):
    pass


if __name__ == "__main__":
    absltest.main()
