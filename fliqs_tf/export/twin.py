"""Twins of a fixed model: the models that are converted or compared with.

A twin has the layers, names and weights of the fixed model, in float32, except
for what is named below. The fixed model itself is never changed.
"""

import functools
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from fliqs_tf.export import exact_layers
from fliqs_tf.export import rounding
from fliqs_tf.export.slots import Slots
from fliqs_tf.formats import get_format
from fliqs_tf.layers.base import SearchableLayer
from fliqs_tf.layers.base import graph_of
from fliqs_tf.layers.base import walk
from fliqs_tf.model_copy import copy_with

_HALF = ("float16", "bfloat16")
# Beyond every range, and finite when divided by its scale.
_HUGE = 1e30


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


def copy(model: keras.Model) -> keras.Model:
    """The same model once more, in its own precision."""
    return copy_with(model, lambda layer: False, lambda layer: layer)


def weight_only_reference(model: keras.Model) -> keras.Model:
    """The fixed model with its input quantizers switched off."""
    twin = _clone(model)
    for layer in fixed_layers(twin).values():
        layer.drop_input_quantizers()
    return twin


def container_reference(
    model: keras.Model, input_format: str, unrounded: Collection[str] = ()
) -> keras.Model:
    """The fixed model with every input in one format, and the learned ranges.

    Inputs that are not quantized stay so.

    Args:
        model: Fixed model.
        input_format: The format.
        unrounded: Paths of layers whose inputs are not to be rounded.
    """
    twin = _clone(model)
    for path, layer in fixed_layers(twin).items():
        if path in unrounded:
            layer.drop_input_quantizers()
        elif rounds_inputs(layer):
            layer.input_quantizer = _in_format(
                layer.input_quantizer, input_format
            )
            if hasattr(layer, "_state_quantizer"):
                layer._state_quantizer = _in_format(
                    layer._state_quantizer, input_format
                )
    return twin


def _in_format(quantizer, name):
    config = {**quantizer.get_config(), "formats": [name]}
    return type(quantizer).from_config(config)


def rounds_inputs(layer: SearchableLayer) -> bool:
    """Whether a fixed layer does something to its inputs."""
    quantizer = layer.input_quantizer
    return quantizer is not None and quantizer.formats != ("fp32",)


def learned_ranges(
    model: keras.Model,
) -> dict[tuple[str, str | None], tuple[float, float] | None]:
    """Path and name of a rounded tensor -> its running range `(low, high)`.

    Most layers round one, `"input"`. `low == -high` where the grid is
    symmetric. `None` where the range comes from each tensor; `(0, 0)` where it
    saw no data.
    """
    found: dict[tuple[str, str | None], tuple[float, float] | None] = {}
    for path, layer in fixed_layers(model).items():
        if rounds_inputs(layer):
            for name, state in layer._input_states.items():
                found[path, name] = _range(layer, name, state)
    return found


def _range(layer, name, state) -> tuple[float, float] | None:
    quantizer = layer.input_quantizer
    if name == "state" and layer._is_bounded:
        return -1.0, 1.0
    if "range" not in state:
        return None
    if not quantizer.is_calibrated(state):
        return 0.0, 0.0
    limits = np.asarray(state["range"], np.float64).ravel()
    high = float(limits[-1])
    # One number unless the grid may have a zero point.
    low = float(limits[0]) if len(limits) == 2 else -high
    return (0.0 if quantizer.signedness == "unsigned" else low), high


def float_twin(model: keras.Model) -> keras.Model:
    """Effective weights as plain constants, inputs not rounded."""
    twin = weight_only_reference(model)
    sources = fixed_layers(model)
    for path, layer in fixed_layers(twin).items():
        _make_constant(sources[path], layer)
    _unroll(twin)
    return twin


