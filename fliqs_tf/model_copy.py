"""Copies of models in which some layers have another form.

A copy has the layers, names, trainability and weights of the model, which is
not changed. `layer_copier.py` makes the layers; here they are built and get the
state of those that they stand for.
"""

import tempfile
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras

from fliqs_tf.layer_copier import LayerCopier
from fliqs_tf.layers.attention_product import AttentionProduct
from fliqs_tf.layers.base import is_container
from fliqs_tf.layers.base import parts
from fliqs_tf.layers.base import searchable_form
from fliqs_tf.layers.base import walk
from fliqs_tf.layers.children import own_variables
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
    copied = LayerCopier(changes, change)(model)
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
    if isinstance(source, SearchableLayer) or isinstance(
        target, SearchableLayer
    ):
        # One of them has weights of quantizers besides.
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
        # A recurrent layer's weights are its cell's.
        for inner, other in zip(
            source._flatten_layers(), target._flatten_layers(), strict=True
        ):
            _copy_own_state(inner, other)


def _copy_own_state(source, target):
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
