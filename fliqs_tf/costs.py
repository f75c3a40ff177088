"""What a model costs when its layers have given formats.

A `Cost` is a sum over layers of a number that depends on the layer's weight
format and input format only, so that a search needs one small table a layer.
A `PeakCost` is the largest of several such sums.
"""

import dataclasses
import re
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np

from fliqs_tf import cost_tables
from fliqs_tf import memory
from fliqs_tf.assignment import Assignment
from fliqs_tf.convert import check_assignment
from fliqs_tf.formats import get_format
from fliqs_tf.profiles import LayerProfile
from fliqs_tf.profiles import profile

# An input that is not quantized is charged as what it is.
_UNQUANTIZED = "fp32"
_RATIO = re.compile(r"(\d*\.?\d+)\s*x\s*(\w+)")
_PER_CENT = re.compile(r"(\d*\.?\d+)\s*%")
_FLOAT = "fp32"
_TABLE = "table:"
# Integers or indices, then floats: see `fliqs_tf.export.containers`.
_CONTAINER_BITS = (2, 4, 8, 16, 32)


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
        model, assignment = _checked(model, assignment)
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


@dataclasses.dataclass(frozen=True)
class PeakCost:
    """Peak activation memory: a maximum of sums, see `fliqs_tf.memory`.

    Args:
        name: Name, as `get` takes it.
        unit: Unit of the numbers it returns.
        per_unit: Bytes in one unit.
    """

    name: str
    unit: str
    per_unit: float

    def __call__(self, model: keras.Model, assignment: str | Mapping) -> float:
        """Returns the cost in `unit`; see `Cost`."""
        model, assignment = _checked(model, assignment)
        return max(
            sum(
                self.tensor_cost(
                    elements,
                    None if path is None else assignment.formats(path)[1],
                )
                for elements, path in tensors
            )
            for tensors in self.sums(model)
        )

    def sums(self, model: keras.Model) -> list[list[tuple[int, str | None]]]:
        """The sums whose largest is the cost.

        Returns:
            For each of them, the elements of its tensors and the path of the
            layer whose input format they have, `None` for 32 bits.
        """
        return [
            tensors
            for live in memory.live_tensors(model)
            for tensors in memory.widest_choices(live)
        ]

    def tensor_cost(self, elements: int, inputs: str | None) -> float:
        """Cost of a tensor of a format in `unit`."""
        bits = get_format(inputs or _UNQUANTIZED).bits
        return elements * bits / 8 / self.per_unit


AnyCost = Cost | PeakCost


def _checked(model, assignment) -> tuple[keras.Model, Assignment]:
    model = getattr(model, "searchable_model", model)
    if isinstance(assignment, str):
        assignment = Assignment.uniform(model, assignment)
    elif not isinstance(assignment, Assignment):
        assignment = Assignment(assignment)
    check_assignment(model, assignment)
    return model, assignment


def _bitops(layer, weight, inputs):
    """`MACs * bits_weight * bits_input` (FLIQS; its figures' GBOPs)."""
    bits = get_format(inputs or _UNQUANTIZED).bits
    return layer.macs * get_format(weight).bits * bits


def _size(layer, weight, inputs):
    """Bytes of packed weights, float32 scales and float32 biases.

    What a file of exactly these widths would hold of the layer. Batch norm is
    folded into convolutions: each channel then has a scale and a bias, whatever
    the layer had. Left out are
    what does not depend on formats (layers that are not searched, norms that
    are not folded, the file's own structure) and the wider containers of
    formats that LiteRT has no type for, which the export's report lists.
    """
    del inputs
    return _bytes(layer, get_format(weight), get_format(weight).storage_bits)


def _file_size(layer, weight, inputs):
    """As `_size`, at the widths of types that a `.tflite` file can have.

    5 to 7 bits take 8 there, and codes whose scale varies within a channel are
    stored multiplied by it, in float32: what a flash memory must hold.
    """
    del inputs
    fmt = get_format(weight)
    if layer.has_groups and _has_scales(fmt):
        fmt = get_format(_FLOAT)
    container = next(bits for bits in _CONTAINER_BITS if fmt.bits <= bits)
    # The scales of blocks are stored as they are.
    return _bytes(layer, fmt, container + fmt.storage_bits - fmt.bits)


def _bytes(layer, fmt, bits):
    biases, scales = layer.biases, layer.scales
    if "Conv" in layer.kind:
        biases = max(biases, layer.channels)
        scales = max(scales, layer.channels)
    if not _has_scales(fmt):
        scales = 0
    return layer.weights * bits / 8 + 4 * (scales + biases)


