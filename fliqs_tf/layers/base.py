"""What searchable layers share, and which Keras layer has a searchable form."""

import inspect
import math
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from fliqs_tf.formats import get_format
from fliqs_tf.quantizers import InputQuantizer
from fliqs_tf.quantizers import WeightQuantizer
from fliqs_tf.space import get_space

TIED = "tied"

_FORMS: dict[type, Any] = {}


class SearchableLayer(keras.layers.Layer):
    """Mixin before a Keras layer: formats, quantizers, MACs.

    The layer computes with codes and scales (see `quantizers.py`):

        outputs = op(codes(x), codes(kernel)) * (scale_x * scale_kernel)

    which is the Keras layer's `op(x, kernel)` with both operands rounded. At
    `fp32` the codes are the values and the scale is 1: the result is
    bit-identical to the Keras layer's.

    Besides the arguments of the Keras layer it takes, by keyword:

    Args:
        formats: Format of the layer (`"int4"`), or options to search: a key of
            `fliqs.SPACES` or a sequence of names.
        input_formats: `"tied"`: inputs have the format of the weights (one
            decision). Otherwise their own format or options (a second
            decision), or `None` to leave inputs unquantized.
        input_range: `"ema"` or `"dynamic"`, see `InputQuantizer`.
    """

    # Axes of the kernel that keep a scale of their own.
    kernel_scale_axis: int | tuple[int, ...] = -1

    def __init__(
        self,
        *args,
        formats: str | Sequence[str] = "int8",
        input_formats: str | Sequence[str] | None = TIED,
        input_range: str = "ema",
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.formats = get_space(formats)
        self.is_tied = input_formats == TIED
        if self.is_tied:
            input_formats = self.formats
        self.input_range = input_range
        self.kernel_quantizer = WeightQuantizer(
            self.formats, self.kernel_scale_axis
        )
        self.input_quantizer = None
        if input_formats is not None:
            self.input_quantizer = InputQuantizer(input_formats, input_range)

    def build(self, input_shape):
        super().build(input_shape)
        self._kernel_state = self.kernel_quantizer.build(
            self.kernel.shape, "kernel", self
        )
        self._input_state = {}
        if self.input_quantizer is not None:
            self._input_state = self.input_quantizer.build(None, "input", self)

    def add_weight(self, *args, name=None, **kwargs):
        # Under mixed precision Keras would hand out a kernel that is rounded
        # to 16 bits already, unlike the one that is exported.
        if name == "kernel":
            kwargs["autocast"] = False
        return super().add_weight(*args, name=name, **kwargs)

    @property
    def is_fixed(self) -> bool:
        """Whether no format is left to choose."""
        quantizers = (self.kernel_quantizer, self.input_quantizer)
        return all(q is None or len(q.formats) == 1 for q in quantizers)

    def choices(self) -> dict[str, tuple[tuple[str, ...], list[Any]]]:
        """The layer's decisions.

        Returns:
            Kind of decision -> (options, variables that take the index of the
            chosen one), weights before inputs. Decisions with one option have
            no variables.
        """
        kernel = [self._kernel_state.get("choice")]
        inputs = [self._input_state.get("choice")]
        if self.input_quantizer is None:
            found = {"weight_format": (self.formats, kernel)}
        elif self.is_tied:
            found = {"format": (self.formats, kernel + inputs)}
        else:
            found = {
                "weight_format": (self.formats, kernel),
                "input_format": (self.input_quantizer.formats, inputs),
            }
        return {
            kind: (options, [v for v in variables if v is not None])
            for kind, (options, variables) in found.items()
        }

    def input_identities(self) -> list[tuple[Any, int]]:
        """`(variable, index)`: what leaves searched inputs as they are."""
        choice = self._input_state.get("choice")
        if self.input_quantizer is None or choice is None:
            return []
        return [(choice, len(self.input_quantizer.formats))]

    def quantized_kernel(self) -> tuple[np.ndarray, np.ndarray]:
        """The weights of a fixed layer as they are used.

        Returns:
            `(codes, scale)`, float32 arrays: codes in the format's own units
            (integers for integer formats) and of the kernel's shape, scale of
            size 1 but on the axes with scales of their own. `codes * scale`
            is the effective kernel.
        """
        (name,) = self.formats
        unit = np.float32(get_format(name).unit)
        codes, scale = self.kernel_quantizer.codes(
            self.kernel, False, self._kernel_state
        )
        codes, scale = ops.convert_to_numpy(codes), ops.convert_to_numpy(scale)
        return codes * unit, scale / unit

    def _quantize_operands(self, inputs, training):
        """Returns both operands' codes in the compute dtype, and the scale.

        The scale of the inputs times that of the kernel, float32, of the
        kernel's rank.
        """
        codes, scale = self.kernel_quantizer.codes(
            self.kernel, training, self._kernel_state
        )
        dtype = self.compute_dtype
        if self.input_quantizer is not None:
            inputs, input_scale = self.input_quantizer.codes(
                inputs, training, self._input_state
            )
            scale = scale * ops.reshape(input_scale, [1] * len(scale.shape))
        return ops.cast(inputs, dtype), ops.cast(codes, dtype), scale

    def _finish(self, outputs, scale):
        """Scales the outputs in float32, adds the bias, and activates."""
        scaled = ops.cast(outputs, "float32") * self._per_channel(
            scale, len(outputs.shape)
        )
        outputs = ops.cast(scaled, self.compute_dtype)
        if self.bias is not None:
            bias = self._per_channel(self.bias, len(outputs.shape))
            outputs = ops.add(outputs, bias)
        if self.activation is not None:
            return self.activation(outputs)
        return outputs

    def _per_channel(self, values, rank):
        """Shapes one value an output channel to broadcast with outputs."""
        if getattr(self, "data_format", "channels_last") == "channels_first":
            return ops.reshape(values, (1, -1) + (1,) * (rank - 2))
        return ops.reshape(values, (1,) * (rank - 1) + (-1,))

    def save_own_variables(self, store):
        # Some Keras layers store their kernel and bias by name only.
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self):
        inputs = self.input_quantizer and list(self.input_quantizer.formats)
        return {
            **super().get_config(),
            "formats": list(self.formats),
            "input_formats": TIED if self.is_tied else inputs,
            "input_range": self.input_range,
        }


