"""What a method is given, and what it gives back."""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping

import keras
import tensorflow as tf

from fliqs_tf.assignment import Assignment
from fliqs_tf.baselines.choice import Choice
from fliqs_tf.convert import to_fixed
from fliqs_tf.costs import AnyCost
from fliqs_tf.space import TIED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A model, data, a budget and a number of epochs: the same for all methods.

    Args:
        model: Plain Keras model, built; never changed by a method.
        is_trained: Whether the model's weights are those of a trained model.
        data: Batches `(x, y)` in training, outputs and targets as `loss` takes
            them.
        loss: Loss of the model.
        space: Formats to choose from.
        cost: Cost that is bounded.
        target: Its bound, in the cost's unit; `None` for methods that take
            none.
        bounds: Further costs -> targets that the result has to keep, as
            `SearchModel` takes them.
        epochs: Epochs of the whole method, whatever it spends them on.
        input_range: See `to_searchable`.
        input_signedness: See there.
        input_formats: See `Choice`.
        seed: Seed of what a method draws.
        fit: `fit(model, first, last, **compile_arguments)` trains a model in
            epochs `first` (included) to `last` (excluded) of the run, with a
            learning rate that falls from `rate` (default 1) times the run's to
            0 by a cosine. It compiles the model, and takes up a training that
            was interrupted.
    """

    model: keras.Model
    is_trained: bool = False
    data: tf.data.Dataset
    loss: keras.losses.Loss
    space: tuple[str, ...]
    cost: AnyCost
    target: float | None
    bounds: Mapping[str | AnyCost, float | str] = dataclasses.field(
        default_factory=dict
    )
    epochs: int
    input_range: str = "ema"
    input_signedness: str = "symmetric"
    input_formats: str = TIED
    seed: int = 0
    fit: Callable[..., None]

    def choice(self, model: keras.Model | None = None) -> Choice:
        """The model (or another) with its decisions open."""
        if self.target is None:
            raise ValueError(
                "This method needs a cost target. Received: cost_target=None. "
                "Give one, for example '1.25xint4'."
            )
        return Choice(
            model or self.model,
            self.space,
            self.cost,
            self.target,
            self.input_range,
            self.input_signedness,
            self.bounds,
            self.input_formats,
        )

    def first_epochs(self, share: float) -> int:
        """A share of the epochs, one at least: random weights say nothing."""
        return min(self.epochs, max(1, round(share * self.epochs)))

    def fixed(self, model: keras.Model, assignment: Assignment) -> keras.Model:
        """The model (as it is trained so far) at fixed formats."""
        return to_fixed(
            model, assignment, self.input_range, self.input_signedness
        )

    def train(
        self,
        model: keras.Model,
        assignment: Assignment,
        first: int = 0,
        rate: float = 1.0,
    ) -> "Result":
        """Trains a model at fixed formats from an epoch to the end."""
        fixed = self.fixed(model, assignment)
        if first < self.epochs:
            self.fit(fixed, first, self.epochs, rate=rate)
        return Result(fixed, assignment)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a method found.

    Args:
        model: Trained model at fixed formats.
        assignment: Its formats.
    """

    model: keras.Model
    assignment: Assignment
