import os

import keras
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import fliqs_tf as fliqs
from fliqs_tf.models import vision_transformer


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class DeiTTest(parameterized.TestCase):
    @parameterized.parameters(
        (768, 12), (576, 9), (384, 6), (192, 3), (288, 4), (32, 1)
    )
    def test_default_heads(self, hidden_size, heads):
        model = fliqs.models.get(
            "deit", input_shape=(16, 16, 3), hidden_size=hidden_size, depth=1
        )
        self.assertEqual(model.get_layer("block1_attention").heads, heads)

    @parameterized.parameters(
        ({"input_shape": (40, 32, 3)}, "multiples of patch_size=16"),
        ({"heads": 5}, "must divide hidden_size=768"),
        ({"heads": 0}, "`heads` must be a positive integer"),
        ({"depth": 0}, "`depth` must be a positive integer"),
        ({"patch_size": 0}, "`patch_size` must be a positive integer"),
    )
    def test_wrong_arguments(self, arguments, message):
        (name,) = arguments
        with self.assertRaisesRegex(
            ValueError, rf"{message}.* Received: {name}="
        ):
            fliqs.models.get("deit", **arguments)

    def test_attention_against_numpy(self):
        rng = np.random.default_rng(0)
        query, key, value = rng.normal(size=(3, 2, 5, 6)).astype("float32")
        got = vision_transformer.HeadsAttention(3)(query, key, value)
        expected = np.empty_like(value)
        for image in range(2):
            for head in range(3):
                part = (image, slice(None), slice(2 * head, 2 * head + 2))
                scores = query[part] @ key[part].T / np.sqrt(2)
                expected[part] = _softmax(scores) @ value[part]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

    def test_token_embedding(self):
        layer = vision_transformer.TokenEmbedding()
        inputs = np.random.default_rng(0).random((2, 3, 4)).astype("float32")
        outputs = keras.ops.convert_to_numpy(layer(inputs))
        token, positions = layer.get_weights()
        first = np.broadcast_to(token, (2, 1, 4))
        np.testing.assert_allclose(
            outputs, np.concatenate([first, inputs], 1) + positions, rtol=1e-6
        )
        self.assertEqual(layer.compute_output_shape((2, 3, 4)), (2, 4, 4))

    def test_saved_file(self):
        model = fliqs.models.get(
            "deit",
            input_shape=(32, 32, 3),
            classes=3,
            hidden_size=24,
            depth=2,
            heads=3,
        )
        path = os.path.join(self.create_tempdir(), "deit.keras")
        model.save(path)
        again = keras.models.load_model(path)
        images = np.random.default_rng(0).random((2, 32, 32, 3))
        np.testing.assert_array_equal(
            model.predict(images, verbose=0), again.predict(images, verbose=0)
        )


if __name__ == "__main__":
    absltest.main()
