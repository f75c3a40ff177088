"""Which Keras layer has which searchable form, and where models have them."""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import keras

from fliqs_tf.layers.children import children
from fliqs_tf.layers.children import own_variables
from fliqs_tf.layers.searchable_layer import SearchableLayer

_FORMS: dict[type, Any] = {}


def searchable(keras_class: type):
    """Class decorator: registers a searchable form of a layer class.

    The form must be a `SearchableLayer` and a subclass of `keras_class`, with
    a method `compute(inputs, training)`, which stands for `call`, and a static
    method `macs(layer, input_shape) -> int`, which counts the
    multiply-accumulates of one sample for a layer of either class. Its
    signature becomes the class's own plus the keywords of `SearchableLayer`.

    From then on `to_searchable` converts layers of that very class, so that a
    layer of one's own can be taught:

        @fliqs.layers.searchable(Lowpass)
        class SearchableLowpass(fliqs.layers.SearchableLayer, Lowpass):
            def compute(self, inputs, training):
                inputs, kernel, scale = self.quantize_operands(inputs, training)
                return self.finish(self.filter(inputs, kernel), scale)

            @staticmethod
            def macs(layer, input_shape):
                return math.prod(input_shape[1:]) * layer.kernel.shape[0]

    The class attribute `operands` (see `Operand`) names the kernels if there
    are others than `kernel`, whose last axis keeps the scales. Where scales
    cannot be taken out of the operation, multiply them in: `kernel * scale`.
    """

    def register(form):
        _FORMS[keras_class] = form
        return extends(keras_class)(form)

    return register


def extends(keras_class: type, *own: str):
    """Class decorator: registers a class with Keras, and signs it.

    The signature becomes that of `keras_class` plus the keywords of
    `SearchableLayer`, and `own` ones of the class.
    """

    def register(form):
        shared = inspect.signature(SearchableLayer).parameters.values()
        inherited = inspect.signature(keras_class).parameters.values()
        named = [p for p in inherited if p.kind is not p.VAR_KEYWORD]
        variadic = [p for p in inherited if p.kind is p.VAR_KEYWORD]
        keywords = [p for p in shared if p.kind is p.KEYWORD_ONLY]
        parameters = inspect.signature(form.__init__).parameters
        keywords += [parameters[name] for name in own]
        form.__signature__ = inspect.Signature([*named, *keywords, *variadic])
        return keras.saving.register_keras_serializable(package="fliqs_tf")(
            form
        )

    return register


def searchable_form(layer: keras.layers.Layer) -> Any:
    """Returns the searchable class of a layer, `None` if there is none.

    Subclasses of a Keras layer have none of their own: they may compute
    something else.
    """
    if isinstance(layer, SearchableLayer):
        return type(layer)
    return _FORMS.get(type(layer))


def looks_up(layer: keras.layers.Layer) -> bool:
    """Whether what a layer is given are indices into tables of its own."""
    form = searchable_form(layer)
    return form is not None and all(
        operand.inputs is None for operand in form.operands_of(layer)
    )


def kind_of(layer: keras.layers.Layer) -> str:
    """Name of a layer's class, of the plain one if it is searchable."""
    for plain, form in _FORMS.items():
        if type(layer) is form:
            return plain.__name__
    return type(layer).__name__


def convolution_macs(layer, input_shape) -> int:
    """MACs of a convolution: positions of the output times the kernel's size.

    Each output position uses each weight once, whatever the groups.
    """
    output = layer.compute_output_shape(input_shape)
    return positions(layer, output) * math.prod(layer.kernel.shape)


def positions(layer, shape) -> int:
    """Number of places in an image (or signal, or volume) of a shape."""
    if layer.data_format == "channels_last":
        return math.prod(shape[1:-1])
    return math.prod(shape[2:])


def walk(
    model: keras.Model, prefix: str = ""
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields `(path, layer)` of every layer of a model, each layer once.

    A path is the layer's name; inside nested models, their names and its own
    joined by "/". Layers that are held as attributes (of a subclassed model or
    of a layer) have the attribute path in place of a name: `"blocks/0/dense"`.
    The outermost model's name is left out.

    Models are not yielded, only what is in them; nor are layers made of layers
    (wrappers, attention, blocks of one's own) unless they have weights of
    their own.
    """
    seen: set[int] = set()

    def visit(owner, prefix):
        for name, layer in parts(owner):
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            path = prefix + name
            if not is_container(layer):
                yield path, layer
                continue
            if not isinstance(layer, keras.Model) and own_variables(layer):
                yield path, layer
            yield from visit(layer, path + "/")

    return visit(model, prefix)


def is_container(layer: keras.layers.Layer) -> bool:
    """Whether decisions are made inside of a layer, not for it as a whole."""
    if isinstance(layer, keras.Model):
        return True
    return searchable_form(layer) is None and bool(
        getattr(layer, "_layers", None)
    )


def parts(
    owner: keras.layers.Layer,
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields `(name in paths, layer)` of what a model or layer is made of."""
    if graph_of(owner) is None:
        yield from children(owner)
    else:
        yield from ((layer.name, layer) for layer in owner.layers)


def graph_of(model: keras.Model):
    """The graph of a Functional or Sequential model, `None` for others."""
    graph = getattr(model, "_functional", None) or model
    # Keras has no public name for the class, nor a list of a graph's nodes.
    return graph if hasattr(graph, "_nodes_by_depth") else None


def has_own_call(model: keras.Model) -> bool:
    """Whether the class of a model with a graph may compute more than that."""
    return not type(model).call.__module__.startswith("keras.")


def searchable_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Path -> layer, of the layers that are or can be made searchable."""
    return {p: la for p, la in walk(model) if searchable_form(la) is not None}
