"""A Keras model as an ONNX graph, and what is done with such a graph.

`tf2onnx` writes the graph, as in Keras's own `export(format="onnx")`. ONNX is
an optional dependency: only functions here and in the other `onnx_` files
import it.
"""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from fliqs_tf.export import litert

# The newest that tf2onnx 1.17 writes.
OPSET = 18
PACKAGES = ("onnx", "onnxruntime", "tf2onnx")


def check_packages() -> None:
    """Raises an `ImportError` unless the packages of ONNX are installed."""
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ImportError(
            f"An export to ONNX needs {', '.join(PACKAGES)}. Received: no "
            f"{', '.join(missing)}. Install them by "
            "`pip install 'fliqs_tf[onnx]'`."
        )


def type_number(name: str) -> int:
    """Number of an element type, as attributes have it."""
    from onnx import TensorProto

    return TensorProto.DataType.Value(name)


def numpy_type(name: str) -> np.dtype:
    """NumPy's type for an element type."""
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(type_number(name)))


class OnnxGraph:
    """An ONNX model that is being edited.

    Args:
        proto: `onnx.ModelProto`.
    """

    def __init__(self, proto):
        self.proto = proto
        self._constants = {c.name: c for c in proto.graph.initializer}

    @property
    def nodes(self):
        return self.proto.graph.node

    def constant(self, name: str) -> np.ndarray | None:
        """Value of a constant, `None` for tensors that are computed."""
        from onnx import numpy_helper

        found = self._constants.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def size(self, name: str) -> int:
        """Bytes of a constant; INT4 is packed, two to a byte."""
        return len(self._constants[name].raw_data)

    def add_constant(self, name: str, value: np.ndarray) -> str:
        """Stores an array under a name of its own, and returns that."""
        from onnx import numpy_helper

        name = self._unused(name)
        tensor = numpy_helper.from_array(np.asarray(value), name)
        self.proto.graph.initializer.append(tensor)
        self._constants[name] = self.proto.graph.initializer[-1]
        return name

    def freeze(self, name: str, value: np.ndarray) -> None:
        """Makes a constant of an input, if there is one of that name."""
        from onnx import numpy_helper

        inputs = self.proto.graph.input
        for info in [info for info in inputs if info.name == name]:
            inputs.remove(info)
            tensor = numpy_helper.from_array(np.asarray(value), name)
            self.proto.graph.initializer.append(tensor)
            self._constants[name] = self.proto.graph.initializer[-1]

    def insert(self, before, kind: str, inputs: Sequence[str], **attributes):
        """Adds a node in front of another one.

        Args:
            before: The node that stands behind it, an object of the graph.
            kind: Operator.
            inputs: Names of its inputs; constants are made of arrays.
            **attributes: Attributes of the operator.

        Returns:
            Name of its output.
        """
        from onnx import helper

        output = self._unused(f"{kind}_{len(self.nodes)}")
        node = helper.make_node(
            kind, list(inputs), [output], name=output, **attributes
        )
        self.nodes.insert(list(self.nodes).index(before), node)
        return output

    def add_behind(self, node, kind: str, operand: np.ndarray) -> None:
        """Adds an operator between a node's output and what reads it.

        Args:
            node: The node, an object of the graph, with one output.
            kind: Operator with two inputs.
            operand: The second one, a constant.
        """
        from onnx import helper

        (output,) = node.output
        node.output[0] = self._unused(f"{output}/{kind}")
        inputs = [node.output[0], self.add_constant(f"{output}/b", operand)]
        added = helper.make_node(kind, inputs, [output], name=output)
        self.nodes.insert(list(self.nodes).index(node) + 1, added)

    def remove(self, node, instead: str) -> None:
        """Removes a node; what read its output reads `instead`."""
        (output,) = node.output
        self.nodes.remove(node)
        for other in self.nodes:
            for number, name in enumerate(other.input):
                if name == output:
                    other.input[number] = instead

    def sink(self, node, kinds: Sequence[str]):
        """Moves an elementwise node of one input behind what moves elements.

        Args:
            node: The node, an object of the graph.
            kinds: Operators that only move the elements of their first input.

        Returns:
            The node where it stands now.
        """
        while True:
            (output,) = node.output
            readers = [n for n in self.nodes if output in n.input]
            for reader in readers:
                if reader.op_type == "Shape":
                    reader.input[0] = node.input[0]
            readers = [n for n in readers if n.op_type != "Shape"]
            if len(readers) != 1 or readers[0].op_type not in kinds:
                return node
            (reader,) = readers
            (moved,) = reader.output
            reader.input[0] = node.input[0]
            reader.output[0], node.output[0] = self._unused(moved), moved
            node.input[0] = reader.output[0]
            position = list(self.nodes).index(reader)
            self.nodes.insert(position + 1, node)
            self.nodes.remove(node)
            node = self.nodes[position]

    def rename(self, names: Mapping[str, str]) -> None:
        """Renames tensors; names that are taken already get a number."""
        taken = {name for node in self.nodes for name in node.output}
        taken.update(self._constants)
        for name in taken.intersection(names.values()) - names.keys():
            # What stands inside of the graph has no name that matters.
            names = {**names, name: self._unused(name)}
        for node in self.nodes:
            for tensors in (node.input, node.output):
                for number, name in enumerate(tensors):
                    tensors[number] = names.get(name, name)
        graph = self.proto.graph
        for info in (*graph.input, *graph.output, *graph.initializer):
            info.name = names.get(info.name, info.name)
        # They are not checked where they are missing.
        del graph.value_info[:]
        self._constants = {c.name: c for c in graph.initializer}

    def set_metadata(self, name: str, content: bytes) -> None:
        """Stores text that runtimes ignore, in place of an older one."""
        properties = self.proto.metadata_props
        for number, entry in reversed(list(enumerate(properties))):
            if entry.key == name:
                del properties[number]
        properties.add(key=name, value=content.decode())

    def drop_unused(self) -> None:
        """Removes constants that nothing reads any more."""
        used = {name for node in self.nodes for name in node.input}
        used |= {output.name for output in self.proto.graph.output}
        # The names in loops and branches count as well.
        used |= {name for node in self.nodes for name in _inner_names(node)}
        for name in list(self._constants):
            if name not in used:
                self.proto.graph.initializer.remove(self._constants.pop(name))

    def raise_opset(self, version: int) -> None:
        """Converts the graph to a newer set of operators, if it is older."""
        from onnx import version_converter

        if version > self.opset:
            self.__init__(  # type: ignore[misc]
                version_converter.convert_version(self.proto, version)
            )

    @property
    def opset(self) -> int:
        """Version of the set of operators."""
        return next(o.version for o in self.proto.opset_import if not o.domain)

    def _unused(self, name):
        taken = {o for node in self.nodes for o in node.output}
        taken.update(self._constants)
        if name not in taken:
            return name
        return next(
            found
            for number in range(1, len(taken) + 2)
            if (found := f"{name}#{number}") not in taken
        )

    def with_outputs(self, names: Sequence[str]) -> bytes:
        """Serialises a copy that outputs more float tensors, behind its own."""
        from onnx import helper

        proto = type(self.proto)()
        proto.CopyFrom(self.proto)
        number = type_number("FLOAT")
        for name in names:
            info = helper.make_tensor_value_info(name, number, None)
            proto.graph.output.append(info)
        return proto.SerializeToString()

    def to_bytes(self) -> bytes:
        """Checks the graph against the specification and serialises it."""
        import onnx

        onnx.checker.check_model(self.proto, full_check=True)
        return self.proto.SerializeToString()


