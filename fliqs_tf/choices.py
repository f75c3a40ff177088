"""Arguments that are one of a few names."""

from collections.abc import Iterable
from typing import Any


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises unless an argument is one of the choices.

    Args:
        name: Name of the argument.
        value: What was given for it.
        choices: Names, in the order in which the error lists them.

    Raises:
        ValueError: If it is none of them, or no string.
    """
    choices = tuple(choices)
    # An array, which another argument takes, has no `in` of this kind.
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(choices)}. Received: "
            f"{name}={value!r}."
        )
