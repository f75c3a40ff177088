"""Checks of the arguments that every builder of the zoo takes.

They stand in one place because the builders promise one error form: what was
expected, then `Received: name=value`.
"""


def check_arguments(
    input_shape: tuple[int, int, int],
    classes: int,
    width: float = 1.0,
    min_size: int = 1,
) -> None:
    """Refuses what no builder can make a model of.

    Args:
        input_shape: `(height, width, channels)` of one image, all static:
            costs are counted per image, so every size has to be known.
        classes: Number of outputs of the classifier.
        width: Multiplier of the channels of every layer but the last.
        min_size: Smallest height and width that the network can take.

    Raises:
        ValueError: One of them is outside what is said above.
    """
    if (
        not isinstance(input_shape, (tuple, list))
        or len(input_shape) != 3
        or not all(_is_positive_int(size) for size in input_shape)
    ):
        raise ValueError(
            "`input_shape` must be three positive integers, (height, width, "
            f"channels). Received: input_shape={input_shape!r}"
        )
    if min(input_shape[:2]) < min_size:
        raise ValueError(
            f"Height and width of `input_shape` must be at least {min_size}. "
            f"Received: input_shape={tuple(input_shape)}"
        )
    check_positive_int("classes", classes)
    if (
        isinstance(width, bool)
        or not isinstance(width, (int, float))
        or not 0 < width < float("inf")
    ):
        raise ValueError(
            "`width` must be a positive, finite number. "
            f"Received: width={width!r}"
        )


def check_positive_int(name: str, value: int) -> None:
    """Refuses what is not a positive integer.

    Args:
        name: Name of the argument, for the error.
        value: Its value.

    Raises:
        ValueError: `value` is no integer or less than 1.
    """
    if not _is_positive_int(value):
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )


def _is_positive_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