def marked_twin(
    model: keras.Model,
    input_quantizer: Callable[[str, SearchableLayer, Any], Any],
) -> keras.Model:
    """Effective weights as plain constants, activations rounded by others.

    Args:
        model: Fixed model.
        input_quantizer: Path, layer and quantizer -> what stands in for it,
            for activations that are rounded.
    """
    twin = _clone(model)
    sources = fixed_layers(model)
    for path, layer in fixed_layers(twin).items():
        left = layer.input_quantizer
        right = layer.kernel_quantizers.get("right")
        is_rounded = rounds_inputs(layer)
        layer.drop_input_quantizers()
        _make_constant(sources[path], layer)
        if is_rounded:
            layer.input_quantizer = input_quantizer(path, layer, left)
            if isinstance(layer, keras.layers.RNN):
                state = sources[path]._state_quantizer
                layer._round_state = functools.partial(
                    input_quantizer(path, layer, state),
                    training=False,
                    weights=_state_range(sources[path]),
                )
        # Products of activations have one for either side.
        if right is not None and right.formats != ("fp32",):
            right = input_quantizer(path, layer, right)
            layer.kernel_quantizers = {"right": right}
    _unroll(twin)
    return twin


def fake_quant_twin(model: keras.Model, slots: Slots) -> keras.Model:
    """The training arithmetic, in operators that LiteRT runs.

    Quantized layers keep their `call` and get the quantizers of `rounding.py`;
    batch norm and average pooling become the layers of `exact_layers.py`.
    """
    twin = _clone(
        model,
        {
            id(layer): form
            for layer in _graph_layers(model)
            if (form := _exact_form(layer, slots)) is not None
        },
    )
    sources = fixed_layers(model)
    for path, layer in fixed_layers(twin).items():
        _substitute_quantizers(sources[path], layer, slots)
    _unroll(twin)
    return twin


def _unroll(model) -> None:
    """Recurrent layers as one step after another, which LiteRT can run.

    Its loops have no lists of tensors with an open batch.
    """
    paths = {id(layer): path for path, layer in walk(model)}
    # Those made of a cell of one's own are nothing that has a path.
    for layer in model._flatten_layers():
        # Steps that the model itself takes stay what they are.
        if not isinstance(layer, keras.layers.RNN) or layer.unroll:
            continue
        shapes = keras.tree.flatten_with_path(layer.get_build_config())
        if any(size is None for (*_, place), size in shapes if place == 1):
            raise ValueError(
                "Recurrent layers must have a fixed number of steps. "
                f"Received: {type(layer).__name__} "
                f"{paths.get(id(layer), layer.name)!r}, whose input "
                "leaves it open. Build the model with "
                "`keras.Input((steps, features))`."
            )
        if layer.go_backwards and layer.zero_output_for_mask:
            _reverse_beforehand(layer)
        layer.unroll = True


def _reverse_beforehand(layer) -> None:
    """Lets a layer go forwards through what is reversed, if it is masked.

    Going backwards, steps of Keras 3.15 lay the mask as it is over the outputs
    of masked steps, which are reversed; its loops do not.
    """
    inner_loop = layer.inner_loop

    def reversing(sequences, initial_state, mask, training=False):
        if mask is None:
            return inner_loop(sequences, initial_state, mask, training)
        sequences, mask = (keras.ops.flip(x, axis=1) for x in (sequences, mask))
        layer.go_backwards = False
        outputs = inner_loop(sequences, initial_state, mask, training)
        layer.go_backwards = True
        return outputs

    layer.inner_loop = reversing


def float32_reference(model: keras.Model) -> keras.Model:
    """The model itself, or a float32 clone if it computes in less."""
    if all(layer.compute_dtype == "float32" for _, layer in walk(model)):
        return model
    return _clone(model)


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
    for name in source.kernels:
        codes, scale = normalized_codes(source, name)
        ones = np.ones_like(scale)
        layer.kernel_quantizers[name] = rounding.ConstantKernel(
            codes * scale, ones
        )


