"""Random search: a random assignment of the target's cost, trained."""

import numpy as np

from fliqs_tf.baselines.choice import Choice
from fliqs_tf.baselines.task import Result
from fliqs_tf.baselines.task import Task
from fliqs_tf.budget import USED


def run(task: Task) -> Result:
    """Trains under one random assignment of about the target's cost."""
    choice = task.choice()
    found = sample(choice, np.random.default_rng(task.seed))
    return task.train(task.model, choice.assignment(found))


def sample(choice: Choice, rng: np.random.Generator) -> np.ndarray:
    """Draws a sample whose cost lies between 0.98 and 1 times the target.

    The best one under scores drawn from the Gumbel distribution: without the
    bound that draws every option with the same probability (Papandreou and
    Yuille, "Perturb-and-MAP random fields", ICCV 2011), and with it every
    sample that fits can be drawn.

    Args:
        choice: The model and its budget.
        rng: Source of randomness.

    Returns:
        int32 `(decisions,)`.
    """
    shape = len(choice.decisions), len(choice.options)
    return choice.best(rng.gumbel(size=shape), USED)
