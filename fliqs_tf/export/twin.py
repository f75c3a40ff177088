"""Twins of a fixed model: the models that are converted or compared with.

A twin has the layers, names and weights of the fixed model, in float32, except
for what is named below. The fixed model itself is never changed.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from fliqs_tf.export import exact_layers
from fliqs_tf.export import rounding
from fliqs_tf.export.slots import Slots
from fliqs_tf.formats import get_format
from fliqs_tf.layers.base import SearchableLayer
from fliqs_tf.layers.base import walk

_HALF = ("float16", "bfloat16")


def fixed_layers(model: keras.Model) -> dict[str, SearchableLayer]:
    """Path -> layer of every quantized layer of a model."""
    return {p: la for p, la in walk(model) if isinstance(la, SearchableLayer)}


def uncompiled(model: keras.Model) -> keras.Model:
    """A view of the same layers that has never been compiled.

    `clone_model` compiles the clone as its source was, which fails for a loss
    or metric that cannot be serialised.
    """
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs, model.outputs[0], name=model.name)
    return keras.Model(model.input, model.output, name=model.name)


def weight_only_reference(model: keras.Model) -> keras.Model:
    """The fixed model with its input quantizers switched off."""
    twin = _clone(
        model, lambda layer: None, lambda layer: {"input_formats": None}
    )
    # The configuration of layers inside of others is not seen by the clone.
    for layer in fixed_layers(twin).values():
        layer.input_quantizer = None
        if isinstance(layer, keras.layers.RNN):
            layer._state_quantizer = None
    return twin


def container_reference(model: keras.Model, input_format: str) -> keras.Model:
    """The fixed model with every input in one format, and the learned ranges.

    Inputs that are not quantized stay so.
    """

    def keywords(layer):
        if not rounds_inputs(layer):
            return {}
        return {"input_formats": input_format}

    return _clone(model, lambda layer: None, keywords)


def rounds_inputs(layer: SearchableLayer) -> bool:
    """Whether a fixed layer does something to its inputs."""
    quantizer = layer.input_quantizer
    return quantizer is not None and quantizer.formats != ("fp32",)


def learned_ranges(model: keras.Model) -> dict[str, float | None]:
    """Path -> running range of the inputs, of layers that round them.

    `None` where the range comes from each tensor; 0 where it saw no data.
    """
    found: dict[str, float | None] = {}
    for path, layer in fixed_layers(model).items():
        if rounds_inputs(layer):
            state, quantizer = layer._input_state, layer.input_quantizer
            found[path] = None
            if quantizer is not None and "range" in state:
                # A pair where the grid has a zero point.
                bound = np.abs(np.asarray(state["range"])).max()
                is_known = quantizer.is_calibrated(state)
                found[path] = float(bound) if is_known else 0.0
    return found


def float_twin(model: keras.Model) -> keras.Model:
    """Effective weights as plain constants, inputs not rounded."""
    twin = weight_only_reference(model)
    sources = fixed_layers(model)
    for path, layer in fixed_layers(twin).items():
        _make_constant(sources[path], layer)
    return twin


def marked_twin(
    model: keras.Model,
    input_quantizer: Callable[[str, SearchableLayer], Any],
) -> keras.Model:
    """Effective weights as plain constants, inputs rounded by others.

    Args:
        model: Fixed model.
        input_quantizer: Path and layer -> what stands in for its quantizer,
            for layers that round their inputs.
    """
    twin = _clone(model, lambda layer: None)
    sources = fixed_layers(model)
    for path, layer in fixed_layers(twin).items():
        _make_constant(sources[path], layer)
        is_rounded = rounds_inputs(sources[path])
        layer.input_quantizer = (
            input_quantizer(path, layer) if is_rounded else None
        )
    return twin


def fake_quant_twin(model: keras.Model, slots: Slots) -> keras.Model:
    """The training arithmetic, in operators that LiteRT runs.

    Quantized layers keep their `call` and get the quantizers of `rounding.py`;
    batch norm and average pooling become the layers of `exact_layers.py`.
    """
    twin = _clone(model, lambda layer: _exact_form(layer, slots))
    sources = fixed_layers(model)
    for path, layer in fixed_layers(twin).items():
        _substitute_quantizers(sources[path], layer, slots)
    return twin


def float32_reference(model: keras.Model) -> keras.Model:
    """The model itself, or a float32 clone if it computes in less."""
    if all(layer.compute_dtype == "float32" for _, layer in walk(model)):
        return model
    return _clone(model, lambda layer: None)


def normalized_codes(
    layer: SearchableLayer, kernel: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a kernel in units that bring the largest one into `[1, 2)`.

    The first kernel by default.

    Unlike `layer.quantized_kernel()`, whose natural units need not be float32
    numbers for formats of 8 exponent bits.
    """
    codes, scale = layer.kernel_codes(False, kernel)
    return np.asarray(codes), np.asarray(scale)


