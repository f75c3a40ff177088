"""Conversion that leaves every kernel recognisable.

The converter multiplies factors of the inputs of a matrix product, those of a
batch norm in front of it for instance, into the product's weights:

    constant[i, o] = codes[i, o] * scale[o] * factor[i]

No container has scales on both axes, so such weights would stay float32. Which
of them the converter folds is its own affair; what it did is seen in the file.
There the model is converted once more, with a barrier in front of the layers
concerned: a multiplication by a one that the converter cannot see, taken out
afterwards. Factors then go where they fit, into the layer in front, or stay
operators of their own.
"""

from collections.abc import Callable
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from fliqs_tf.export import litert
from fliqs_tf.export import twin
from fliqs_tf.export import weights
from fliqs_tf.export.graph import Graph
from fliqs_tf.export.slots import Slots
from fliqs_tf.export.weights import Kernel


def convert(
    make_twin: Callable[[Slots], keras.Model],
    fixed: keras.Model,
    kernels: Sequence[Kernel],
    is_faithful: bool = False,
) -> Graph:
    """Converts a twin of a model; see `litert.convert`.

    Args:
        make_twin: Where constants go that must survive -> the twin.
        fixed: Model that it is a twin of.
        kernels: What is known about the model's weights.
        is_faithful: See `litert.convert`.
    """
    slots = Slots()
    graph = litert.convert(make_twin(slots), slots, fixed, is_faithful)
    hidden = _hidden(graph, kernels)
    if not hidden:
        return graph
    slots = Slots()
    model = make_twin(slots)
    barriers = []
    for path, layer in twin.fixed_layers(model).items():
        # What rounds its inputs is a barrier, too; steps of a loop have others.
        is_open = layer.input_quantizer is None
        if path in hidden and is_open and not _is_loop(layer):
            layer.input_quantizer = _Barrier(slots)
            barriers.append(layer.input_quantizer.name)
    if barriers:
        graph = litert.convert(model, slots, fixed, is_faithful)
        _remove(graph, barriers)
    return graph


def _hidden(graph, kernels) -> set[str]:
    """Layers that constants which equal no kernel may belong to."""
    found = [match.operator for match in weights.find(graph, kernels)]
    hidden: set[str] = set()
    for operator in graph.operators:
        place = weights.kernel_input(graph, operator)
        if place is None or any(operator is other for other in found):
            continue
        constant = graph.constant(int(operator.inputs[place]))
        if constant is None:
            continue
        builtin = graph.builtin(operator)
        hidden.update(
            kernel.path
            for kernel in kernels
            # Weights in float32 lose nothing by being multiplied.
            if kernel.inputs is not None
            and kernel.fmt.name != "fp32"
            and any(weights.layouts(kernel.codes, constant.shape, builtin))
        )
    return hidden


def _is_loop(layer) -> bool:
    return isinstance(layer, keras.layers.RNN)


class _Barrier:
    """Stands for the quantizer of a layer's inputs, and changes nothing."""

    def __init__(self, slots: Slots):
        self._slots = slots
        self._slot = slots.add(np.float32(1.0))
        self.name = slots.name(self._slot)

    def codes(self, inputs, training, weights):
        """Returns `(inputs, 1)`; the other arguments are not read."""
        return self(inputs, training, weights), tf.constant(1.0)

    def __call__(self, inputs, training, weights):
        del training, weights
        return inputs * self._slots.tensor(self._slot)


def _remove(graph, barriers) -> None:
    ones = {graph.find(name) for name in barriers}
    sources: dict[int, int] = {}
    # In the order in which they run, so that a source is never a barrier's.
    for operator in list(graph.operators):
        inputs = [int(number) for number in operator.inputs]
        operator.inputs = [sources.get(number, number) for number in inputs]
        if ones.intersection(inputs):
            (source,) = (n for n in operator.inputs if n not in ones)
            sources[int(operator.outputs[0])] = source
            graph.operators.remove(operator)
