"""Whether a deviation is nothing but values on rounding boundaries.

In `fake_quant` a file rounds inputs as training did. Where an operator of
LiteRT has another last bit than TensorFlow's (softmax, GELU, the sums of layer
norms), a value that stands within that bit of a rounding boundary gets the
neighbouring code, and the outputs of that sample may differ as much as one
code makes them. No tolerance of outputs tells this from a defect; a replay
does. The Keras model is called on the sample with the file's codes in place of
its own, layer by layer, provided that each of them

- is a code of the format, and
- is as near to the value that Keras would round, up to the tolerance times the
  largest magnitude of that tensor, as Keras's own code is.

If then the outputs agree within the tolerance, every step of the file computes
what training did.
"""

import contextlib
from collections.abc import Iterator
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from fliqs_tf.export import litert
from fliqs_tf.export import trace
from fliqs_tf.export import twin
from fliqs_tf.export import weights
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.runner import Runner
from fliqs_tf.formats import get_format
from fliqs_tf.rounding import round_to_row


class Replay:
    """Calls a model with the roundings of a file.

    Layers of several kernels, and those whose inputs the file arranges
    otherwise, keep their own roundings.

    Args:
        content: A file in `fake_quant`.
        reference: The model, called eagerly.
        tolerance: See the module.
    """

    def __init__(
        self, content: bytes, reference: keras.Model, tolerance: float
    ):
        self._reference = reference
        self._tolerance = tolerance
        self._runner = Runner(content, keeps_tensors=True)
        self._layers = {
            path: layer
            for path, layer in twin.fixed_layers(reference).items()
            if twin.rounds_inputs(layer) and len(layer.operands) == 1
        }
        graph = Graph(content)
        self._tensors: dict[str, list[int]] = {p: [] for p in self._layers}
        for operator, path in trace.readers(graph, list(self._layers)):
            number = weights.data_input(graph, operator)
            self._tensors[path].append(number)

    def __call__(self, sample: Sequence[np.ndarray]) -> list[np.ndarray] | None:
        """Outputs of the model for one sample, `None` if a code is wrong.

        Args:
            sample: Arrays `(1, ...)`, one an input of the model.
        """
        self._runner(sample)
        with contextlib.ExitStack() as stack:
            for path, layer in self._layers.items():
                codes = [self._runner.tensor(n) for n in self._tensors[path]]
                stack.enter_context(_forced(layer, codes, self._tolerance))
            tensors = [tf.convert_to_tensor(array) for array in sample]
            try:
                outputs = litert.call(self._reference, tensors)
            except _WrongCode:
                return None
        return [np.asarray(output) for output in outputs]


class _WrongCode(Exception):
    """A code of the file is no rounding of the value at hand."""


class _Forced:
    """An input quantizer whose codes are given."""

    def __init__(self, own, given, tolerance):
        self._own = own
        self._given = given
        self._tolerance = tolerance
        self.formats = own.formats
        self._row = own.row()
        # Codes of integers stand in the file as integers.
        is_integer = get_format(own.formats[0]).is_integer
        self._unit = self._row[0] / self._row[1] if is_integer else 1.0

    def codes(self, inputs, training, weights):
        own, scale = self._own.codes(inputs, training, weights)
        own = np.asarray(own)
        if not self._given or self._given[0].size != own.size:
            return own, scale
        given = self._given.pop(0).reshape(own.shape) * np.float32(self._unit)
        value = np.asarray(inputs) / np.asarray(scale)
        finite = np.isfinite(value)
        largest = np.abs(value).max(initial=0.0, where=finite)
        limit = self._tolerance * largest
        is_near = np.abs(value - given) <= np.abs(value - own) + limit
        is_code = np.equal(round_to_row(given, self._row), given)
        if not np.all(is_near & is_code):
            raise _WrongCode
        return tf.convert_to_tensor(given), scale


@contextlib.contextmanager
def _forced(layer, codes, tolerance) -> Iterator[None]:
    own = layer.input_quantizer
    # Keras tracks what is set by its own `__setattr__`.
    object.__setattr__(layer, "input_quantizer", _Forced(own, codes, tolerance))
    try:
        yield
    finally:
        object.__setattr__(layer, "input_quantizer", own)
