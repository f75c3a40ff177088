"""Uniform precision: one format for all layers."""

from fliqs_tf.assignment import Assignment
from fliqs_tf.baselines.task import Result
from fliqs_tf.baselines.task import Task


def run(task: Task, fmt: str) -> Result:
    """Trains with every layer at one format, whatever the cost target.

    Args:
        task: The task.
        fmt: Name of the format; `"fp32"` for a float model.
    """
    return task.train(task.model, Assignment.uniform(task.model, fmt))
