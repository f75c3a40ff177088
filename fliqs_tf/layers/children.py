"""The layers that a layer holds as attributes, and how to exchange them.

For layers and models that are no graph of layers: subclassed models, blocks of
one's own, and Keras's layers made of layers.
"""

import re
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import keras

# Where Keras keeps all layers and nodes of a layer, beside its attributes.
_BOOKKEEPING = re.compile(r"_self_.*|_layers|_(in|out)bound_nodes|_functional")
# Layers that name their inner layers; their attributes tell nothing.
_BY_NAME = (
    keras.layers.Wrapper,
    keras.layers.Bidirectional,
    keras.layers.RNN,
    keras.layers.StackedRNNCells,
)
ATTENTION = (
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
)
_WITHIN_ATTENTION = re.compile(
    r"_(?:(query|key|value|output|gate)_dense|(scores|weighted_sum)_product)"
)


def slots(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """The places where a layer holds others.

    Returns:
        Slot -> layer, in the order of the attributes. A slot is the name of
        the attribute, with the number in a list or tuple or the key in a
        dictionary behind "/". A layer held twice has two slots.
    """
    tracked = {id(child) for child in layer._layers}
    found: dict[str, keras.layers.Layer] = {}
    for name, value in vars(layer).items():
        if not _BOOKKEEPING.fullmatch(name):
            found |= {
                slot: child
                for slot, child in _leaves(name, value)
                if id(child) in tracked
            }
    return found


def children(
    layer: keras.layers.Layer,
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields `(name in paths, layer)` of the layers that a layer holds.

    The name is the slot; projections of attention are `"query"`, `"key"`,
    `"value"`, `"output"` (and `"gate"`), its products `"scores"` and
    `"weighted_sum"`, and a wrapped layer has its own name.
    """
    seen = set()
    for slot, child in slots(layer).items():
        if id(child) in seen:
            continue
        seen.add(id(child))
        within = _WITHIN_ATTENTION.fullmatch(slot)
        if isinstance(layer, ATTENTION) and within:
            yield within[1] or within[2], child
        elif isinstance(layer, _BY_NAME):
            yield child.name, child
        else:
            yield slot, child


def exchange(
    layer: keras.layers.Layer, replacements: Mapping[str, keras.layers.Layer]
) -> None:
    """Puts other layers into slots of a layer, in place.

    Args:
        layer: The layer, built or not.
        replacements: Slot -> layer.
    """
    old = slots(layer)
    is_locked = layer._tracker.locked
    layer._tracker.unlock()
    for slot, new in replacements.items():
        name, *keys = slot.split("/")
        value = _with(vars(layer)[name], keys, new)
        if value is vars(layer)[name]:
            # Setting an attribute to what it is would do nothing.
            vars(layer)[name] = None
        setattr(layer, name, value)
    # Tracking appends what is new and keeps what is old. Weights shall keep
    # their order.
    kept = {id(child) for child in slots(layer).values()}
    places = {
        id(old[slot]): new
        for slot, new in replacements.items()
        if id(old[slot]) not in kept
    }
    layers: list[Any] = []
    for item in layer._layers:
        item = places.get(id(item), item)
        if all(item is not other for other in layers):
            layers.append(item)
    layer._layers[:] = layers
    layer._tracker.stored_ids["layers"] = {id(item) for item in layers}
    if is_locked:
        layer._lock_state()


def own_variables(layer: keras.layers.Layer) -> list[Any]:
    """Weights of a layer that belong to none of the layers it holds."""
    inner = {id(v) for child in layer._layers for v in child.weights}
    return [v for v in layer.weights if id(v) not in inner]


def _leaves(name, value):
    if isinstance(value, keras.layers.Layer):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}/{key}", item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(f"{name}/{number}", item)


def _with(value, keys, new):
    """`value` with `new` in the place that the keys lead to."""
    if not keys:
        return new
    if isinstance(value, tuple):
        items = list(value)
        number = int(keys[0])
        items[number] = _with(items[number], keys[1:], new)
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    if isinstance(value, list):
        number = int(keys[0])
        # Not `value[number] = new` of a tracked list, which does not track.
        list.__setitem__(value, number, _with(value[number], keys[1:], new))
        return value
    (key,) = (key for key in value if str(key) == keys[0])
    value[key] = _with(value[key], keys[1:], new)
    return value
