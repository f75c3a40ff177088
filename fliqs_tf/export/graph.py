"""A `.tflite` file as an object that can be edited.

A thin layer over `ai_edge_litert.tools.flatbuffer_utils`, whose objects mirror
the schema: tensors refer to buffers by number, operators to tensors and to
operator codes by number. This file keeps those numbers right and knows nothing
of layers or formats.
"""

import functools
import re
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from fliqs_tf.export import serialization

TensorType = schema.TensorType
Builtin = schema.BuiltinOperator

_NUMPY = {
    TensorType.FLOAT32: np.float32,
    TensorType.INT32: np.int32,
}
_BUILTIN_NAMES = {
    value: name
    for name, value in vars(Builtin).items()
    if isinstance(value, int)
}
_SIGNATURE = "serving_default"
_TENSOR_FIELDS = ("inputs", "outputs", "intermediates")


class Graph:
    """The first subgraph of a LiteRT model, editable.

    Args:
        content: The bytes of a `.tflite` file.
    """

    def __init__(self, content: bytes):
        self._model = flatbuffer_utils.read_model_from_bytearray(
            bytearray(content)
        )
        self._graph = self._model.subgraphs[0]
        self._prologue: list = []

    @property
    def tensors(self) -> list:
        return self._graph.tensors

    @property
    def operators(self) -> list:
        return self._graph.operators

    @property
    def producers(self) -> dict:
        """Tensor number -> the operator that computes it."""
        return {int(n): o for o in self.operators for n in o.outputs}

    def name(self, tensor: int) -> str:
        return (self.tensors[tensor].name or b"").decode()

    def builtin(self, operator) -> int:
        """Returns the builtin code of an operator."""
        return flatbuffer_utils.get_builtin_code_from_operator_code(
            self._model.operatorCodes[operator.opcodeIndex]
        )

    def raw(self, tensor: int) -> np.ndarray | None:
        """The bytes of a constant, `None` for tensors that are computed."""
        data = self._model.buffers[self.tensors[tensor].buffer].data
        return None if data is None else np.asarray(data, np.uint8)

    def size(self, tensor: int) -> int:
        """Bytes of a constant, 0 for tensors that are computed."""
        raw = self.raw(tensor)
        return 0 if raw is None else raw.nbytes

    def constant(self, tensor: int) -> np.ndarray | None:
        """The value of a float32 or int32 constant; `None` for all others."""
        raw, dtype = self.raw(tensor), _NUMPY.get(self.tensors[tensor].type)
        if raw is None or dtype is None:
            return None
        shape = self.tensors[tensor].shape
        return raw.view(dtype).reshape([] if shape is None else shape)

    def find(self, name: str) -> int | None:
        """Returns the number of the tensor of a name."""
        return next(
            (i for i in range(len(self.tensors)) if self.name(i) == name), None
        )

    def rename(self, tensor: int, name: str) -> None:
        self.tensors[tensor].name = name.encode() or None

    def make_names_unique(self) -> None:
        """Numbers the tensors whose names the converter used before.

        Tensors without a name get none.
        """
        taken: set[str] = set()
        for number in range(len(self.tensors)):
            name = stem = self.name(number)
            if not name:
                continue
            count = 1
            while name in taken:
                count += 1
                name = f"{stem}#{count}"
            taken.add(name)
            self.rename(number, name)

    def shorten_names(self, scope: str) -> None:
        """Cuts what the converter joins of all operators that it fused.

        `net_1/relu;net_1/norm/add;net_1/conv` becomes `relu`; a file of many
        small layers is smaller by kilobytes.

        Args:
            scope: Name of the model, in which all of its names stand.
        """
        # Keras numbers the scopes of models that are called twice.
        prefix = re.compile(rf"^{re.escape(scope)}(_\d+)?/")
        for number in range(len(self.tensors)):
            name = self.name(number).split(";")[0]
            self.rename(number, prefix.sub("", name))
        self.make_names_unique()

    def metadata(self, name: str) -> bytes | None:
        """Content of a metadata entry, `None` if there is none."""
        for entry in self._model.metadata or []:
            if entry.name.decode() == name:
                data = self._model.buffers[entry.buffer].data
                return b"" if data is None else bytes(bytearray(data))
        return None

    def set_metadata(self, name: str, content: bytes) -> None:
        """Writes a metadata entry, in place of one of the same name.

        Interpreters ignore what they do not know.
        """
        entry = schema.MetadataT()
        entry.name = name.encode()
        entry.buffer = self._buffer(content)
        others = [
            known
            for known in self._model.metadata or []
            if known.name.decode() != name
        ]
        self._model.metadata = [*others, entry]

    def set_constant(self, tensor: int, value: np.ndarray) -> None:
        """Turns a computed tensor or an input into a constant."""
        value = np.ascontiguousarray(value)
        self.tensors[tensor].buffer = self._buffer(value.tobytes())
        if tensor in self._graph.inputs:
            self._graph.inputs.remove(tensor)

    def add_constant(
        self,
        name: str,
        value: np.ndarray,
        tensor_type: int,
        shape: Sequence[int],
        scale: np.ndarray | None = None,
        axis: int = 0,
    ) -> int:
        """Adds a constant.

        Args:
            name: Name of the tensor.
            value: Array whose bytes are stored as they are (so sub-byte types
                come packed).
            tensor_type: A member of `TensorType`.
            shape: Shape in elements.
            scale: Scales of a quantized tensor `(1,)` or `(shape[axis],)`;
                zero points are 0.
            axis: Axis of the scales.

        Returns:
            The tensor's number.
        """
        tensor = self.add_tensor(name, tensor_type, shape)
        content = np.ascontiguousarray(value).tobytes()
        self.tensors[tensor].buffer = self._buffer(content)
        if scale is not None:
            quantization = schema.QuantizationParametersT()
            quantization.scale = np.asarray(scale, np.float32)
            quantization.zeroPoint = np.zeros(len(scale), np.int64)
            quantization.quantizedDimension = axis if len(scale) > 1 else 0
            self.tensors[tensor].quantization = quantization
        return tensor

    def add_tensor(
        self,
        name: str,
        tensor_type: int,
        shape: Sequence[int],
        signature: Sequence[int] | None = None,
    ) -> int:
        """Adds a tensor to be computed and returns its number.

        Args:
            name: Name of the tensor.
            tensor_type: A member of `TensorType`.
            shape: Shape at a batch of 1.
            signature: The shape with -1 for an open dimension.
        """
        tensor = schema.TensorT()
        tensor.name = name.encode() or None
        tensor.type = tensor_type
        tensor.shape = [int(size) for size in shape]
        tensor.shapeSignature = signature
        tensor.buffer = 0
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def prepend(
        self,
        builtin: int,
        version: int,
        inputs: Sequence[int],
        output: int,
        options_type: int = schema.BuiltinOptions.NONE,
        options=None,
    ) -> int:
        """Adds an operator that runs before all of the converter's.

        Prepended operators run in the order in which they were added.

        Returns:
            `output`.
        """
        operator = self._operator(builtin, version, inputs, output)
        operator.builtinOptionsType = options_type
        operator.builtinOptions = options
        self._prologue.append(operator)
        return output

    def append(
        self, builtin: int, version: int, inputs: Sequence[int], output: int
    ) -> None:
        """Adds an operator without options that runs after all others."""
        self.operators.append(self._operator(builtin, version, inputs, output))

    def move_outputs(self, moved: Mapping[int, int]) -> None:
        """Makes other tensors the outputs: number -> number."""
        outputs = [moved.get(int(n), int(n)) for n in self._graph.outputs]
        self._graph.outputs = outputs
        for signature in self._model.signatureDefs or []:
            for entry in signature.outputs:
                entry.tensorIndex = moved.get(
                    entry.tensorIndex, entry.tensorIndex
                )

    def raise_rank(self, builtins: Sequence[int], rank: int) -> None:
        """Lets elementwise operators see their tensor at a higher rank.

        Operators on tensors with an open dimension besides the batch, or
        that are of this rank already, are left alone.

        Args:
            builtins: Codes of operators with one input and one output.
            rank: Rank of the tensors between the two RESHAPEs.
        """
        operators = []
        for operator in self.operators:
            shape = self._shape(operator.outputs[0])
            is_open = shape is None or -1 in shape[1:] or len(shape) >= rank
            if self.builtin(operator) not in builtins or is_open:
                operators.append(operator)
                continue
            source, target = operator.inputs[0], operator.outputs[0]
            ones = [1] * (rank - len(shape))
            raised = [
                self.add_tensor(
                    f"{self.name(target)}/raised",
                    TensorType.FLOAT32,
                    [1, *ones, *shape[1:]],
                    [-1, *ones, *shape[1:]],
                )
                for _ in range(2)
            ]
            operator.inputs, operator.outputs = [raised[0]], [raised[1]]
            operators += [
                self._reshape(source, raised[0], [-1, *ones, *shape[1:]]),
                operator,
                self._reshape(raised[1], target, [-1, *shape[1:]]),
            ]
        self._graph.operators = operators

    def scale_output(self, operator, scale: np.ndarray, name: str) -> None:
        """Turns `act(op(x, w) + bias)` into `act((op(x, w) + bias / s) * s)`.

        Args:
            operator: Operator with weights, constant bias and, in its options,
                a fused activation.
            scale: float32 `(channels,)`, not zero.
            name: Name of the tensor that holds the scale.
        """
        output = int(operator.outputs[0])
        target = self.tensors[output]
        scaled = self.add_tensor(
            "", TensorType.FLOAT32, target.shape, target.shapeSignature
        )
        factor = self.add_constant(name, scale, TensorType.FLOAT32, scale.shape)
        bias = _bias(operator)
        if bias is not None:
            operator.inputs[2] = self.add_constant(
                self.name(bias),
                self.constant(bias) / scale,
                TensorType.FLOAT32,
                scale.shape,
            )
        product = self._operator(Builtin.MUL, 1, [scaled, factor], output)
        product.builtinOptionsType = schema.BuiltinOptions.MulOptions
        product.builtinOptions = schema.MulOptionsT()
        options = operator.builtinOptions
        product.builtinOptions.fusedActivationFunction = (
            options.fusedActivationFunction
        )
        options.fusedActivationFunction = schema.ActivationFunctionType.NONE
        operator.outputs = [scaled]
        self.operators.insert(self.operators.index(operator) + 1, product)

    def has_constant_bias(self, operator) -> bool:
        """Whether an operator with weights has no other bias."""
        bias = _bias(operator)
        return bias is None or self.constant(bias) is not None

    def _reshape(self, source, target, shape):
        shape = np.array(shape, np.int32)
        constant = self.add_constant(
            "shape", shape, TensorType.INT32, shape.shape
        )
        return self._operator(Builtin.RESHAPE, 1, [source, constant], target)

    def _shape(self, tensor):
        """Shape with -1 for open dimensions, `None` if it is unknown."""
        tensor = self.tensors[tensor]
        known = tensor.shapeSignature
        return tensor.shape if known is None or not len(known) else known

    def _operator(self, builtin, version, inputs, output):
        operator = schema.OperatorT()
        operator.opcodeIndex = self._operator_code(builtin, version)
        operator.inputs = list(inputs)
        operator.outputs = [output]
        return operator

    def set_signature(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int]
    ) -> None:
        """Replaces the signatures by one: name -> tensor number."""
        signature = schema.SignatureDefT()
        signature.signatureKey = _SIGNATURE
        signature.subgraphIndex = 0
        signature.inputs = [_named(*item) for item in inputs.items()]
        signature.outputs = [_named(*item) for item in outputs.items()]
        self._model.signatureDefs = [signature]

    @property
    def signature(self) -> tuple[str, dict[str, int], dict[str, int]] | None:
        """Key of the first signature, and its inputs and outputs.

        These are pairs of name and tensor number. `None` without a signature.
        """
        for found in self._model.signatureDefs or []:
            inputs, outputs = (
                {entry.name.decode(): entry.tensorIndex for entry in entries}
                for entries in (found.inputs, found.outputs)
            )
            return found.signatureKey.decode(), inputs, outputs
        return None

    @property
    def inputs(self) -> list[int]:
        return [int(number) for number in self._graph.inputs]

    @property
    def outputs(self) -> list[int]:
        return [int(number) for number in self._graph.outputs]

    def to_bytes(self) -> bytes:
        """Serialises the edited graph, without what nothing refers to."""
        self._graph.operators = self._prologue + self._graph.operators
        self._prologue = []
        self._drop_unused()
        return serialization.to_bytes(self._model)

    def _drop_unused(self):
        used = set(self._graph.inputs) | set(self._graph.outputs)
        for operator in self.operators:
            for numbers in _tensor_lists(operator):
                used.update(number for number in numbers if number >= 0)
        kept = sorted(used)
        renumbered = {old: new for new, old in enumerate(kept)} | {-1: -1}
        for owner, field in self._tensor_references():
            numbers = getattr(owner, field)
            if isinstance(numbers, int):
                setattr(owner, field, renumbered[numbers])
            elif numbers is not None:
                setattr(owner, field, [renumbered[int(n)] for n in numbers])
        self._graph.tensors = [self.tensors[number] for number in kept]
        filled = {
            tensor.buffer
            for graph in self._model.subgraphs
            for tensor in graph.tensors
        }
        filled.update(entry.buffer for entry in self._model.metadata or [])
        for number, buffer in enumerate(self._model.buffers):
            if number not in filled:
                buffer.data = None
        for tensor in self.tensors:
            found = tensor.quantization
            # The converter writes empty ones.
            if found is not None and found.scale is None and not found.details:
                tensor.quantization = None

    def _tensor_references(self):
        """Yields `(object, field)` of everything that holds tensor numbers."""
        yield self._graph, "inputs"
        yield self._graph, "outputs"
        for operator in self.operators:
            for field in _TENSOR_FIELDS:
                yield operator, field
        for signature in self._model.signatureDefs or []:
            for entry in signature.inputs + signature.outputs:
                yield entry, "tensorIndex"

    def _buffer(self, content: bytes) -> int:
        known = self._known_buffers
        if content not in known:
            buffer = schema.BufferT()
            # An array, not bytes: those are packed one Python call each.
            buffer.data = np.frombuffer(content, np.uint8)
            self._model.buffers.append(buffer)
            known[content] = len(self._model.buffers) - 1
        return known[content]

    @functools.cached_property
    def _known_buffers(self) -> dict[bytes, int]:
        return {}

    def _operator_code(self, builtin, version):
        for number, code in enumerate(self._model.operatorCodes):
            known = flatbuffer_utils.get_builtin_code_from_operator_code(code)
            if (known, code.version) == (builtin, version):
                return number
        code = schema.OperatorCodeT()
        code.builtinCode = builtin
        # Readers older than the 128th operator look only here.
        code.deprecatedBuiltinCode = min(builtin, 127)
        code.version = version
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1


def type_name(tensor_type: int) -> str:
    """Returns the schema's name of a tensor type, `"INT4"` for example."""
    return flatbuffer_utils.type_to_name(tensor_type)


def builtin_name(builtin: int) -> str:
    """Returns the schema's name of a builtin operator, `"CONV_2D"`."""
    return _BUILTIN_NAMES[builtin]


def _named(name, tensor):
    entry = schema.TensorMapT()
    entry.name = name
    entry.tensorIndex = tensor
    return entry


def _bias(operator) -> int | None:
    inputs = operator.inputs
    return int(inputs[2]) if len(inputs) > 2 and inputs[2] >= 0 else None


def _tensor_lists(operator):
    lists = (getattr(operator, field) for field in _TENSOR_FIELDS)
    return [[int(number) for number in found or []] for found in lists]
