"""Rewards: one number from the quality and the cost of a sample.

Each takes `quality` (higher is better: minus the loss, or the accuracy), the
cost ratio `C / C_target` and a weight `beta >= 0`, scalars or tensors of one
shape, and returns the reward in the unit of the quality.
"""

from collections.abc import Callable

from keras import ops

from fliqs_tf.choices import check_choice


def absolute(quality, cost_ratio, beta):
    """`Q - beta * |1 - C / C_target|`: the target is meant to be met.

    TuNAS (Bender et al., 2020, section 4) and FLIQS's default.
    """
    return quality - beta * ops.abs(1.0 - cost_ratio)


def one_sided(quality, cost_ratio, beta):
    """`Q - beta * max(0, C / C_target - 1)`: cheaper is not punished."""
    return quality - beta * ops.maximum(cost_ratio - 1.0, 0.0)


def soft_exponential(quality, cost_ratio, beta):
    """`Q * (C / C_target)^-beta` (MnasNet, Tan et al., 2019, equation 2).

    Only for qualities that are not negative, such as the accuracy: with minus
    the loss the cost would act with the wrong sign.
    """
    return quality * ops.power(cost_ratio, -beta)


def hard_exponential(quality, cost_ratio, beta):
    """`Q * max(1, C / C_target)^-beta`; see `soft_exponential`."""
    return quality * ops.power(ops.maximum(cost_ratio, 1.0), -beta)


_REWARDS: dict[str, Callable] = {
    "absolute": absolute,
    "one_sided": one_sided,
    "soft_exponential": soft_exponential,
    "hard_exponential": hard_exponential,
}
NAMES = tuple(_REWARDS)
# Others ask that the target is kept, or prefer what is cheaper.
WANTS_TARGET_MET = ("absolute",)
NEEDS_POSITIVE_QUALITY = ("soft_exponential", "hard_exponential")


def get(name: str) -> Callable:
    """Returns the reward of a name.

    Raises:
        ValueError: If there is none.
    """
    check_choice("reward", name, NAMES)
    return _REWARDS[name]
