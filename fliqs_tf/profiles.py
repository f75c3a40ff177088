"""What a model's layers do: multiply-accumulates, sizes of weights and inputs.

The shapes of inputs come from the graph of a Functional or Sequential model.
What has no graph (blocks of one's own, wrappers, attention, subclassed models)
is called once on symbolic tensors, and its layers note what they are called
with: so every call of a layer counts, wherever it is made.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

import keras

from fliqs_tf.layers.base import graph_of
from fliqs_tf.layers.base import is_container
from fliqs_tf.layers.base import kind_of
from fliqs_tf.layers.base import searchable_form
from fliqs_tf.layers.base import searchable_layers
from fliqs_tf.layers.base import walk
from fliqs_tf.layers.searchable_layer import SearchableLayer

Shape = tuple[int | None, ...]
# Of a layer's input, or of several.
Shapes = Shape | tuple[Shape, ...]


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """The numbers of a layer that its cost depends on.

    Args:
        path: Path of the layer.
        kind: Class name of the Keras layer.
        macs: Multiply-accumulates of one sample, over all calls.
        inputs: Elements of the inputs of one sample, over all calls.
        weights: Elements of the kernels.
        scales: Scales of the kernels.
        biases: Elements of the bias.
    """

    path: str
    kind: str
    macs: int
    inputs: int
    weights: int
    scales: int
    biases: int


def profile(model: keras.Model) -> dict[str, LayerProfile]:
    """Profiles the layers of a model that are or can be made searchable.

    A searchable or fixed model is profiled in its searchable layers only.

    Raises:
        ValueError: If the size of a layer's input is not known.
    """
    layers = searchable_layers(model)
    made = {
        p: la for p, la in layers.items() if isinstance(la, SearchableLayer)
    }
    calls = input_shapes(model)
    return {
        path: _profile_layer(path, layer, calls.get(id(layer), []))
        for path, layer in (made or layers).items()
    }


def _profile_layer(path, layer, shapes):
    for shape in itertools.chain(*map(_each, shapes)):
        if None in shape[1:]:
            raise ValueError(
                "MACs need inputs of known size. Received: layer "
                f"{path!r} with input shape {shape}. Build the model with a "
                "fixed input shape."
            )
    form = searchable_form(layer)
    kernels, bias = form.shapes(layer)
    return LayerProfile(
        path,
        kind_of(layer),
        macs=sum(form.macs(layer, shape) for shape in shapes),
        inputs=sum(
            math.prod(one[1:]) for shape in shapes for one in _each(shape)
        ),
        weights=sum(math.prod(kernel) for kernel, _ in kernels),
        scales=sum(
            math.prod(kernel[axis] for axis in axes) for kernel, axes in kernels
        ),
        biases=0 if bias is None else math.prod(bias),
    )


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
        return self.layer(*args, **kwargs)


def _recorded(layer, args: Iterable, kwargs) -> dict[int, list[Shapes]]:
    """Calls a layer symbolically and returns what its layers were given."""
    calls: dict[int, list[Shapes]] = {}

    def note(inner, inputs):
        shape = _shape_of(inputs)
        if isinstance(inner, keras.layers.TimeDistributed):
            if shape[1] is None:
                raise ValueError(
                    "MACs need a known number of steps. Received: "
                    f"{inner.name!r} with input shape {shape}."
                )
            return
        calls.setdefault(id(inner), []).append(shape)

    inner = [la for _, la in walk(layer) if searchable_form(la) is not None]
    inner += [
        la
        for la in layer._flatten_layers()
        if isinstance(la, keras.layers.TimeDistributed)
    ]
    try:
        for one in inner:
            # An attribute of this one layer stands before its class's method.
            vars(one)["call"] = _noting(one, note)
        _SymbolicCall(layer).compute_output_spec(*args, **kwargs)
    except Exception as error:
        raise ValueError(
            "The layers in a block or subclassed model are counted by calling "
            f"it on symbolic tensors. Received: {layer.name!r}, for which that "
            f"fails ({error}). Build the model by calling it on one batch, "
            "whose first argument has all inputs."
        ) from error
    finally:
        for one in inner:
            vars(one).pop("call", None)
    return calls


def _shape_of(inputs) -> Shapes:
    """Shape of a tensor, shapes of several; the batch left open."""
    if isinstance(inputs, list | tuple):
        return tuple((None, *tensor.shape[1:]) for tensor in inputs)
    return (None, *inputs.shape[1:])


def _each(shapes: Any) -> tuple[Any, ...]:
    return shapes if isinstance(shapes[0], tuple) else (shapes,)


def _noting(layer, note) -> Callable[..., Any]:
    call = layer.call

    @functools.wraps(call)
    def noting(*args, **kwargs):
        note(layer, args[0] if args else next(iter(kwargs.values())))
        return call(*args, **kwargs)

    return noting
