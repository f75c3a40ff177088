"""Where a policy starts that knows something of the options' qualities."""

import warnings

import numpy as np

from fliqs_tf.budget import Budget

# Bisections of the price, and fixed-point steps for each: more than a policy
# needs that is only a start.
_BISECTIONS = 30
_STEPS = 100
# A policy reaches the cheapest assignment in the limit only.
_MET = 1.0 + 1e-6


def initial_logits(
    budget: Budget, values: np.ndarray, weight: float, beta: float
) -> np.ndarray:
    """Logits of the best policy by what is known before the run.

    Under values `v` and for independent decisions it maximises

        E[sum_d v_d] - beta * max(0, E[C] / C_target - 1) + T sum_d H_d

    The condition for that is a Boltzmann distribution with a price of the cost,

        logits_d = (v_d - price * dE[C]/dp_d / C_target) / T,

    where the price is the least in [0, beta] at which the expected cost does
    not exceed its target. Where a cost depends on two decisions (weights and
    inputs apart), this is an equation, solved by iteration. The temperature

        T = 1 / weight * mean_d (max_o v_do - v_d*)

    is in units of what the best assignment within the budget, `*`, gives up in
    a decision: the same weight explores as widely, against what is at stake, in
    a network of few sensitive layers as in one of many robust ones. Where
    nothing is given up, `T = 1 / weight`.

    A price of `beta` and a cost still above the target means that the reward
    itself prefers to pay: a warning says from which `beta` on it does not.

    Args:
        budget: The budget. For a cost that is a largest of sums the price is
            0.
        values: Qualities of the options, finite, `(decisions, options)`.
        weight: How much they count against the entropy; 0 for a uniform policy.
        beta: Weight of the cost in the reward, in units of the quality.

    Returns:
        float64 `(decisions, options)`.
    """
    values = np.asarray(values, "float64")
    if weight == 0.0:
        return np.zeros_like(values)
    padding = np.where(budget.is_option, 0.0, -np.inf)
    # From there a price can only lead to something cheaper.
    sample = budget.most_probable(values)
    best = np.eye(values.shape[1])[sample]
    weight /= _given_up(_losses(budget, values), sample)
    if not budget.is_sum:
        return weight * values

    def at(price):
        probabilities = best
        for _ in range(_STEPS):
            costs = budget.expected_ratios(probabilities)
            logits = weight * (values - price * costs)
            # Halfway: a full step may swing between weights and inputs.
            probabilities = (probabilities + _softmax(logits + padding)) / 2
        return logits, budget.expected_ratio(probabilities)

    logits, ratio = at(0.0)
    if ratio <= _MET:
        return logits
    low, high = 0.0, 1.0
    while at(high)[1] > _MET:
        low, high = high, 2.0 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if at(middle)[1] > _MET else (low, middle)
    if high > beta:
        logits, ratio = at(beta)
        warnings.warn(
            "The weight of the cost should exceed what the prior would pay "
            f"for it, {high:.3g} at the target. Received: beta={beta:.3g}, at "
            f"which the policy starts at {ratio:.3g} times the target, and may "
            "stay above it until the formats are fixed. Raise `beta` to about "
            f"{2.0 * high:.2g}.",
            stacklevel=2,
        )
        return logits
    return at(high)[0]


def deviations(budget: Budget, values: np.ndarray) -> np.ndarray:
    """How far what is known before the run may be wrong.

    By as much as an option loses to the best one of its decision: the
    divergence of a trained model is taken to say what a format does to within a
    factor. But by no less than the mean that the best assignment gives up.

    Args:
        budget: The budget.
        values: Qualities of the options, finite, `(decisions, options)`.

    Returns:
        Positive, float64 `(decisions, options)`.
    """
    values = np.asarray(values, "float64")
    losses = _losses(budget, values)
    return np.maximum(losses, _given_up(losses, budget.most_probable(values)))


def _losses(budget, values):
    """What each option loses to the best one of its decision."""
    most = np.where(budget.is_option, values, -np.inf).max(axis=1)
    return most[:, None] - values


def _given_up(losses, sample):
    """What a sample loses in a decision, or else 1."""
    return np.mean(losses[np.arange(len(losses)), sample]) or 1.0


def _softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)
