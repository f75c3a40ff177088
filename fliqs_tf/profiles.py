"""What a model's layers do: multiply-accumulates, sizes of operands."""

import dataclasses
import math
from typing import Any

import keras

from fliqs_tf.calls import each
from fliqs_tf.calls import input_shapes
from fliqs_tf.layers.base import kind_of
from fliqs_tf.layers.base import looks_up
from fliqs_tf.layers.base import searchable_form
from fliqs_tf.layers.base import searchable_layers
from fliqs_tf.layers.searchable_layer import SearchableLayer


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """The numbers of a layer that its cost depends on.

    Where inputs may have any size, those that depend on it raise a
    `ValueError` when they are read; those of the weights are known.

    Args:
        path: Path of the layer.
        kind: Class name of the Keras layer.
        macs: Multiply-accumulates of one sample, over all calls.
        inputs: Elements of the inputs of one sample that have the layer's
            input format, over all calls.
        right_inputs: Likewise, of those that have its weight format: the right
            operands of products without a kernel.
        indices: Likewise, of those that are indices into a table.
        weights: Elements of the kernels.
        weights_read: Elements of the kernels that one sample needs: of a table
            the rows that are looked up, each once if it has no more.
        channels: Output channels of the kernels.
        scales: Scales of the kernels, in formats whose width has none.
        has_groups: Whether scales vary within a channel.
        biases: Elements of the bias.
    """

    path: str
    kind: str
    macs: int
    inputs: int
    right_inputs: int
    indices: int
    weights: int
    weights_read: int
    channels: int
    scales: int
    has_groups: bool
    biases: int

    def __getattribute__(self, name):
        value = super().__getattribute__(name)
        if value is None:
            raise ValueError(
                "The size of inputs must be known for what depends on it. "
                f"Received: `{name}` of layer {self.path!r}, whose inputs have "
                "any size. Build the model with a fixed input shape, or choose "
                "a cost of the weights alone, such as 'size'."
            )
        return value


def profile(model: keras.Model) -> dict[str, LayerProfile]:
    """Profiles the layers of a model that are or can be made searchable.

    A searchable or fixed model is profiled in its searchable layers only.
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
    form = searchable_form(layer)
    kernels, bias = form.shapes(layer)
    # Weights and output channels of each kernel.
    sizes = [
        (math.prod(kernel), math.prod(kernel[axis] for axis in axes))
        for kernel, axes in kernels
    ]
    # A plain layer becomes searchable with a scale a channel by default.
    granularity = getattr(layer, "weight_granularity", "channel")
    return LayerProfile(
        path,
        kind_of(layer),
        weights=sum(w for w, _ in sizes),
        channels=sum(c for _, c in sizes),
        scales=sum(_scales(w, c, granularity) for w, c in sizes),
        has_groups=isinstance(granularity, int),
        biases=0 if bias is None else math.prod(bias),
        **_of_inputs(layer, shapes, sizes),
    )


def _of_inputs(layer, shapes, sizes) -> dict[str, Any]:
    """What depends on the size of inputs: `None` where that is not known."""
    weights = sum(w for w, _ in sizes)
    if any(None in one[1:] for shape in shapes for one in each(shape)):
        counts = ("macs", "inputs", "right_inputs", "indices")
        read = None if looks_up(layer) else weights
        return {**dict.fromkeys(counts), "weights_read": read}
    given = [[math.prod(one[1:]) for one in each(shape)] for shape in shapes]
    elements = sum(map(sum, given))
    # Without a kernel, the right one of two inputs stands in its place.
    right = 0 if sizes else sum(sum(others) for _, *others in given)
    indices, read = 0, weights
    if looks_up(layer):
        indices = elements
        read = sum(min(indices, w // c) * c for w, c in sizes)
    form = searchable_form(layer)
    return {
        "macs": sum(form.macs(layer, shape) for shape in shapes),
        "inputs": elements - right - indices,
        "right_inputs": right,
        "indices": indices,
        "weights_read": read,
    }


def _scales(weights, channels, granularity) -> int:
    """Scales of a kernel, see `WeightQuantizer`."""
    if granularity == "tensor":
        return 1
    if granularity == "channel":
        return channels
    # The last group of a channel may be short.
    return channels * -(-(weights // channels) // granularity)
