import keras
import numpy as np
from absl.testing import absltest

import fliqs_tf as fliqs
from fliqs_tf import switching


def _search(formats=("int2", "int4")):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1, name="dense")]
    )
    model.layers[0].kernel.assign([[7.0], [-3.0], [2.0], [0.0]])
    return fliqs.SearchModel(model, space=formats)


class SwitchingErrorTest(absltest.TestCase):
    def test_by_hand(self):
        search = _search()
        # int4 keeps 7, -3, 2, 0 (scale 1). int2 has -7, 0, 7: 7, 0, 0, 0.
        # |difference| 0, 3, 2, 0, of a sum of magnitudes of 12.
        layer = search.layers_by_path["dense"]
        distance = switching.format_distance(layer, "kernel", "int2", "int4")
        self.assertAlmostEqual(distance, 5 / 12, places=6)
        # Uniform policy: the sample changes at every other step.
        errors = switching.switching_errors(search)
        self.assertEqual(list(errors), ["dense"])
        self.assertAlmostEqual(errors["dense"], 5 / 24, places=6)
        p = np.exp(1.5) / (1 + np.exp(1.5))
        search.policy.logits.assign([[1.5, 0.0]])
        self.assertAlmostEqual(
            switching.switching_errors(search)["dense"],
            2 * p * (1 - p) * 5 / 12,
            places=6,
        )

    def test_ends_with_the_policy_s_entropy(self):
        search = _search(("int2", "int3", "int4"))
        search.policy.logits.assign([[0.0, 30.0, 0.0]])
        self.assertEqual(switching.switching_errors(search)["dense"], 0.0)

    def test_fixed_formats_do_not_switch(self):
        search = _search()
        search.freeze()
        self.assertEqual(switching.switching_errors(search)["dense"], 0.0)

    def test_products_of_attention_have_no_weights(self):
        inputs = keras.Input((3, 4))
        outputs = keras.layers.MultiHeadAttention(1, 2, name="mix")(
            inputs, inputs
        )
        model = fliqs.with_attention_products(keras.Model(inputs, outputs))
        errors = switching.switching_errors(
            fliqs.SearchModel(model, space=("int2", "int4"))
        )
        self.assertLen(errors, 4)
        self.assertNotIn("mix/scores", errors)
        self.assertGreater(errors["mix/query"], 0.0)

    def test_floats_beside_integers(self):
        # e1m2 is int4 up to scale: switching between them moves nothing.
        search = _search(("e1m2", "int4"))
        self.assertLess(switching.switching_errors(search)["dense"], 1e-6)


if __name__ == "__main__":
    absltest.main()
