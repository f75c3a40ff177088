"""A cost as tables over decisions: the price of a sample, and what fits."""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np
import scipy.optimize
import scipy.sparse
from keras import ops

from fliqs_tf.costs import Cost
from fliqs_tf.costs import LayerProfile
from fliqs_tf.space import Decision

# Of the cost, so that a target of exactly the cheapest assignment is met.
_SLACK = 1e-9


@dataclasses.dataclass(frozen=True)
class Term:
    """The cost of one layer.

    Args:
        path: Path of the layer.
        weight: Number of the decision on its weights.
        inputs: Number of the decision on its inputs: the same one if both are
            tied, or if the inputs are not quantized.
        table: float64 `(weight options, input options)`, in the cost's unit.
    """

    path: str
    weight: int
    inputs: int
    table: np.ndarray


def layer_terms(
    cost: Cost,
    profiles: Mapping[str, LayerProfile],
    decisions: Sequence[Decision],
) -> list[Term]:
    """Builds the terms of layers from their decisions (path and kind)."""
    numbers = {(d.path, d.kind): i for i, d in enumerate(decisions)}
    terms = []
    for path, layer in profiles.items():
        weight = numbers.get((path, "format"))
        if weight is None:
            weight = numbers[path, "weight_format"]
            inputs = numbers.get((path, "input_format"))
        else:
            inputs = weight
        options = decisions[weight].options
        if inputs is None:
            column = cost.table(layer, options, [None])
            table = np.repeat(column, len(options), axis=1)
            inputs = weight
        else:
            table = cost.table(layer, options, decisions[inputs].options)
        terms.append(Term(path, weight, inputs, table))
    return terms


class Budget:
    """A cost that must not exceed a target.

    Args:
        cost: The cost.
        terms: Its terms, one a layer.
        decisions: The decisions that the terms number.
        target: Largest cost allowed, in the cost's unit; `None` for the
            largest that the space can reach.

    Raises:
        ValueError: If no assignment fits, or all of them are below the target.
    """

    def __init__(
        self,
        cost: Cost,
        terms: Sequence[Term],
        decisions: Sequence[Decision],
        target: float | None,
    ):
        self.cost = cost
        self.terms = tuple(terms)
        self._sizes = [len(d.options) for d in decisions]
        size = max(self._sizes)
        self._tables = np.zeros((len(self.terms), size, size))
        for table, term in zip(self._tables, self.terms, strict=True):
            rows, columns = term.table.shape
            table[:rows, :columns] = term.table
        self._weight = np.array([t.weight for t in self.terms])
        self._inputs = np.array([t.inputs for t in self.terms])
        self.lowest, self.highest = self._bounds()
        self.target = self.highest if target is None else target
        if not self._fits(self.lowest) or self.target > self.highest * (
            1 + _SLACK
        ):
            raise ValueError(
                f"The cost target must lie between {self.lowest:.6g} and "
                f"{self.highest:.6g} {cost.unit}, the cheapest and the dearest "
                f"assignment of the space. Received: {self.target:.6g} "
                f"{cost.unit}. Choose a target between them, or another space."
            )

    def of(self, sample: np.ndarray) -> float:
        """Cost of a sample, `(decisions,)` option numbers, in plain Python."""
        sample = np.asarray(sample)
        rows = np.arange(len(self.terms))
        chosen = sample[self._weight], sample[self._inputs]
        return float(self._tables[rows, *chosen].sum())

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
        return ops.sum(ops.take(flat, index), axis=-1)

    def most_probable(
        self, log_probabilities: np.ndarray, used: float = 0.0
    ) -> np.ndarray:
        """The most probable sample whose cost does not exceed the target.

        An integer program: maximise the sum of the chosen options'
        log-probabilities under a linear constraint.

        Args:
            log_probabilities: `(decisions, options)`, padded to the largest
                number of options.
            used: Share of the target that the cost should reach. Where no
                sample lies between, cheaper ones are allowed.

        Returns:
            int32 `(decisions,)`.
        """
        rows = [
            log_probabilities[d, :size] for d, size in enumerate(self._sizes)
        ]
        # Options that the policy has ruled out stay finite, so that the
        # program is well scaled.
        scores = np.maximum(np.concatenate(rows), -1e3)
        one_hot, products, coefficients = self._program()
        objective = np.zeros_like(coefficients)
        objective[: len(scores)] = -scores

        def within(share):
            limit = scipy.optimize.LinearConstraint(
                coefficients / self.target, share, 1 + _SLACK
            )
            return _solve(objective, one_hot, products, [limit], self._sizes)

        sample = within(used)
        return within(0.0) if sample is None else sample

    def _fits(self, cost):
        return cost <= self.target * (1 + _SLACK)

    def _bounds(self):
        one_hot, products, coefficients = self._program()
        return tuple(
            self.of(_solve(objective, one_hot, products, [], self._sizes))
            for objective in (coefficients, -coefficients)
        )

    def _program(self):
        """Variables: one for each option, then one for each option pair.

        A pair variable of a term with two decisions is the product of its two
        options, linearised: rows and columns of the pairs sum to the options.
        """
        starts = np.concatenate([[0], np.cumsum(self._sizes)])
        coefficients = [np.zeros(starts[-1])]
        rows = []
        count = starts[-1]
        for term in self.terms:
            weights = starts[term.weight] + np.arange(term.table.shape[0])
            if term.weight == term.inputs:
                coefficients[0][weights] += np.diag(term.table)
                continue
            inputs = starts[term.inputs] + np.arange(term.table.shape[1])
            pairs = count + np.arange(term.table.size)
            pairs = pairs.reshape(term.table.shape)
            rows += [(pairs[i], w) for i, w in enumerate(weights)]
            rows += [(pairs[:, i], v) for i, v in enumerate(inputs)]
            coefficients.append(term.table.ravel())
            count += term.table.size
        one_hot = scipy.sparse.lil_array((len(self._sizes), count))
        for decision, (start, end) in enumerate(
            zip(starts[:-1], starts[1:], strict=True)
        ):
            one_hot[decision, start:end] = 1
        products = scipy.sparse.lil_array((len(rows), count))
        for row, (pairs, option) in enumerate(rows):
            products[row, pairs] = 1
            products[row, option] = -1
        return one_hot, products, np.concatenate(coefficients)


def _solve(objective, one_hot, products, limits, sizes):
    """Solves the program of `Budget`; `None` if it has no solution."""
    constraints = [
        scipy.optimize.LinearConstraint(one_hot.tocsr(), 1, 1),
        *limits,
    ]
    if products.shape[0]:
        constraints.append(
            scipy.optimize.LinearConstraint(products.tocsr(), 0, 0)
        )
    result = scipy.optimize.milp(
        objective / (np.abs(objective).max() or 1.0),
        integrality=(np.arange(len(objective)) < sum(sizes)).astype(int),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=constraints,
    )
    if result.x is None:
        return None
    ends = np.cumsum(sizes)[:-1]
    options = np.split(result.x[: sum(sizes)], ends)
    return np.array([np.argmax(x) for x in options], np.int32)


def model_decisions(
    layers: Mapping[str, keras.layers.Layer],
) -> list[tuple[Decision, list]]:
    """Decisions of searchable layers, each with the variables it sets."""
    return [
        (Decision(path, kind, tuple(options)), variables)
        for path, layer in layers.items()
        for kind, (options, variables) in layer.choices().items()
    ]
