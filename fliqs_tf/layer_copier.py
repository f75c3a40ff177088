"""Copies layers one by one, some of them in another form.

Graphs are cloned (`keras.models.clone_model`); layers are made anew from their
configuration; in models and layers without a graph the layers that change are
exchanged in place (see `layers/composite.py`). Weights are not copied here.
"""

import dataclasses
import types
from typing import Any

import keras

from fliqs_tf.layers.base import graph_of
from fliqs_tf.layers.base import has_own_call
from fliqs_tf.layers.base import is_container
from fliqs_tf.layers.children import slots
from fliqs_tf.layers.composite import Composite
from fliqs_tf.layers.composite import Origin
from fliqs_tf.layers.composite import compose
from fliqs_tf.layers.composite import plain_class


class LayerCopier:
    """Copies layers, each once, however often it is met."""

    def __init__(self, changes, change):
        self._changes = changes
        self._change = change
        self._copies: dict[int, tuple[Any, Any]] = {}

    def __call__(self, layer):
        # The layer is kept, so that its `id` is not given to another.
        if id(layer) not in self._copies:
            self._copies[id(layer)] = layer, self._copy(layer)
        return self._copies[id(layer)][1]

    def _copy(self, layer):
        if not isinstance(layer, keras.layers.Layer):
            return _copy_operation(layer)
        if self._changes(layer):
            return self._change(layer)
        if graph_of(layer) is not None:
            return self._copy_graph(layer)
        changed = {}
        if is_container(layer):
            changed = {
                slot: self(child)
                for slot, child in slots(layer).items()
                if self._changes_within(child)
            }
        plain = _from_config(layer)
        if plain is None:
            plain = self._copy_attributes(layer)
        if isinstance(plain, Composite):
            # It was one before, with layers of another form.
            plain._composite_origin.layers.update(changed)
            plain.exchange_layers()
            return plain
        return compose(plain, changed) if changed else plain

    def _changes_within(self, layer):
        return any(map(self._changes, layer._flatten_layers()))

    def _copy_graph(self, model):
        by_layers = isinstance(model, keras.Sequential) or model.compiled
        if by_layers and has_own_call(model):
            raise ValueError(
                "A Sequential model and one that is compiled are copied by "
                f"their layers. Received: {model.name!r}, a "
                f"{type(model).__name__}, which has a `call` of its own. Write "
                "it as a `keras.Model` without a graph, its layers attributes, "
                "or compile it only afterwards."
            )
        if isinstance(model, keras.Sequential):
            (first,) = model.inputs
            layers = [self(layer) for layer in model.layers]
            return keras.Sequential(
                [_input_like(first), *layers], name=model.name
            )
        if model.compiled:
            # A view of the same layers: `clone_model` would compile the copy
            # like the model, and fail where a loss cannot be serialised.
            model = keras.Model(model.input, model.output, name=model.name)
        inputs = keras.tree.map_structure(_input_like, model.input)
        return keras.models.clone_model(model, inputs, clone_function=self)

    def _copy_attributes(self, layer):
        """Copies a layer that Keras cannot make from its configuration.

        Layers, weights, metrics and seeds that it holds are copied; other
        attributes are shared with it, as they are not state that Keras knows.
        """
        cls: Any = type(layer)
        other = cls.__new__(cls)
        base: Any = keras.Model
        if not isinstance(layer, keras.Model):
            base = keras.layers.Layer
        # Not the class's own constructor, whose arguments nobody knows.
        base.__init__(
            other,
            name=layer.name,
            dtype=layer.dtype_policy,
            trainable=layer.trainable,
        )
        made = set(vars(other)).difference(_SETTINGS)
        with keras.name_scope(layer.name):
            for name, value in vars(layer).items():
                if name not in made and not name.startswith("_self_"):
                    setattr(other, name, self._copy_value(value, layer, other))
        other.built = layer.built
        return other

    def _copy_value(self, value, owner, other):
        def inner(item):
            return self._copy_value(item, owner, other)

        if isinstance(value, keras.layers.Layer):
            return self(value)
        if isinstance(value, keras.Variable):
            variable = keras.Variable(
                value,
                dtype=value.dtype,
                trainable=value.trainable,
                name=value.name,
            )
            variable.regularizer = value.regularizer
            variable.constraint = value.constraint
            return variable
        if isinstance(value, keras.metrics.Metric):
            return type(value).from_config(value.get_config())
        if isinstance(value, keras.random.SeedGenerator):
            return keras.random.SeedGenerator(value.seed)
        if isinstance(value, keras.optimizers.Optimizer):
            return None
        if isinstance(value, Origin):
            return dataclasses.replace(value, layers=inner(value.layers))
        if isinstance(value, types.MethodType) and value.__self__ is owner:
            return types.MethodType(value.__func__, other)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(inner, value))
        if isinstance(value, list | tuple):
            # Keras wraps lists and dictionaries anew when they are set.
            items = map(inner, value)
            return tuple(items) if isinstance(value, tuple) else list(items)
        if isinstance(value, dict):
            return {key: inner(item) for key, item in value.items()}
        return value


# What every layer has and its own constructor may have set.
_SETTINGS = (
    "supports_masking",
    "autocast",
    "activity_regularizer",
    "_input_spec",
    "_supports_masking",
    "_build_shapes_dict",
)


def _input_like(tensor):
    layer = tensor._keras_history.operation
    return keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        sparse=tensor.sparse,
        ragged=tensor.ragged,
        optional=getattr(layer, "optional", False),
        # The layer's name, which need not be the tensor's.
        name=layer.name,
    )


def _copy_operation(operation):
    """Copies an operation of the functional API, such as `x + y`."""
    try:
        return type(operation).from_config(operation.get_config())
    except NotImplementedError:
        # It has no state: the graphs may share it.
        return operation


def _from_config(layer):
    """A layer of the same class and configuration, `None` if it has none."""
    if type(layer) is keras.layers.Lambda:
        # Serialised, a function would lose the names around it.
        return keras.layers.Lambda(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            name=layer.name,
            dtype=layer.dtype_policy,
            trainable=layer.trainable,
        )
    classes = {cls.__name__: cls for cls in _own_classes(layer)}
    made_up = plain_class(layer).get_config is keras.Model.get_config
    if made_up and isinstance(layer, keras.Model):
        # Of a model, unlike a layer, Keras knows no arguments.
        return None
    try:
        config = layer.get_config()
    except NotImplementedError:
        return None
    with keras.saving.CustomObjectScope(classes):
        try:
            copy = type(layer).from_config(config)
        except TypeError:
            # The constructor does not take what Keras adds to configurations.
            return None
    # A configuration that Keras makes has no name where the constructor calls
    # its keywords other than `kwargs`.
    copy.name = layer.name
    return copy


def _own_classes(layer):
    """The classes of the layers in a layer that Keras may not find."""
    classes = {plain_class(inner) for inner in layer._flatten_layers()}
    return [c for c in classes if not c.__module__.startswith("keras.")]
