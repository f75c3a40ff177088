"""What a model's layers do: multiply-accumulates, sizes of operands."""

import dataclasses
import itertools
import math

import keras

from fliqs_tf.calls import each
from fliqs_tf.calls import input_shapes
from fliqs_tf.layers.base import kind_of
from fliqs_tf.layers.base import searchable_form
from fliqs_tf.layers.base import searchable_layers
from fliqs_tf.layers.searchable_layer import SearchableLayer


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
    for shape in itertools.chain(*map(each, shapes)):
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
            math.prod(one[1:]) for shape in shapes for one in each(shape)
        ),
        weights=sum(math.prod(kernel) for kernel, _ in kernels),
        scales=sum(
            math.prod(kernel[axis] for axis in axes) for kernel, axes in kernels
        ),
        biases=0 if bias is None else math.prod(bias),
    )
