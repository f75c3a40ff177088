"""Copies of models in which some layers have another form.

A copy has the layers, names, trainability and weights of the model, which is
not changed. Graphs are cloned (`keras.models.clone_model`); layers are made
anew from their configuration; in models and layers without a graph the layers
that change are exchanged in place (see `layers/composite.py`).
"""

import dataclasses
import tempfile
import types
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras

from fliqs_tf.layers.attention_product import AttentionProduct
from fliqs_tf.layers.base import graph_of
from fliqs_tf.layers.base import is_container
from fliqs_tf.layers.base import parts
from fliqs_tf.layers.base import searchable_form
from fliqs_tf.layers.base import walk
from fliqs_tf.layers.children import own_variables
from fliqs_tf.layers.children import slots
from fliqs_tf.layers.composite import Composite
from fliqs_tf.layers.composite import Origin
from fliqs_tf.layers.composite import compose
from fliqs_tf.layers.composite import plain_class
from fliqs_tf.layers.searchable_layer import SearchableLayer


def copy_model(
    model: keras.Model, keywords: Mapping[str, Mapping[str, Any]]
) -> keras.Model:
    """Copies a model, uncompiled.

    Args:
        model: Built model of any kind.
        keywords: Path of a layer -> arguments of its searchable form, besides
            those of the layer. Layers that are not named keep their class.

    Returns:
        A model of the same names and weights. It has the class of the model,
        or a subclass of it, but for classes of graphs that cannot be made from
        inputs and outputs, which become `keras.Model`.
    """
    layers = dict(walk(model))
    arguments = {id(layers[path]): keywords[path] for path in keywords}

    def searchable(layer):
        form = searchable_form(layer)
        config = {**form.config_of(layer), **arguments[id(layer)]}
        return form.from_config(config)

    return copy_with(model, lambda layer: id(layer) in arguments, searchable)


def copy_with(
    model: keras.Model,
    changes: Callable[[keras.layers.Layer], bool],
    change: Callable[[keras.layers.Layer], keras.layers.Layer],
) -> keras.Model:
    """Copies a model; see `copy_model`.

    Args:
        model: Built model of any kind.
        changes: Layer -> whether it gets another form.
        change: Such a layer -> the other form, not built, with at least the
            weights of the layer.
    """
    copied = _Copier(changes, change)(model)
    # From the outside inwards: what builds a layer may build those in it.
    for source, target in _pairs(model, copied):
        # Keras numbers the names of layers that a constructor makes.
        target.name = source.name
        _build_like(source, target)
    for source, target in _pairs(model, copied):
        _check_parts(source, target)
        _copy_state(source, target)
    _copy_trainability(model, copied)
    return copied


class _Copier:
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
    if plain_class(layer).get_config is keras.Model.get_config:
        # Keras makes it up, from the defaults of the constructor.
        return None
    try:
        config = layer.get_config()
    except NotImplementedError:
        return None
    with keras.saving.CustomObjectScope(classes):
        try:
            return type(layer).from_config(config)
        except TypeError:
            # The constructor does not take what Keras adds to configurations.
            return None


def _own_classes(layer):
    """The classes of the layers in a layer that Keras may not find."""
    classes = {plain_class(inner) for inner in layer._flatten_layers()}
    return [c for c in classes if not c.__module__.startswith("keras.")]


def _pairs(source, target):
    """Yields `(layer, copy)` of a model and of all layers in it, once each."""
    seen = set()

    def visit(source, target):
        if id(source) in seen:
            return
        seen.add(id(source))
        yield source, target
        if is_container(source):
            copies = dict(parts(target))
            for name, layer in parts(source):
                # Layers that `build` makes are not there before.
                if name in copies:
                    yield from visit(layer, copies[name])

    return visit(source, target)


def _check_parts(source, target):
    if not is_container(source):
        return
    # Attention whose products become layers has them besides.
    expected, found = (
        [
            name
            for name, part in parts(layer)
            if not isinstance(part, AttentionProduct)
        ]
        for layer in (source, target)
    )
    if expected != found:
        raise ValueError(
            "A layer's configuration must describe the layers in it. Received: "
            f"{type(source).__name__} {source.name!r} with layers {expected}, "
            f"whose configuration makes {found}. Mend its `get_config`."
        )


def _build_like(source, target):
    """Builds a copy, and what is in it, if it is not built yet."""
    if target.built or not source.built:
        return
    if not getattr(source.build, "_is_default", False):
        target.build_from_config(source.get_build_config())
        return
    # Without a `build` of its own, it is built when its layers are.
    copies = dict(parts(target))
    for name, layer in parts(source):
        _build_like(layer, copies[name])
    target._build_shapes_dict = source._build_shapes_dict
    target.built = True


def _copy_state(source, target):
    if isinstance(target, SearchableLayer):
        values = {w.name: w for w in source.weights}
        for variable in target.weights:
            name = variable.name
            if name in values and not name.endswith("_choice"):
                variable.assign(values[name])
    elif is_container(source):
        own = zip(own_variables(source), own_variables(target), strict=True)
        for variable, other in own:
            other.assign(variable)
    else:
        store: dict[str, Any] = {}
        source.save_own_variables(store)
        target.load_own_variables(store)
        if hasattr(source, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                source.save_assets(folder)
                target.load_assets(folder)


def _copy_trainability(source, target):
    """Sets a model's own flag, which Keras would hand down to all layers."""
    if source.trainable:
        return
    target.trainable = False
    layers = dict(walk(target))
    for path, layer in walk(source):
        layers[path].trainable = layer.trainable