def _has_scales(fmt) -> bool:
    """Whether scales come on top: a block format has them in its width."""
    return fmt.is_scaled and not fmt.block_size


_COSTS: dict[str, AnyCost] = {
    "bitops": Cost("bitops", "GBOPs", _bitops, 1e9),
    "size": Cost("size", "MiB", _size, 2.0**20),
    "file_size": Cost("file_size", "MiB", _file_size, 2.0**20),
    "memory": PeakCost("memory", "KiB", 2.0**10),
}
NAMES = tuple(_COSTS)


def get(name: str | AnyCost) -> AnyCost:
    """Returns the cost of a name.

    Args:
        name: `"bitops"` (GBOPs), `"size"` (MiB of packed weights),
            `"file_size"` (MiB in the types that LiteRT has), `"memory"` (KiB
            of activations at the peak), or `"table:<file.json>"` for the
            numbers of a file, see `fliqs_tf.cost_tables`. Shipped are
            `"table:energy_45nm.json"` (with the traffic of memory),
            `"table:mac_power_28nm.json"` and `"table:mac_area_28nm.json"`.
            Or the name of a cost of your own, see `register`; or a cost.

    Raises:
        ValueError: If there is none, or the file is no such table.
    """
    if isinstance(name, Cost | PeakCost):
        return name
    if isinstance(name, str) and name.startswith(_TABLE):
        table = cost_tables.read(name.removeprefix(_TABLE))
        return Cost(name, table.unit, table.cost, table.per_unit)
    if not isinstance(name, str) or name not in _COSTS:
        raise ValueError(
            f"`cost` must be one of {', '.join(_COSTS)}, table:<file.json> or "
            f"a `fliqs.costs.Cost`. Received: cost={name!r}. Register one of "
            "your own (`fliqs.costs.register`) before loading what has it."
        )
    return _COSTS[name]


def register(cost: Cost) -> Cost:
    """Gives a cost of your own a name that `get` takes.

    A search is saved with the name of its cost: whoever loads one must have
    registered it before.

    Example:
    >>> cycles = fliqs.costs.register(fliqs.costs.Cost(
    ...     "cycles", "kcycles", layer=lambda profile, weight, inputs:
    ...     profile.macs * fliqs.get_format(weight).bits / 8, per_unit=1e3))
    >>> search = fliqs.SearchModel(model, "int_l", cost="cycles")

    Returns:
        The cost.

    Raises:
        ValueError: If the name is taken.
    """
    if cost.name in _COSTS or cost.name.startswith(_TABLE):
        raise ValueError(
            "A cost needs a new name, and none that starts with 'table:'. "
            f"Received: {cost.name!r}; taken are {', '.join(_COSTS)}."
        )
    _COSTS[cost.name] = cost
    return cost


def target(
    cost: AnyCost,
    model: keras.Model,
    value: float | str,
    name: str = "cost_target",
) -> float:
    """Reads a cost target as people say it.

    Args:
        cost: The cost that is bounded.
        model: The model.
        value: A number in the cost's unit, a multiple of the cost of a uniform
            format, such as `"1.25xint4"`, or a per cent of the float32 model's
            cost, such as `"10%"`.
        name: Name of the argument, for the error.

    Returns:
        The target in the cost's unit.

    Raises:
        ValueError: If the value is of another form or not positive.
    """
    text = str(value).strip()
    if match := _RATIO.fullmatch(text):
        number = float(match[1]) * cost(model, match[2])
    elif match := _PER_CENT.fullmatch(text):
        number = float(match[1]) / 100 * cost(model, _FLOAT)
    else:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
    if not (np.isfinite(number) and number > 0):
        raise ValueError(
            f"`{name}` must be a positive number of {cost.unit}, a multiple of "
            "a uniform format's cost such as '1.25xint4', or a per cent of the "
            f"float32 model's such as '10%'. Received: {name}={value!r}."
        )
    return number


def parse_bounds(text: str) -> dict[str | AnyCost, float | str]:
    """Reads bounds as a flag gives them.

    Args:
        text: `"size:0.05,memory:50%"`: costs and targets (see `target`).

    Returns:
        Name of the cost -> target.

    Raises:
        ValueError: If it is of another form, or a cost stands twice.
    """
    bounds: dict[str | AnyCost, float | str] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        # The name of a table has a colon too.
        name, _, value = item.rpartition(":")
        if not name or not value or name in bounds:
            raise ValueError(
                "`bounds` must be costs and their targets, each cost once, "
                f"such as 'size:0.05,memory:50%'. Received: bounds={text!r}."
            )
        bounds[name] = value
    return bounds
