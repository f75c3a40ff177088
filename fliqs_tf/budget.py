"""Costs as tables over decisions: the price of a sample, and what fits."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from fliqs_tf import costs
from fliqs_tf.costs import AnyCost
from fliqs_tf.costs import Cost
from fliqs_tf.costs import LayerProfile
from fliqs_tf.costs import PeakCost
from fliqs_tf.costs import profile
from fliqs_tf.formats import get_format
from fliqs_tf.integer_program import SLACK
from fliqs_tf.integer_program import Program
from fliqs_tf.integer_program import Term
from fliqs_tf.integer_program import cost_of
from fliqs_tf.space import Decision

# Share of a target that is to be met, and not only kept, that a cost has to
# reach.
USED = 0.98


def cost_terms(
    cost: AnyCost,
    model: keras.Model,
    decisions: Sequence[Decision],
) -> list[Term]:
    """Builds the terms of a cost of a searchable model."""
    if isinstance(cost, PeakCost):
        return peak_terms(cost, model, decisions)
    return layer_terms(cost, profile(model), decisions)


def layer_terms(
    cost: Cost,
    profiles: Mapping[str, LayerProfile],
    decisions: Sequence[Decision],
) -> list[Term]:
    """Builds the terms of layers from their decisions (path and kind)."""
    numbers = {
        (path, d.kind): i for i, d in enumerate(decisions) for path in d.layers
    }
    terms = []
    for path, layer in profiles.items():
        weight = numbers.get((path, "format"))
        if weight is None:
            weight = numbers[path, "weight_format"]
            inputs = numbers.get((path, "input_format"))
            options = decisions[weight].options
            if inputs is None:
                column = cost.table(layer, options, [None])
                table = np.repeat(column, len(options), axis=1)
                inputs = weight
            else:
                table = cost.table(layer, options, decisions[inputs].options)
        else:
            inputs = weight
            # Tied: a cost need not know of other pairs.
            options = decisions[weight].options
            table = np.diag([cost.layer_cost(layer, f, f) for f in options])
        terms.append(Term(path, weight, inputs, table))
    return terms


def peak_terms(
    cost: PeakCost, model: keras.Model, decisions: Sequence[Decision]
) -> list[Term]:
    """Builds the terms of a largest sum; they depend on inputs only."""
    numbers = {
        path: i
        for i, d in enumerate(decisions)
        for path in d.layers
        if d.kind != "weight_format"
    }
    terms = []
    for group, tensors in enumerate(cost.sums(model)):
        for elements, path in tensors:
            decision = None if path is None else numbers.get(path)
            if decision is None:
                # No decision changes it: a constant under any of them.
                size = len(decisions[0].options)
                row = np.full(size, cost.tensor_cost(elements, None))
                decision = 0
            else:
                options = decisions[decision].options
                row = np.array([cost.tensor_cost(elements, f) for f in options])
            table = np.repeat(row[:, None], len(row), axis=1)
            terms.append(Term(path or "", decision, decision, table, group))
    return terms


@dataclasses.dataclass(frozen=True)
class Bound:
    """Another cost that must not exceed a target either.

    Args:
        cost: The cost.
        terms: Its terms.
        target: Largest cost allowed, in the cost's unit.
    """

    cost: AnyCost
    terms: Sequence[Term]
    target: float


class Budget:
    """A cost that must not exceed a target, perhaps with others.

    Args:
        cost: The cost.
        terms: Its terms.
        decisions: The decisions that the terms number.
        target: Largest cost allowed, in the cost's unit; `None` for the
            largest that the space can reach.
        bounds: Further costs that the result has to keep.

    Attributes:
        lowest: The least that the cost can be within the bounds.
        highest: The most that it can be within them.
        lowest_bounds: The least that each bounded cost can be.
        is_option: Boolean `(decisions, options)`, false where padded to the
            largest number of options.

    Raises:
        ValueError: If no assignment fits, or all of them are below the target.
    """

    def __init__(
        self,
        cost: AnyCost,
        terms: Sequence[Term],
        decisions: Sequence[Decision],
        target: float | None,
        bounds: Sequence[Bound] = (),
    ):
        self.cost = cost
        self.terms = tuple(terms)
        self._decisions = tuple(decisions)
        self.bounds = tuple(bounds)
        self._sizes = [len(d.options) for d in decisions]
        size = max(self._sizes)
        self.is_option = np.arange(size) < np.array(self._sizes)[:, None]
        self._tables = np.zeros((len(self.terms), size, size))
        for table, term in zip(self._tables, self.terms, strict=True):
            rows, columns = term.table.shape
            table[:rows, :columns] = term.table
        self._weight = np.array([t.weight for t in self.terms])
        self._inputs = np.array([t.inputs for t in self.terms])
        self._groups = np.array([t.group for t in self.terms], np.int32)
        self._program = Program(
            self._sizes, [self.terms, *(bound.terms for bound in bounds)]
        )
        lowest_bounds = []
        for number, bound in enumerate(bounds, start=1):
            lowest = self._program.lowest(number, {})
            lowest_bounds.append(lowest)
            if not _fits(lowest, bound.target):
                raise ValueError(
                    f"The bound of {bound.cost.name!r} must be at least "
                    f"{lowest:.10g} {bound.cost.unit}, that of the cheapest "
                    f"assignment of the space. Received: {bound.target:.6g} "
                    f"{bound.cost.unit}. Raise it, or choose another space."
                )
        limits = {
            number: bound.target for number, bound in enumerate(bounds, start=1)
        }
        lowest = self._program.lowest(0, limits)
        if lowest is None:
            raise ValueError(
                "The bounds must allow some assignment together. Received: "
                + ", ".join(
                    f"{b.cost.name} {b.target:.6g} {b.cost.unit}"
                    for b in bounds
                )
                + ", each of which can be kept, but not all. Raise one."
            )
        self.lowest = lowest
        self.lowest_bounds = tuple(lowest_bounds)
        self.highest = self._program.highest(0, limits)
        self.target = self.highest if target is None else target
        self._limits = {0: self.target, **limits}
        # A target that only the bounds keep from being reached is no mistake.
        top = self._program.highest(0, {}) if bounds else self.highest
        if not _fits(self.lowest, self.target) or not _fits(self.target, top):
            within = ", within the bounds" if bounds else ""
            raise ValueError(
                f"The cost target must lie between {self.lowest:.10g} and "
                f"{top:.10g} {cost.unit}, the cheapest and the dearest "
                f"assignment of the space{within}. Received: "
                f"{self.target:.6g} {cost.unit}. Choose a target between them, "
                "or another space."
            )

    def of(self, sample: np.ndarray) -> float:
        """Cost of a sample, `(decisions,)` option numbers, in plain Python."""
        return cost_of(self.terms, np.asarray(sample))

    def broken(self, sample: np.ndarray) -> list[str]:
        """Says which costs of a sample exceed what they may be, and by what."""
        found = []
        for part in (Bound(self.cost, self.terms, self.target), *self.bounds):
            value = cost_of(part.terms, np.asarray(sample))
            if not _fits(value, part.target):
                found.append(
                    f"{part.cost.name} {value:.6g} {part.cost.unit}, of "
                    f"{part.target:.6g} allowed"
                )
        return found

    def of_tensor(self, sample):
        """Costs of samples, int32 `(..., decisions)`, as float32 `(...)`."""
        size = self._tables.shape[-1]
        flat = ops.convert_to_tensor(self._tables.reshape(-1), "float32")
        index = np.arange(len(self.terms), dtype="int32") * size * size
        index = (
            ops.take(sample, self._weight, axis=-1) * size
            + ops.take(sample, self._inputs, axis=-1)
            + index
        )
        values = ops.take(flat, index)
        if self.is_sum:
            return ops.sum(values, axis=-1)
        sums = ops.segment_sum(
            ops.moveaxis(values, -1, 0),
            self._groups,
            num_segments=int(self._groups.max()) + 1,
        )
        return ops.max(sums, axis=0)

    def expected_ratios(self, probabilities: np.ndarray) -> np.ndarray:
        """What each option is expected to cost, the other decisions drawn.

        For costs that are a sum. The gradient of `E[C] / C_target` in the
        probabilities of independent decisions.

        Args:
            probabilities: `(decisions, options)`, padded to the largest number
                of options.

        Returns:
            float64 `(decisions, options)`, in units of the target.
        """
        size = probabilities.shape[1]
        result = np.zeros((len(self._sizes), size))
        # One decision on both has one option on both.
        is_tied = (self._weight == self._inputs)[:, None]
        tables = self._tables / self.target
        own = np.diagonal(tables, axis1=1, axis2=2)
        rows = np.einsum("twi,ti->tw", tables, probabilities[self._inputs])
        columns = np.einsum("twi,tw->ti", tables, probabilities[self._weight])
        np.add.at(result, self._weight, np.where(is_tied, own, rows))
        np.add.at(result, self._inputs, np.where(is_tied, 0.0, columns))
        return result

    def expected_ratio(self, probabilities: np.ndarray) -> float:
        """`E[C] / C_target` of independent decisions; see there."""
        shares = probabilities[self._weight, :, None] * np.where(
            (self._weight == self._inputs)[:, None, None],
            np.eye(probabilities.shape[1]),
            probabilities[self._inputs, None, :],
        )
        return float(np.sum(shares * self._tables) / self.target)

    @property
    def is_sum(self) -> bool:
        """Whether the cost is one sum, and not the largest of several."""
        return not self._groups.any()

    def most_probable(
        self, log_probabilities: np.ndarray, used: float = 0.0
    ) -> np.ndarray:
        """The most probable sample whose costs do not exceed their targets.

        An integer program: maximise the sum of the chosen options'
        log-probabilities under linear constraints.

        Args:
            log_probabilities: `(decisions, options)`, padded to the largest
                number of options.
            used: Share of the target that the cost should reach. Where no
                sample lies between, as in a space of two formats or within
                tight bounds, that share of the largest cost that a sample
                can have. Not for costs that are a largest sum.

        Returns:
            int32 `(decisions,)`.
        """
        rows = [
            log_probabilities[d, :size] for d, size in enumerate(self._sizes)
        ]
        # Options that the policy has ruled out stay finite, so that the
        # program is well scaled.
        scores = np.maximum(np.concatenate(rows), -1e3)
        sample = self._program.best(scores, self._limits)
        if sample is None:
            raise RuntimeError(
                "The budget must have a solution, as it had when it was made. "
                f"Received: cost={self.cost.name!r}, target={self.target:.9g}. "
                "Raise the target or the bounds a little."
            )
        if self.of(sample) < used * self.target:
            dearer = self._program.best(scores, self._limits, used)
            if dearer is None:
                used *= self._program.highest(0, self._limits) / self.target
                dearer = self._program.best(scores, self._limits, used)
            # Still none if the largest cost fits by the solver's slack only.
            sample = sample if dearer is None else dearer
        return sample

    def widened(self, sample: np.ndarray) -> np.ndarray:
        """A sample with what is left of the budget spent on wider formats.

        Of the samples that keep the target and the bounds, and of which each
        option is the given one or refines it (`Format.refines`), one of the
        most bits in total: no other one is as wide in every decision and wider
        in one.

        Args:
            sample: `(decisions,)` option numbers, within the budget.

        Returns:
            int32 `(decisions,)`.
        """
        bits, allowed = [], []
        for decision, option in zip(self._decisions, sample, strict=True):
            options = [get_format(name) for name in decision.options]
            chosen = options[option]
            bits += [fmt.bits for fmt in options]
            allowed += [fmt == chosen or fmt.refines(chosen) for fmt in options]
        found = self._program.best(
            np.array(bits), self._limits, allowed=np.array(allowed)
        )
        # What the solver may miss by its tolerance is there anyway.
        return np.asarray(sample, np.int32) if found is None else found


def _fits(cost, target):
    return cost <= target * (1 + SLACK)


def make_budget(
    model: keras.Model,
    decisions: Sequence[Decision],
    cost: AnyCost,
    target: float | str | None,
    bounds: Mapping[str | AnyCost, float | str] = {},  # noqa: B006
) -> Budget:
    """Builds the budget of a searchable model, targets as people say them.

    Args:
        model: Searchable model.
        decisions: Its decisions.
        cost: The cost.
        target: Its target, see `costs.target`; `None` for no bound.
        bounds: Further costs -> targets.

    Raises:
        ValueError: If a target is of another form, or nothing fits.
    """
    if target is not None:
        target = costs.target(cost, model, target)
    others = [
        Bound(
            other,
            cost_terms(other, model, decisions),
            costs.target(other, model, value, "bounds"),
        )
        for other, value in (
            (costs.get(name), value) for name, value in bounds.items()
        )
    ]
    terms = cost_terms(cost, model, decisions)
    return Budget(cost, terms, decisions, target, others)
