"""What a model costs when its layers have given formats.

A cost is a sum over layers of a number that depends on the layer's weight
format and input format only, so that a search needs one small table a layer.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np

from fliqs_tf.assignment import Assignment
from fliqs_tf.convert import check_assignment
from fliqs_tf.formats import get_format
from fliqs_tf.layers.base import SearchableLayer
from fliqs_tf.layers.base import graph_of
from fliqs_tf.layers.base import searchable_form
from fliqs_tf.layers.base import searchable_layers

# An input that is not quantized is charged as what it is.
_UNQUANTIZED = "fp32"
_RATIO = re.compile(r"(\d*\.?\d+)\s*x\s*(\w+)")


@dataclasses.dataclass(frozen=True)
class LayerProfile:
    """The numbers of a layer that its cost depends on.

    Args:
        path: Path of the layer.
        kind: Class name of the Keras layer.
        macs: Multiply-accumulates of one sample, over all calls.
        weights: Elements of the kernel.
        scales: Scales of the kernel.
        biases: Elements of the bias.
    """

    path: str
    kind: str
    macs: int
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
    calls = _calls(model)
    return {
        path: _profile_layer(path, layer, calls[id(layer)])
        for path, layer in (made or layers).items()
    }


def _profile_layer(path, layer, input_shapes):
    form = searchable_form(layer)
    macs = 0
    for shape in input_shapes:
        if None in shape[1:]:
            raise ValueError(
                "MACs need inputs of known size. Received: layer "
                f"{path!r} with input shape {shape}. Build the model with a "
                "fixed input shape."
            )
        macs += form.macs(layer, shape)
    axes = form.kernel_scale_axis
    axes = (axes,) if isinstance(axes, int) else axes
    kernel, bias = layer.kernel.shape, layer.bias
    return LayerProfile(
        path,
        next(c.__name__ for c in type(layer).__mro__ if _is_keras(c)),
        macs,
        weights=int(np.prod(kernel)),
        scales=int(np.prod([kernel[axis] for axis in axes])),
        biases=0 if bias is None else int(np.prod(bias.shape)),
    )


def _is_keras(cls):
    return cls.__module__.startswith("keras.")


def _calls(model):
    """Input shapes of every call of every layer, by the layer's id."""
    calls: dict[int, list[tuple]] = {}
    for node in itertools.chain(*graph_of(model)._nodes_by_depth.values()):
        operation = node.operation
        if isinstance(operation, keras.Model):
            for key, shapes in _calls(operation).items():
                calls.setdefault(key, []).extend(shapes)
        elif node.input_tensors:
            shape = tuple(node.input_tensors[0].shape)
            calls.setdefault(id(operation), []).append(shape)
    return calls


@dataclasses.dataclass(frozen=True)
class Cost:
    """A cost of a model: `sum over layers of layer(profile, w, i) / per_unit`.

    Args:
        name: Name, as `get` takes it.
        unit: Unit of the numbers it returns.
        layer: `(LayerProfile, weight format, input format) -> number`, with
            `None` for inputs that are not quantized.
        per_unit: How many of the layer's numbers make one unit.
    """

    name: str
    unit: str
    layer: Callable[[LayerProfile, str, str | None], float]
    per_unit: float

    def __call__(self, model: keras.Model, assignment: str | Mapping) -> float:
        """Returns the cost in `unit`.

        Args:
            model: Plain, searchable or fixed model, or a `SearchModel`.
            assignment: Format name (all layers) or assignment.

        Raises:
            ValueError: If the assignment does not fit the model.
        """
        model = getattr(model, "searchable_model", model)
        if isinstance(assignment, str):
            assignment = Assignment.uniform(model, assignment)
        elif not isinstance(assignment, Assignment):
            assignment = Assignment(assignment)
        check_assignment(model, assignment)
        profiles = profile(model)
        return sum(
            self.layer_cost(profiles[path], *assignment.formats(path))
            for path in profiles
        )

    def layer_cost(
        self, layer: LayerProfile, weight: str, inputs: str | None
    ) -> float:
        """Cost of one layer in `unit`."""
        return self.layer(layer, weight, inputs) / self.per_unit

    def table(
        self,
        layer: LayerProfile,
        weights: Sequence[str],
        inputs: Sequence[str | None],
    ) -> np.ndarray:
        """Costs of a layer under options: float64 `(weights, inputs)`."""
        return np.array(
            [[self.layer_cost(layer, w, i) for i in inputs] for w in weights]
        )


def _bitops(layer, weight, inputs):
    """`MACs * bits_weight * bits_input` (FLIQS; its figures' GBOPs)."""
    bits = get_format(inputs or _UNQUANTIZED).bits
    return layer.macs * get_format(weight).bits * bits


def _size(layer, weight, inputs):
    """Bytes of packed weights, float32 scales and float32 biases."""
    del inputs
    fmt = get_format(weight)
    scales = layer.scales if fmt.is_scaled else 0
    return layer.weights * fmt.bits / 8 + 4 * (scales + layer.biases)


_COSTS = {
    "bitops": Cost("bitops", "GBOPs", _bitops, 1e9),
    "size": Cost("size", "MiB", _size, 2.0**20),
}
NAMES = tuple(_COSTS)


def get(name: str | Cost) -> Cost:
    """Returns the cost of a name: `"bitops"` (GBOPs) or `"size"` (MiB).

    Raises:
        ValueError: If there is none.
    """
    if isinstance(name, Cost):
        return name
    if name not in _COSTS:
        raise ValueError(
            f"`cost` must be one of {', '.join(NAMES)}. Received: "
            f"cost={name!r}."
        )
    return _COSTS[name]


def target(cost: Cost, model: keras.Model, value: float | str) -> float:
    """Reads a cost target as people say it.

    Args:
        cost: The cost that is bounded.
        model: The model.
        value: A number in the cost's unit, or a multiple of the cost of a
            uniform format, such as `"1.25xint4"`.

    Returns:
        The target in the cost's unit.

    Raises:
        ValueError: If the value is of another form or not positive.
    """
    match = _RATIO.fullmatch(str(value).strip())
    if match:
        number = float(match[1]) * cost(model, match[2])
    else:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
    if not (np.isfinite(number) and number > 0):
        raise ValueError(
            f"`cost_target` must be a positive number of {cost.unit}, or a "
            "multiple of a uniform format's cost such as '1.25xint4'. "
            f"Received: cost_target={value!r}."
        )
    return number