def convolution_macs(layer, input_shape) -> int:
    """MACs of a convolution: positions of the output times the kernel's size.

    Each output position uses each weight once, whatever the groups.
    """
    output = layer.compute_output_shape(input_shape)
    positions = (
        output[1:-1] if layer.data_format == "channels_last" else output[2:]
    )
    return math.prod(positions) * math.prod(layer.kernel.shape)


def searchable(keras_class: type):
    """Class decorator: registers a searchable form of a Keras layer class.

    The form must be a `SearchableLayer` and a subclass of `keras_class`, with
    a static method `macs(layer, input_shape) -> int` that counts the
    multiply-accumulates of one sample for a layer of either class. Its
    signature becomes the Keras layer's own plus the keywords of
    `SearchableLayer`.
    """

    def register(form):
        own = inspect.signature(SearchableLayer).parameters.values()
        inherited = inspect.signature(keras_class).parameters.values()
        named = [p for p in inherited if p.kind is not p.VAR_KEYWORD]
        variadic = [p for p in inherited if p.kind is p.VAR_KEYWORD]
        keywords = [p for p in own if p.kind is p.KEYWORD_ONLY]
        form.__signature__ = inspect.Signature([*named, *keywords, *variadic])
        _FORMS[keras_class] = form
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


def walk(
    model: keras.Model, prefix: str = ""
) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields `(path, layer)` of every layer that is not itself a model.

    A path is the layer's name; inside nested models, their names and its own
    joined by "/". The outermost model's name is left out.
    """
    for layer in model.layers:
        path = prefix + layer.name
        if isinstance(layer, keras.Model):
            yield from walk(layer, path + "/")
        else:
            yield path, layer


def graph_of(model: keras.Model):
    """The graph of a Functional or Sequential model, `None` for others."""
    graph = getattr(model, "_functional", None) or model
    # Keras has no public name for the class, nor a list of a graph's nodes.
    return graph if hasattr(graph, "_nodes_by_depth") else None


def searchable_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Path -> layer, of the layers that are or can be made searchable."""
    return {p: la for p, la in walk(model) if searchable_form(la) is not None}
