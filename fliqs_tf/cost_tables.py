"""Tables of hardware costs: numbers that somebody measured or published.

A table is a JSON file:

    {"version": 1,
     "unit": "uJ",            of the costs of a whole model
     "per_unit": 1e6,         how many of the numbers below make one unit
     "source": "...",         where the numbers come from
     "mac": {"int8": {"int8": 0.2, "int16": 0.4}, "int4": {...}},
     "weight_byte": 1.3,
     "input_byte": 1.3,
     "layers": {"stem": {"macs": 36864, "costs": {"int8": {"int8": 21.5}}}}}

`mac` is the cost of one multiply-accumulate by the format of the weight, then
that of the input (`"fp32"` for inputs that are not quantized). `weight_byte`
and `input_byte` are the costs of moving one byte of packed weights and of
inputs once an inference; an output is charged where it is read, as an input.
Of a table of embeddings the rows that are looked up move, and the indices have
32 bits; both inputs of a product of activations move as inputs, the right one
in the layer's weight format.
All three are added, those left out are 0:

    layer(w, i) = MACs * mac[w][i] + bytes(w) * weight_byte
                  + bytes(i) * input_byte

`layers` are costs of whole layers, measured for one network; they take the
place of that sum. A pair of formats that a table lacks is an error: a guess
would look like a measurement.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from fliqs_tf.files import read_json
from fliqs_tf.formats import get_format

VERSION = 1
SHIPPED = pathlib.Path(__file__).parent / "tables"
UNQUANTIZED = "fp32"

_KEYS = {
    "version",
    "unit",
    "per_unit",
    "source",
    "mac",
    "weight_byte",
    "input_byte",
    "layers",
}

_INDEX_BITS = 32

# Weight format -> input format -> number.
_Pairs = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class CostTable:
    """A table as it was read.

    Args:
        path: The file.
        unit: Unit of the costs of a model.
        per_unit: How many of the table's numbers make one unit.
        source: Where the numbers come from.
        mac: Weight format -> input format -> cost of a multiply-accumulate.
        weight_byte: Cost of a byte of packed weights.
        input_byte: Cost of a byte of inputs.
        layers: Path -> (MACs, costs as in `mac`) of measured layers; empty if
            the table is not one of measured layers.
    """

    path: str
    unit: str
    per_unit: float
    source: str
    mac: _Pairs
    weight_byte: float
    input_byte: float
    layers: dict[str, tuple[int, _Pairs]]

    def cost(self, layer: Any, weight: str, inputs: str | None) -> float:
        """Returns the cost of a layer, in the table's own numbers.

        Args:
            layer: Its `LayerProfile`.
            weight: Format of its weights.
            inputs: Format of its inputs, `None` for not quantized.

        Raises:
            ValueError: If the table lacks the layer or the pair of formats.
        """
        weight = get_format(weight).name
        inputs = get_format(inputs or UNQUANTIZED).name
        if self.layers:
            return self._look_up(self._measured(layer), weight, inputs)
        weight_bits = get_format(weight).bits
        traffic = layer.weights_read * weight_bits * self.weight_byte
        input_bits = (
            layer.inputs * get_format(inputs).bits
            + layer.right_inputs * weight_bits
            + layer.indices * _INDEX_BITS
        )
        traffic += input_bits * self.input_byte
        if not self.mac:
            return traffic / 8
        pair = self._look_up(self.mac, weight, inputs)
        return layer.macs * pair + traffic / 8

    def _measured(self, layer) -> _Pairs:
        macs, costs = self.layers.get(layer.path, (None, {}))
        if macs != layer.macs:
            raise ValueError(
                "A table of measured layers must be of the very network. "
                f"Received: {self.path}, which has "
                + ("no layer" if macs is None else f"{macs} MACs for")
                + f" {layer.path!r} (of {layer.macs} MACs). Measure this "
                "network: python -m fliqs_tf.bin.latency."
            )
        return costs

    def _look_up(self, pairs, weight, inputs):
        found = pairs.get(weight, {}).get(inputs)
        if found is None:
            known = ", ".join(f"{w}-{i}" for w in pairs for i in pairs[w])
            raise ValueError(
                "The table must have every pair of weight and input formats "
                f"that is asked for. Received: {weight}-{inputs}, missing in "
                f"{self.path} (which has {known}). Add it, or search over the "
                "formats that the table has."
            )
        return found


def read(path: str | os.PathLike) -> CostTable:
    """Reads a table.

    Args:
        path: The file, or the bare name of one that is shipped, such as
            `mac_power_28nm.json`.

    Raises:
        ValueError: If there is no such file or it is not of the form above.
    """
    file = pathlib.Path(path)
    if not file.exists() and file.name == str(path):
        file = SHIPPED / file.name
    try:
        data = read_json(file)
    except (OSError, ValueError) as error:
        shipped = ", ".join(sorted(f.name for f in SHIPPED.glob("*.json")))
        raise ValueError(
            "A cost table must be a JSON file that can be read. Received: "
            f"table:{path} ({error}). Shipped tables: {shipped}."
        ) from error
    try:
        return _parse(str(file), data)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "A cost table must be of the form that `fliqs_tf.cost_tables` "
            f"describes. Received: {file}: {type(error).__name__}: {error}."
        ) from error


def _parse(path: str, data: Mapping) -> CostTable:
    if data["version"] != VERSION:
        raise ValueError(f"version must be {VERSION}, not {data['version']!r}")
    unknown = sorted(set(data) - _KEYS)
    if unknown:
        raise ValueError(f"unknown keys {unknown}")
    table = CostTable(
        path=path,
        unit=str(data["unit"]),
        per_unit=_number(data.get("per_unit", 1.0)),
        source=str(data.get("source", "")),
        mac=_pairs(data.get("mac", {})),
        weight_byte=_number(data.get("weight_byte", 0.0)),
        input_byte=_number(data.get("input_byte", 0.0)),
        layers={
            layer: (int(entry["macs"]), _pairs(entry["costs"]))
            for layer, entry in data.get("layers", {}).items()
        },
    )
    if not table.per_unit:
        raise ValueError("per_unit must be positive")
    if bool(table.layers) == bool(
        table.mac or table.weight_byte or table.input_byte
    ):
        raise ValueError(
            "either `layers`, or some of `mac`, `weight_byte` and `input_byte`"
        )
    return table


def _pairs(data: Mapping) -> _Pairs:
    return {
        get_format(weight).name: {
            get_format(inputs).name: _number(value)
            for inputs, value in row.items()
        }
        for weight, row in data.items()
    }


def _number(value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, not {value!r}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"costs must be finite and at least 0, not {value}")
    return float(value)
