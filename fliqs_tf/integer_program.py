"""The integer program that a budget solves, and the terms it is made of."""

import dataclasses
import itertools
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.sparse

# Of a limit, so that a limit of exactly the cheapest sample is met.
SLACK = 1e-9

# What the solver takes for kept, relative to a limit. A sample that hides in
# it is excluded, and after so many of them their neighbourhood is.
_TOLERANCE = 1e-6
_TRIES = 20


@dataclasses.dataclass(frozen=True)
class Term:
    """The cost of one layer, or of one tensor.

    Args:
        path: Path of the layer.
        weight: Number of the decision on its weights.
        inputs: Number of the decision on its inputs: the same one if both are
            tied, or if the inputs are not quantized.
        table: float64 `(weight options, input options)`, in the cost's unit;
            for one decision only its diagonal counts.
        group: Number of the sum that it belongs to. The cost is the largest of
            the sums.
    """

    path: str
    weight: int
    inputs: int
    table: np.ndarray
    group: int = 0


class Program:
    """The integer program of costs over the same decisions.

    Variables: one for each option, then one for each option pair. A pair
    variable of a term with two decisions is the product of its two options,
    linearised: rows and columns of the pairs sum to the options.

    Args:
        sizes: Number of options of each decision.
        costs: The terms of each cost.
    """

    def __init__(self, sizes: Sequence[int], costs: Sequence[Sequence[Term]]):
        self._sizes = list(sizes)
        self._costs = [tuple(terms) for terms in costs]
        starts = [0, *itertools.accumulate(sizes)]
        count = starts[-1]
        entries: list[list[tuple]] = [[] for _ in costs]
        rows = []
        for terms, entry in zip(self._costs, entries, strict=True):
            for term in terms:
                weights = starts[term.weight] + np.arange(len(term.table))
                if term.weight == term.inputs:
                    entry.append((term.group, weights, np.diag(term.table)))
                    continue
                inputs = starts[term.inputs] + np.arange(term.table.shape[1])
                flat = count + np.arange(term.table.size)
                entry.append((term.group, flat, term.table.ravel()))
                pairs = flat.reshape(term.table.shape)
                rows += [(pairs[i], w) for i, w in enumerate(weights)]
                rows += [(pairs[:, i], v) for i, v in enumerate(inputs)]
                count += term.table.size
        one_hot = scipy.sparse.lil_array((len(self._sizes), count))
        for decision, (start, end) in enumerate(itertools.pairwise(starts)):
            one_hot[decision, start:end] = 1
        products = scipy.sparse.lil_array((len(rows), count))
        for row, (pairs, option) in enumerate(rows):
            products[row, pairs] = 1
            products[row, option] = -1
        self._always = [scipy.optimize.LinearConstraint(one_hot.tocsr(), 1, 1)]
        if rows:
            self._always.append(
                scipy.optimize.LinearConstraint(products.tocsr(), 0, 0)
            )
        self._count = count
        # One row for each sum of a cost.
        self._rows = [_rows(entry, count) for entry in entries]

    def best(
        self,
        scores: np.ndarray,
        limits: Mapping[int, float],
        used: float = 0.0,
        allowed: np.ndarray | None = None,
    ) -> np.ndarray | None:
        """The sample of the largest sum of scores, `None` if none fits.

        Args:
            scores: One number for each option of each decision.
            limits: Number of a cost -> the most it may be.
            used: Share of its limit that cost 0 has to reach, if it is a sum.
            allowed: Whether an option may be chosen, boolean, one for each
                score; `None` if all may be.
        """
        objective = np.zeros(self._count)
        objective[: len(scores)] = -scores
        constraints = self._within(limits, used)
        if allowed is not None:
            constraints.append(self._none_of(np.flatnonzero(~allowed)))
        for _ in range(_TRIES):
            sample = self._solve(objective, constraints)
            if sample is None or self._keeps(sample, limits):
                return sample
            constraints.append(self._other_than(sample))
        tighter = {
            n: limit * (1 - 2 * _TOLERANCE) for n, limit in limits.items()
        }
        constraints[: len(limits)] = self._within(tighter, used)
        return self._solve(objective, constraints)

    def lowest(self, cost: int, limits: Mapping[int, float]) -> float | None:
        """The smallest that a cost can be, `None` if no sample fits."""
        rows, limits = self._rows[cost], self._within(limits)
        if rows.shape[0] == 1:
            sample = self._solve(rows.toarray()[0], limits)
        else:
            # One more variable: it is at least every sum, and minimised.
            scale = rows.sum(axis=1).max() or 1.0
            top = np.full((rows.shape[0], 1), -1.0)
            above = scipy.sparse.hstack([rows / scale, top], "csr")
            objective = np.append(np.zeros(self._count), 1.0)
            constraints = [scipy.optimize.LinearConstraint(above, ub=0)]
            for old in (*self._always, *limits):
                wider = scipy.sparse.hstack(
                    [old.A, np.zeros((old.A.shape[0], 1))], "csr"
                )
                constraints.append(
                    scipy.optimize.LinearConstraint(wider, old.lb, old.ub)
                )
            sample = _milp(objective, constraints, self._sizes)
        return None if sample is None else cost_of(self._costs[cost], sample)

    def highest(self, cost: int, limits: Mapping[int, float]) -> float:
        """The largest that a cost can be; some sample has to fit."""
        rows, found = self._rows[cost].toarray(), 0.0
        tops = [_highest_sum(row, self._sizes) for row in rows]
        for number in np.argsort(tops)[::-1]:
            if tops[number] <= found:
                break
            sample = self._solve(-rows[number], self._within(limits))
            found = max(found, cost_of(self._costs[cost], sample))
        return found

    def _keeps(self, sample, limits):
        return all(
            cost_of(self._costs[number], sample) <= limit * (1 + SLACK)
            for number, limit in limits.items()
        )

    def _other_than(self, sample):
        """Constraint that excludes one sample."""
        starts = np.cumsum([0, *self._sizes[:-1]])
        row = np.zeros((1, self._count))
        row[0, starts + sample] = 1
        return scipy.optimize.LinearConstraint(row, ub=len(sample) - 1)

    def _none_of(self, options):
        """Constraint that excludes options."""
        row = np.zeros((1, self._count))
        row[0, options] = 1
        return scipy.optimize.LinearConstraint(row, ub=0)

    def _within(self, limits, used=0.0):
        constraints = []
        for number, limit in limits.items():
            rows = self._rows[number]
            share = used if number == 0 and rows.shape[0] == 1 else -np.inf
            constraints.append(
                scipy.optimize.LinearConstraint(rows / limit, share, 1 + SLACK)
            )
        return constraints

    def _solve(self, objective, limits):
        objective = objective / (np.abs(objective).max() or 1.0)
        return _milp(objective, [*self._always, *limits], self._sizes)


