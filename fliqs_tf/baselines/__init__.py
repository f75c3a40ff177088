"""Methods that the search is compared with, one a file.

Each is a function of a `Task`: the same model, data, budget and number of
training steps, search and retraining counted.
"""

from collections.abc import Callable

from fliqs_tf.baselines import differentiable
from fliqs_tf.baselines import evolutionary
from fliqs_tf.baselines import manual
from fliqs_tf.baselines import ptq
from fliqs_tf.baselines import random_choice
from fliqs_tf.baselines import uniform
from fliqs_tf.baselines.ptq import sensitivities
from fliqs_tf.baselines.task import Result
from fliqs_tf.baselines.task import Task
from fliqs_tf.choices import check_choice
from fliqs_tf.formats import get_format

UNIFORM = "uniform:"
_METHODS: dict[str, Callable[[Task], Result]] = {
    "manual": manual.run,
    "random": random_choice.run,
    "ptq": ptq.run,
    "differentiable": differentiable.run,
    "evolutionary": evolutionary.run,
}
# As an error message and the help of a flag list them.
NAMES = (*_METHODS, f"{UNIFORM}<format>")

__all__ = [
    "NAMES",
    "Result",
    "Task",
    "get",
    "is_bounded",
    "sensitivities",
]


def get(name: str) -> Callable[[Task], Result]:
    """Returns a method: a name of `NAMES`, such as `"uniform:int4"`.

    Raises:
        ValueError: If there is none.
    """
    if name.startswith(UNIFORM):
        fmt = get_format(name.removeprefix(UNIFORM)).name
        return lambda task: uniform.run(task, fmt)
    check_choice("method", name, NAMES)
    return _METHODS[name]


def is_bounded(name: str) -> bool:
    """Whether a method takes a cost target."""
    return not name.startswith(UNIFORM)
