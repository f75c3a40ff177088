import numpy as np
import tensorflow as tf
from absl.testing import absltest
from ai_edge_litert.interpreter import Interpreter

from fliqs_tf.export.graph import Builtin
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.graph import TensorType
from fliqs_tf.export.graph import type_name


class GraphTest(absltest.TestCase):
    def test_round_trip(self):
        graph = _graph(lambda x: tf.sigmoid(x) * 2.0)
        again = Graph(graph.to_bytes())
        codes = [again.builtin(operator) for operator in again.operators]
        self.assertEqual(codes, [Builtin.LOGISTIC, Builtin.MUL])
        x = np.ones((3, 4), np.float32)
        np.testing.assert_allclose(_run(again, x), 2 / (1 + np.exp(-x)))

    def test_input_becomes_a_constant(self):
        graph = _graph(lambda x, y: x + y, 2)
        value = np.full((1, 4), 3, np.float32)
        graph.set_constant(graph.inputs[1], value)
        graph.set_signature({"x": graph.inputs[0]}, {"y": graph.outputs[0]})
        self.assertLen(graph.inputs, 1)
        np.testing.assert_array_equal(_run(graph, value), value * 2)

    def test_equal_constants_are_stored_once(self):
        graph = _graph(lambda x: x + 1.0)
        content = np.arange(4096, dtype=np.float32)
        one = graph.add_constant("one", content, TensorType.FLOAT32, [4096])
        two = graph.add_constant("two", content, TensorType.FLOAT32, [4096])
        np.testing.assert_array_equal(graph.constant(one), content)
        self.assertEqual(graph.tensors[one].buffer, graph.tensors[two].buffer)

    def test_what_nothing_uses_is_dropped(self):
        graph = _graph(lambda x: x + 1.0)
        before = len(graph.to_bytes())
        content = np.arange(4096, dtype=np.float32)
        graph.add_constant("unused", content, TensorType.FLOAT32, [4096])
        # The buffer's empty entry stays: its number orders the others.
        self.assertLess(len(graph.to_bytes()), before + 64)

    def test_raised_rank_changes_no_value(self):
        graph = _graph(tf.tanh)
        x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
        expected = _run(graph, x)
        graph.raise_rank((Builtin.TANH,), 7)
        graph = Graph(graph.to_bytes())
        codes = [graph.builtin(operator) for operator in graph.operators]
        self.assertEqual(
            codes, [Builtin.RESHAPE, Builtin.TANH, Builtin.RESHAPE]
        )
        np.testing.assert_allclose(_run(graph, x), expected, rtol=1e-6)

    def test_names(self):
        graph = _graph(lambda x: x + 1.0)
        graph.rename(graph.inputs[0], "pixels")
        self.assertEqual(graph.find("pixels"), graph.inputs[0])
        self.assertIsNone(graph.find("nothing"))
        self.assertEqual(type_name(TensorType.INT4), "INT4")


def _graph(function, inputs=1):
    specs = [tf.TensorSpec((None, 4), tf.float32)] * inputs
    concrete = tf.function(function, autograph=False).get_concrete_function(
        *specs
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    return Graph(converter.convert())


def _run(graph, x):
    interpreter = Interpreter(model_content=graph.to_bytes())
    (tensor,) = (t["index"] for t in interpreter.get_input_details())
    interpreter.resize_tensor_input(tensor, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(tensor, x)
    interpreter.invoke()
    (output,) = interpreter.get_output_details()
    return interpreter.get_tensor(output["index"])


if __name__ == "__main__":
    absltest.main()
