"""Manual mixed precision: first and last layer at 8 bits, the rest uniform.

The convention of hand-made mixed precision, for example of Abdolrashidi et
al., "Pareto-Optimal Quantized ResNet Is Mostly 4-bit", CVPR workshops 2021.
"""

import numpy as np

from fliqs_tf.baselines.choice import Choice
from fliqs_tf.baselines.task import Result
from fliqs_tf.baselines.task import Task
from fliqs_tf.formats import get_format

_ENDS = 8


def run(task: Task) -> Result:
    """Trains with formats as an engineer would set them by hand."""
    choice = task.choice()
    assignment = choice.assignment(sample(choice))
    return task.train(task.model, assignment)


def sample(choice: Choice) -> np.ndarray:
    """First and last layer at 8 bits, the others as wide as the budget allows.

    "8 bits" is the space's widest format of at most 8 bits; of formats of the
    same width, the space's first counts.

    Args:
        choice: The model and its budget.

    Returns:
        int32 `(decisions,)`.

    Raises:
        ValueError: If the budget does not even allow the narrowest.
    """
    bits = np.array([get_format(fmt).bits for fmt in choice.options])
    widest = np.argmax(np.where(bits <= _ENDS, bits, 0))
    # A layer may have one decision, or one for weights and one for inputs.
    ends = choice.decisions[0].path, choice.decisions[-1].path
    is_end = [decision.path in ends for decision in choice.decisions]
    for option in np.argsort(-bits, kind="stable"):
        found = np.where(is_end, widest, option).astype(np.int32)
        if choice.fits(found):
            return found
    raise ValueError(
        "Manual precision keeps the first and the last layer at "
        f"{choice.options[widest]}, the others at one format. Received: with "
        f"the narrowest format, {'; '.join(choice.budget.broken(found))}. "
        "Raise the target or the bound."
    )