def _make_constant(source, layer):
    """Gives `layer`, a clone of `source`, the effective kernels."""
    for name in source.kernel_quantizers:
        codes, scale = normalized_codes(source, name)
        ones = np.ones_like(scale)
        layer.kernel_quantizers[name] = rounding.ConstantKernel(
            codes * scale, ones
        )


def _substitute_quantizers(source, layer, slots):
    """Gives `layer`, a clone of `source`, quantizers that can be converted."""
    if len(source.kernel_quantizers) > 1:
        raise ValueError(
            "`activations='fake_quant'` takes layers with one kernel. "
            f"Received: {type(source).__name__} {source.name!r} with "
            f"{', '.join(source.kernel_quantizers)}. Use another mode."
        )
    codes, scale = normalized_codes(source)
    (name,) = source.formats
    step = np.float32(rounding.step_of(get_format(name)))
    if get_format(name).is_integer:
        codes, scale = codes / step, scale * step
    if not rounds_inputs(source):
        layer.input_quantizer = None
    else:
        if source.input_quantizer.signedness != "symmetric":
            raise ValueError(
                "`activations='fake_quant'` rounds inputs to symmetric grids. "
                f"Received: signedness={source.input_quantizer.signedness!r} "
                f"in layer {source.name!r}. Use another mode."
            )
        fmt = get_format(source.input_quantizer.formats[0])
        input_scale = _running_scale(source)
        layer.input_quantizer = rounding.InputRounding(fmt, input_scale, slots)
        if input_scale is not None:
            unit = rounding.step_of(fmt) if fmt.is_integer else 1.0
            scale = scale * (input_scale * np.float32(unit))
    layer.kernel_quantizer = rounding.ConstantKernel(codes, scale, slots)


def _running_scale(layer) -> np.float32 | None:
    """Scale of a running range, `None` where it comes from each tensor."""
    quantizer, state = layer.input_quantizer, layer._input_state
    fmt = get_format(quantizer.formats[0])
    if not fmt.is_scaled or "range" not in state:
        return None
    # A range that saw no data is taken from each tensor, as the layer does.
    if float(state["updates"]) == 0.0:
        return None
    nothing = np.zeros((1,), np.float32)
    return np.float32(quantizer.codes(nothing, False, state)[1])


def _exact_form(layer, slots):
    """A bit-exact layer in place of an ordinary one, or `None`."""
    if type(layer) is keras.layers.BatchNormalization:
        return exact_layers.Affine(layer, slots, name=layer.name)
    if getattr(layer, "data_format", None) != "channels_last":
        return None
    if type(layer) is keras.layers.GlobalAveragePooling2D:
        return exact_layers.Mean(layer.keepdims, slots, name=layer.name)
    if type(layer) is keras.layers.AveragePooling2D:
        return exact_layers.AveragePooling(layer, slots, name=layer.name)
    return None


def _clone(
    model: keras.Model,
    replacement: Callable,
    keywords: Callable[[SearchableLayer], Mapping] = lambda layer: {},
) -> keras.Model:
    """Clones in float32.

    Args:
        model: Functional or Sequential model.
        replacement: Layer -> layer to stand in its place, or `None`.
        keywords: Quantized layer -> what is to differ in its configuration.
    """

    def clone_layer(layer):
        stand_in = replacement(layer)
        if stand_in is not None:
            return stand_in
        config = layer.get_config()
        if isinstance(layer, SearchableLayer):
            config |= keywords(layer)
        # Operations such as `x + y` are no layers and have no policy.
        if getattr(layer, "compute_dtype", None) in _HALF:
            config["dtype"] = "float32"
        return type(layer).from_config(config)

    clone = keras.models.clone_model(
        model, clone_function=clone_layer, recursive=True
    )
    pairs = zip(walk(model), walk(clone), strict=True)
    for (_, source), (_, target) in pairs:
        if isinstance(target, SearchableLayer):
            _copy_by_name(source, target)
        elif type(source) is type(target):
            target.set_weights(source.get_weights())
    return clone


def _copy_by_name(source, target):
    """Copies weights; what only one of the layers has is left alone.

    Without an input quantizer a layer has fewer, and block formats learn no
    range.
    """
    values = {w.name: w for w in source.weights}
    for variable in target.weights:
        if variable.name in values:
            variable.assign(values[variable.name])