def convert(model: keras.Model, named_after: keras.Model) -> OnnxGraph:
    """Converts a model at inference.

    Args:
        model: Functional or Sequential model, in float32.
        named_after: Model whose names the inputs and outputs get.

    Raises:
        ValueError: If ONNX has no operator for some layer.
    """
    import tf2onnx

    def serve(*tensors):
        # As if without `tf.function`: Keras puts convolutions of groups into
        # one that XLA compiles, which tf2onnx cannot open.
        before = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)
        try:
            return litert.call(model, tensors)
        finally:
            tf.config.run_functions_eagerly(before)

    specs = [tf.TensorSpec(x.shape, x.dtype, x.name) for x in model.inputs]
    function = tf.function(serve, autograph=False, input_signature=specs)
    function_inputs = [spec.name for spec in specs]
    with warnings.catch_warnings():
        # For NumPy 2, which tf2onnx 1.17 does not know.
        warnings.simplefilter("ignore", FutureWarning)
        keras.src.export.tf2onnx_lib.patch_tf2onnx()
    # It logs what is an error here, each operator in a line.
    with _quiet(logging.getLogger("tf2onnx")):
        proto, _ = tf2onnx.convert.from_function(function, specs, opset=OPSET)
    graph = OnnxGraph(proto)
    source = function.get_concrete_function().graph
    _check_operators(graph, source, model)
    # Tensors that a layer keeps beside its weights, such as the mean of an
    # adapted `Normalization`, have become inputs.
    for value, placeholder in source.captures:
        if value.dtype != tf.resource:
            graph.freeze(placeholder.name, value.numpy())
    outputs = [output.name for output in proto.graph.output]
    graph.rename(
        dict(zip(function_inputs, litert.input_names(named_after), strict=True))
        | dict(zip(outputs, litert.output_names(named_after), strict=True))
    )
    return graph


@contextlib.contextmanager
def _quiet(logger):
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_operators(graph, source, model):
    """Raises for what tf2onnx left as it was, which it only logs."""
    from onnx import defs

    kinds = {
        node.op_type
        for node in _all_nodes(graph.nodes)
        if not defs.has(node.op_type, node.domain)
    }
    if kinds:
        found = [litert.refused(kind, source, model) for kind in sorted(kinds)]
        raise ValueError(
            "Every layer must convert to operators of ONNX. Received: "
            f"model={model.name!r}, in which tf2onnx refused "
            f"{', '.join(found)}. Replace it, or leave it outside of the model."
        )


def _all_nodes(nodes):
    """Nodes, and those of the graphs in their attributes."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _all_nodes(attribute.g.node)


def _inner_names(node):
    """Names that the graphs in a node's attributes read."""
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from inner.input
            yield from _inner_names(inner)
        yield from (output.name for output in attribute.g.output)