def cost_of(terms: Sequence[Term], sample: np.ndarray) -> float:
    """Cost of a sample, `(decisions,)` option numbers, in plain Python."""
    sums: dict[int, float] = {}
    for term in terms:
        value = term.table[sample[term.weight], sample[term.inputs]]
        sums[term.group] = sums.get(term.group, 0.0) + float(value)
    return max(sums.values())


def _rows(entries, count):
    """Coefficients of a cost's sums: sparse `(sums, variables)`."""
    groups, columns, values = zip(*entries, strict=True)
    sizes = [len(column) for column in columns]
    # The same place given twice is summed.
    return scipy.sparse.csr_array(
        (
            np.concatenate(values),
            (np.repeat(groups, sizes), np.concatenate(columns)),
        ),
        shape=(1 + max(groups), count),
    )


def _highest_sum(row, sizes) -> float:
    """At least the largest value of a sum without further constraints."""
    options = np.split(row, np.cumsum(sizes))
    pairs = options.pop()
    return sum(option.max() for option in options) + pairs.sum()


def _milp(objective, constraints, sizes):
    """Minimises; the chosen options, `None` if there is no solution."""
    result = scipy.optimize.milp(
        objective,
        integrality=(np.arange(len(objective)) < sum(sizes)).astype(int),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=constraints,
    )
    if result.x is None:
        return None
    options = np.split(result.x[: sum(sizes)], np.cumsum(sizes)[:-1])
    return np.array([np.argmax(x) for x in options], np.int32)
