"""A searchable model whose formats a method sets and prices at will."""

from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np

from fliqs_tf import costs
from fliqs_tf import rules
from fliqs_tf.assignment import Assignment
from fliqs_tf.budget import make_budget
from fliqs_tf.convert import to_searchable
from fliqs_tf.decisions import assignment_of
from fliqs_tf.decisions import model_decisions
from fliqs_tf.layers.base import SearchableLayer
from fliqs_tf.layers.base import walk
from fliqs_tf.space import APART
from fliqs_tf.space import TIED


class Choice:
    """A searchable model, its decisions, and their budget.

    Args:
        model: Plain Keras model.
        space: Formats of every layer.
        cost: Cost that is bounded.
        target: Its bound, in the cost's unit; `None` for none.
        input_range: See `to_searchable`.
        input_signedness: See there.
        bounds: Further costs -> targets, as `SearchModel` takes them.
        input_formats: `"tied"` (one decision a layer) or `"apart"` (one for
            its weights, then one for its inputs).
    """

    def __init__(
        self,
        model: keras.Model,
        space: Sequence[str],
        cost: costs.AnyCost,
        target: float | None,
        input_range: str = "ema",
        input_signedness: str = "symmetric",
        bounds: Mapping[str | costs.AnyCost, float | str] = {},  # noqa: B006
        input_formats: str = TIED,
    ):
        self.model = to_searchable(
            model,
            space,
            rules.apart() if input_formats == APART else (),
            input_range=input_range,
            input_signedness=input_signedness,
        )
        layers = {
            path: layer
            for path, layer in walk(self.model)
            if isinstance(layer, SearchableLayer)
        }
        found = model_decisions(layers)
        self.layers = tuple(layers.values())
        self.decisions = tuple(decision for decision, _ in found)
        self.variables = tuple(tuple(variables) for _, variables in found)
        self.budget = make_budget(
            self.model, self.decisions, cost, target, bounds
        )

    @property
    def options(self) -> tuple[str, ...]:
        """The options, the same for every decision."""
        return self.decisions[0].options

    def set(self, sample: Sequence[int] | np.ndarray) -> None:
        """Sets the formats of the model: one option number a decision."""
        for variables, option in zip(self.variables, sample, strict=True):
            for variable in variables:
                variable.assign(int(option))

    def fits(self, sample: Sequence[int] | np.ndarray) -> bool:
        """Whether a sample keeps the target and the bounds."""
        return not self.budget.broken(np.asarray(sample))

    def assignment(self, sample: Sequence[int] | np.ndarray) -> Assignment:
        """The assignment of a sample."""
        return assignment_of(self.decisions, sample)

    def best(self, scores: np.ndarray, used: float = 0.0) -> np.ndarray:
        """The sample within the budget whose scores have the largest sum.

        Args:
            scores: `(decisions, options)`, finite.
            used: Share of the target that its cost should reach.
        """
        # To [-1, 0]: the program takes scores as log-probabilities.
        scores = scores - scores.max(axis=1, keepdims=True)
        scale = np.abs(scores).max() or 1.0
        return self.budget.most_probable(scores / scale, used)