def _substitute_quantizers(source, layer, slots):
    """Gives `layer`, a clone of `source`, quantizers that can be converted."""
    if not source.kernels:
        _substitute_operands(source, layer, slots)
        return
    is_recurrent = isinstance(layer, keras.layers.RNN)
    fmt = get_format(source.formats[0])
    step = np.float32(rounding.step_of(fmt))
    roundings = []
    for operand in source.operands_of(source):
        codes, scale = normalized_codes(source, operand.kernel)
        if fmt.is_integer:
            codes, scale = codes / step, scale * step
        if rounds_inputs(source) and operand.inputs:
            grid = _grid(source, operand.inputs)
            name = source.input_quantizer.formats[0]
            inputs = rounding.InputRounding(get_format(name), grid, slots)
            state = layer._input_states[operand.inputs]
            roundings.append((state, inputs))
            # Recurrent layers scale both operands back themselves.
            if grid is not None and not is_recurrent:
                scale = scale * inputs.unit(grid)
        layer.kernel_quantizers[operand.kernel] = rounding.ConstantKernel(
            codes, scale, None if is_recurrent else slots
        )
    layer.input_quantizer = None
    if roundings:
        layer.input_quantizer = rounding.OperandRounding(roundings)
    if is_recurrent:
        layer._round_state = lambda state: state
        if roundings:
            _, round_state = roundings[-1]
            layer._round_state = lambda state: round_state(state, False, {})


def _substitute_operands(source, layer, slots):
    """The same for a product of activations, both of which are rounded."""
    layer.drop_input_quantizers()
    for (quantizer, state), place in zip(
        source.input_ranges()[::-1], ("right", "left"), strict=False
    ):
        if quantizer.formats == ("fp32",):
            continue
        stand_in = rounding.InputRounding(
            get_format(quantizer.formats[0]),
            _running_grid(source, quantizer, state),
            slots,
            returns_scale=True,
        )
        if place == "right":
            layer.kernel_quantizers = {place: stand_in}
        else:
            layer.input_quantizer = stand_in


def _grid(layer, name) -> rounding.Grid | None:
    """Grid of a running range, `None` where it comes from each tensor."""
    quantizer, state = layer.input_quantizer, layer._input_states[name]
    if name == "state":
        if not layer._is_bounded:
            return None
        state = _state_range(layer)
        return _running_grid(layer, layer._state_quantizer, state)
    return _running_grid(layer, quantizer, state)


def _state_range(layer) -> dict[str, Any]:
    """What the quantizer of a recurrent layer's state is called with."""
    if not layer._is_bounded:
        return layer._input_states["state"]
    one = np.ones((), np.float32)
    return {**layer._input_states["state"], "range": one, "updates": one}


def _running_grid(layer, quantizer, state) -> rounding.Grid | None:
    fmt = get_format(quantizer.formats[0])
    if not fmt.is_scaled:
        return None
    # A range that saw no data is taken from each tensor, as the layer does.
    if "range" not in state or float(state["updates"]) == 0.0:
        if quantizer.signedness != "symmetric":
            raise ValueError(
                "`activations='fake_quant'` takes ranges of each tensor for "
                "symmetric grids only. Received: signedness="
                f"{quantizer.signedness!r} in layer {layer.name!r}. Convert "
                "with another `input_range`, or use another mode."
            )
        return None
    ends = np.array([-_HUGE, _HUGE], np.float32)
    codes, scale = quantizer.codes(ends, False, state)
    low, high = (float(code) for code in np.asarray(codes))
    smallest, steps = (float(value) for value in quantizer.row()[:2])
    return rounding.Grid(np.float32(scale), smallest / steps, low, high)


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


def _graph_layers(model):
    """Yields the layers of a graph and of the graphs in it."""
    for layer in model.layers:
        if graph_of(layer) is None:
            yield layer
        else:
            yield from _graph_layers(layer)


def _clone(
    model: keras.Model,
    stand_ins: Mapping[int, keras.layers.Layer] | None = None,
) -> keras.Model:
    """Copies a model, in float32.

    Args:
        model: Functional or Sequential model.
        stand_ins: `id` of a layer -> layer to stand in its place.
    """
    known = stand_ins or {}
    clone = copy_with(
        model, lambda layer: id(layer) in known, lambda layer: known[id(layer)]
    )
    for layer in clone._flatten_layers():
        if layer is not clone:
            _compute_in_float32(layer)
    return clone


def _compute_in_float32(layer):
    """Changes a layer that computes in less; not the layers in it."""
    if layer.compute_dtype in _HALF:
        layer.dtype_policy = "float32"
    graph = graph_of(layer)
    # A model that was built on what such a layer computed casts to that.
    for tensor in [] if graph is None else graph.inputs:
        if tensor.dtype in _HALF:
            tensor._dtype = "float32"
            tensor._keras_history.operation._dtype = "float32"
