"""Layers and models made of layers, some of which were exchanged.

A block of one's own, a wrapper or a subclassed model knows nothing of formats,
and its configuration describes the layers that its constructor makes. To
exchange some of them and yet be saved and loaded, it gets the class
`Composite` mixed into its own.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import keras

from fliqs_tf.layers.children import exchange
from fliqs_tf.layers.children import slots


@dataclasses.dataclass(frozen=True)
class Origin:
    """The layer before it was mixed, as Keras serialises it; `None` if not."""

    config: Mapping[str, Any] | None
    layers: Mapping[str, keras.layers.Layer]


@keras.saving.register_keras_serializable(package="fliqs_tf")
class Composite(keras.layers.Layer):
    """Mixin of a layer whose inner layers were exchanged; see `compose`."""

    def exchange_layers(self):
        """Puts the layers given to `compose` where they belong, if not done.

        Layers that are made by `build` are exchanged right after it.
        """
        present = slots(self)
        due = {
            slot: layer
            for slot, layer in self._composite_origin.layers.items()
            if slot in present and present[slot] is not layer
        }
        for slot, layer in due.items():
            if present[slot].built and not layer.built:
                layer.build_from_config(present[slot].get_build_config())
        if due:
            exchange(self, due)

    def _post_build(self):
        # Keras calls it at the end of every `build`, before it locks layers.
        super()._post_build()
        self.exchange_layers()

    def get_config(self):
        origin = self._composite_origin
        if origin.config is None:
            raise NotImplementedError(
                f"To be saved, `{type(self).__name__}` needs `get_config`, as "
                "it would without formats."
            )
        config = {**origin.config["config"]}
        if "trainable" in config:
            config["trainable"] = self.trainable
        return {
            "origin": {**origin.config, "config": config},
            "layers": {
                slot: _serialized(layer)
                for slot, layer in origin.layers.items()
            },
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        origin = keras.saving.deserialize_keras_object(
            config["origin"], custom_objects
        )
        layers = {
            slot: keras.saving.deserialize_keras_object(layer, custom_objects)
            for slot, layer in config["layers"].items()
        }
        return compose(origin, layers)


def compose(
    layer: keras.layers.Layer, layers: Mapping[str, keras.layers.Layer]
) -> keras.layers.Layer:
    """Exchanges layers that a layer or model holds, in place.

    The layer's class becomes a subclass of its own and of `Composite`, so that
    its configuration tells of the exchange.

    Args:
        layer: Layer that is no graph of layers.
        layers: Slot (see `children.slots`) -> layer. Slots that do not exist
            yet are filled when `build` has made their layers.

    Returns:
        The layer.
    """
    try:
        config = _serialized(layer)
    except NotImplementedError:
        config = None
    origin = Origin(config, dict(layers))
    # Not by `setattr`, which would track them as layers of their own.
    vars(layer)["_composite_origin"] = origin
    cls: Any = type(layer)
    object.__setattr__(layer, "__class__", _mixed(cls))
    layer.exchange_layers()
    return layer


def plain_class(layer: keras.layers.Layer) -> Any:
    """The class of a layer, without `Composite`."""
    if isinstance(layer, Composite):
        return type(layer).__bases__[1]
    return type(layer)


@functools.cache
def _mixed(cls):
    if issubclass(cls, Composite):
        return cls
    mixed = type(cls.__name__, (Composite, cls), {"__doc__": cls.__doc__})
    mixed.__module__ = cls.__module__
    # Whatever the class, `Composite.from_config` reads what is saved.
    return keras.saving.register_keras_serializable(
        package="fliqs_tf", name=Composite.__name__
    )(mixed)


def _serialized(layer: keras.layers.Layer) -> dict[str, Any]:
    """A layer's class and configuration; raises if it has no configuration."""
    config = keras.saving.serialize_keras_object(layer)
    # The shapes and the compilation are saved for what holds the layer. Its
    # `build` may build the layer, which must not have been built by then.
    for key in ("build_config", "compile_config"):
        config.pop(key, None)
    return config
