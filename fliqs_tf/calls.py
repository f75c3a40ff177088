"""The shapes that the layers of a model are called with.

They come from the graph of a Functional or Sequential model. What has no graph
(blocks of one's own, wrappers, attention, subclassed models) is called once on
symbolic tensors, and its layers note what they are called with: so every call
of a layer counts, wherever it is made. Keras's loops over time (`RNN`,
`TimeDistributed`) count at each step.
"""

import functools
import itertools
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import keras

from fliqs_tf.layers.base import graph_of
from fliqs_tf.layers.base import is_container
from fliqs_tf.layers.base import searchable_form
from fliqs_tf.layers.base import walk

Shape = tuple[int | None, ...]
# Of a layer's input, or of several.
Shapes = Shape | tuple[Shape, ...]


def input_shapes(model: keras.Model) -> dict[int, list[Shapes]]:
    """Input shapes of every call of every layer that can be searched.

    Returns:
        `id` of the layer -> shapes, with `None` for the batch.

    Raises:
        ValueError: If a part of the model cannot be called symbolically.
    """
    graph = graph_of(model)
    if graph is None:
        return _of_model(model)
    calls: dict[int, list[Shapes]] = {}
    for node in itertools.chain(*graph._nodes_by_depth.values()):
        for key, shapes in _of_node(node).items():
            calls.setdefault(key, []).extend(shapes)
    return calls


def _of_node(node):
    operation = node.operation
    if not node.input_tensors or not isinstance(operation, keras.layers.Layer):
        return {}
    if searchable_form(operation) is not None:
        given = (*node.arguments.args, *node.arguments.kwargs.values())
        return {id(operation): [_shape_of(given[0])]}
    if not is_container(operation):
        return {}
    if graph_of(operation) is not None and not any(
        None in tensor.shape[1:] for tensor in operation.inputs
    ):
        return input_shapes(operation)
    arguments = node.arguments
    return _recorded(operation, arguments.args, arguments.kwargs)


def _of_model(model):
    """Calls a model without a graph, as it was built."""
    config = model.get_build_config() or {}
    errors = []
    # A model's input says its shape, but not whether it holds indices.
    for dtype in (model.input_dtype, "int32"):
        tensors = functools.partial(_symbolic, dtype=dtype)
        if "input_shape" in config:
            args, kwargs = [tensors(config["input_shape"])], {}
        else:
            shapes = config.get("shapes_dict", {})
            args, kwargs = (
                [],
                {
                    name.removesuffix("_shape"): tensors(shape)
                    for name, shape in shapes.items()
                },
            )
        try:
            return _recorded(model, args, kwargs)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _symbolic(shape, dtype):
    if isinstance(shape, dict):
        return {key: _symbolic(item, dtype) for key, item in shape.items()}
    if all(isinstance(size, int | None) for size in shape):
        return keras.KerasTensor((None, *shape[1:]), dtype)
    return type(shape)(_symbolic(item, dtype) for item in shape)


class _SymbolicCall(keras.Operation):
    """A call whose body is run, not only its output shape looked up."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, *args, **kwargs):
        # TensorFlow takes no name that begins with "_", as that of a class
        # `_Block` does, at the root of its names.
        with keras.name_scope("call"):
            return self.layer(*args, **kwargs)


def _recorded(layer, args: Iterable, kwargs) -> dict[int, list[Shapes]]:
    """Calls a layer symbolically and returns what its layers were given."""
    calls: dict[int, list[Shapes]] = {}

    def note(inner, inputs):
        calls.setdefault(id(inner), []).append(_shape_of(inputs))

    hooked = []

    def hook(inner, function, name="call"):
        # An attribute of this one layer stands before its class's method.
        vars(inner)[name] = function
        hooked.append((inner, name))

    try:
        for _, inner in walk(layer):
            if searchable_form(inner) is not None:
                hook(inner, _noting(inner, note))
        for inner in layer._flatten_layers():
            if isinstance(inner, keras.layers.TimeDistributed):
                hook(inner, _noting(inner, _steps))
            elif isinstance(inner, keras.layers.RNN) and _has_kernels(inner):
                looping, stepping = _repeating(inner, calls)
                hook(inner, looping)
                hook(inner.cell, stepping)
                # It runs stacked cells once more, and drops their outputs.
                hook(inner, lambda *args: None, "_maybe_config_dropout_masks")
        _SymbolicCall(layer).compute_output_spec(*args, **kwargs)
    except Exception as error:
        raise ValueError(
            "The layers in a block or subclassed model are counted by calling "
            f"it on symbolic tensors. Received: {layer.name!r}, for which that "
            f"fails ({error}). Build the model by calling it on one batch, "
            "whose first argument has all inputs."
        ) from error
    finally:
        for inner, name in hooked:
            vars(inner).pop(name, None)
    return calls


def _has_kernels(layer) -> bool:
    return any(searchable_form(inner) is not None for _, inner in walk(layer))


def _steps(layer, sequences) -> int:
    shape = (None, *sequences.shape[1:])
    if shape[1] is None:
        raise ValueError(
            "MACs need a known number of steps. Received: "
            f"{layer.name!r} with input shape {shape}."
        )
    return shape[1]


def _repeating(loop, calls):
    """Calls of an `RNN` and its cell, after which `calls` has all steps.

    Keras runs the cell of a symbolic loop twice, whatever the number of steps,
    and that of an unrolled one at each. So its first run counts for all.
    """
    call, step = loop.call, loop.cell.call
    repeats = 1

    @functools.wraps(call)
    def looping(sequences, *args, **kwargs):
        nonlocal repeats
        repeats = _steps(loop, sequences)
        try:
            return call(sequences, *args, **kwargs)
        finally:
            repeats = 1

    @functools.wraps(step)
    def stepping(*args, **kwargs):
        nonlocal repeats
        times, repeats = repeats, 0
        before = {key: len(shapes) for key, shapes in calls.items()}
        outputs = step(*args, **kwargs)
        for key, shapes in calls.items():
            start = before.get(key, 0)
            shapes[start:] = shapes[start:] * times
        return outputs

    return looping, stepping


def _shape_of(inputs) -> Shapes:
    """Shape of a tensor, shapes of several; the batch left open."""
    if isinstance(inputs, list | tuple):
        return tuple((None, *tensor.shape[1:]) for tensor in inputs)
    return (None, *inputs.shape[1:])


def each(shapes: Any) -> tuple[Any, ...]:
    """The shapes of a call's inputs, of one as of several."""
    return shapes if isinstance(shapes[0], tuple) else (shapes,)


def _noting(layer, note) -> Callable[..., Any]:
    call = layer.call

    @functools.wraps(call)
    def noting(*args, **kwargs):
        note(layer, args[0] if args else next(iter(kwargs.values())))
        return call(*args, **kwargs)

    return noting
