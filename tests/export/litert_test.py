import keras
import numpy as np
from absl.testing import absltest
from ai_edge_litert.interpreter import Interpreter

from fliqs_tf.export import litert
from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.slots import Slots


class _Scale(keras.layers.Layer):
    def __init__(self, slots, slot):
        super().__init__(name="scale")
        self.slots = slots
        self.slot = slot

    def call(self, inputs):
        return inputs / self.slots.tensor(self.slot)


class ConvertTest(absltest.TestCase):
    def test_slots_are_constants_that_were_not_folded(self):
        slots = Slots()
        inputs = keras.Input((4,), name="x")
        model = keras.Model(inputs, _Scale(slots, slots.add(0.1))(inputs))
        graph = litert.convert(model, slots, model)
        codes = [graph.builtin(operator) for operator in graph.operators]
        # A visible constant would have become a MUL by the reciprocal.
        self.assertEqual(codes, [Builtin.DIV])
        self.assertLen(graph.inputs, 1)

    def test_signature_has_the_names_of_the_model(self):
        left, right = keras.Input((2,), name="l"), keras.Input((2,), name="r")
        outputs = {"difference": left - right, "sum": left + right}
        model = keras.Model({"l": left, "r": right}, outputs)
        content = litert.convert(model, Slots(), model).to_bytes()
        run = Interpreter(model_content=content).get_signature_runner(
            "serving_default"
        )
        ones = np.ones((1, 2), np.float32)
        found = run(l=ones * 3, r=ones)
        self.assertEqual(found["difference"].tolist(), [[2, 2]])
        self.assertEqual(found["sum"].tolist(), [[4, 4]])

    def test_sigmoid_has_tensorflows_bits_if_asked(self):
        inputs = keras.Input((8, 8), name="x")
        model = keras.Model(inputs, keras.ops.sigmoid(inputs))
        x = np.random.default_rng(0).standard_normal((3, 8, 8))
        x = x.astype("float32")
        graph = litert.convert(model, Slots(), model, is_faithful=True)
        run = Interpreter(model_content=graph.to_bytes()).get_signature_runner()
        (found,) = run(x=x).values()
        np.testing.assert_array_equal(found, model(x))


if __name__ == "__main__":
    absltest.main()
