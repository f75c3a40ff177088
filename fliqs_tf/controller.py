"""REINFORCE on a policy: baseline, schedules, entropy penalty."""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from fliqs_tf import numerics
from fliqs_tf.budget import Budget
from fliqs_tf.critic import Critic
from fliqs_tf.policy import Policy
from fliqs_tf.prior import deviations
from fliqs_tf.prior import initial_logits

CREDITS = ("sample", "decision")


@keras.saving.register_keras_serializable(package="fliqs_tf")
class Controller(keras.layers.Layer):
    """Updates a policy from the reward of its samples (FLIQS, section 3).

    Minimises, per step, with the moving-average baseline `b` of the reward `r`
    and the entropies `H_d` of the `D` decisions,

        -(r - b) * mean_d log p_d(sample) + w(s) * mean_d H_d

    by its own optimizer. The entropy weight rises by a cosine,
    `w(s) = entropy_weight * (1 - cos(pi * s)) / 2`, where `s` runs from 0 at
    the end of the warm-up to 1 at the freeze, so that the policy explores
    first and decides later. The gradients are the closed forms of `Policy`.

    The fractions are of the whole run (its steps):

    Args:
        optimizer: Keras optimizer of the logits; `None` for Adam with a
            learning rate of 0.02.
        warmup: Until then only the weights learn, under formats sampled from
            the initial (uniform) policy.
        activation_delay: Until then inputs of layers are not quantized.
        freeze: From then on the formats are fixed and only the weights learn.
        entropy_weight: Final weight of the entropy penalty, in units of the
            reward.
        baseline_momentum: Momentum of the baseline, see
            `numerics.running_mean`.
        cost_samples: From how many samples a step the cost's share of the
            gradient is estimated. 1: from the sample that the weights were
            trained under, as in the paper. More: from that many simulated
            ones (a cost needs no forward pass), each against the mean of the
            others; for rewards that are a sum of quality and cost.
        credit: What the quality of a sample teaches. `"sample"`: REINFORCE,
            the advantage times the gradient of `log p`, as in the paper.
            `"decision"`: a `Critic` shares it out among the decisions, the
            logits follow its expectation, and the freeze takes the formats of
            the largest estimated quality within the budget. It learns from
            the end of `activation_delay` on, and needs `cost_samples` above 1.
        prior: What is known of the qualities of the options before the run,
            in the unit of the quality, `(decisions, options)`, for example
            minus the sensitivities of a post-training search
            (`fliqs_tf.baselines.sensitivities(..., is_fine_tuned=True)`);
            `None` for nothing. A critic starts from it.
        prior_weight: How much it counts, against the entropy, in the policy
            at the start, in units of what the best assignment within the
            budget gives up in a decision, see `fliqs_tf.prior.initial_logits`.
            That policy keeps the budget, and seldom samples what is known to
            break the model.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer | None = None,
        warmup: float = 0.25,
        activation_delay: float = 0.125,
        freeze: float = 0.9,
        entropy_weight: float = 0.5,
        baseline_momentum: float = 0.95,
        cost_samples: int = 1,
        credit: str = "sample",
        prior: Sequence[Sequence[float]] | np.ndarray | None = None,
        prior_weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(dtype="float32", trainable=False, **kwargs)
        if not 0.0 <= activation_delay <= warmup < freeze <= 1.0:
            raise ValueError(
                "Fractions of the run must fulfil 0 <= activation_delay <= "
                "warmup < freeze <= 1. Received: activation_delay="
                f"{activation_delay}, warmup={warmup}, freeze={freeze}. Give "
                "all three: where one is not given, its default holds."
            )
        if (
            not 0.0 <= entropy_weight < math.inf
            or not 0.0 <= baseline_momentum < 1.0
        ):
            raise ValueError(
                "`entropy_weight` must be a finite number of at least 0 and "
                "`baseline_momentum` in [0, 1). Received: entropy_weight="
                f"{entropy_weight}, baseline_momentum={baseline_momentum}."
            )
        if not isinstance(cost_samples, int | np.integer) or cost_samples < 1:
            raise ValueError(
                "`cost_samples` must be a whole number of at least 1. Received:"
                f" cost_samples={cost_samples!r}."
            )
        if credit not in CREDITS or (credit == "decision" and cost_samples < 2):
            raise ValueError(
                f"`credit` must be one of {', '.join(CREDITS)}, the latter "
                "with `cost_samples` above 1, as a critic judges quality only. "
                f"Received: credit={credit!r}, cost_samples={cost_samples}."
            )
        if not 0.0 <= prior_weight < math.inf:
            raise ValueError(
                "`prior_weight` must be a finite number of at least 0. "
                f"Received: prior_weight={prior_weight}."
            )
        if optimizer is None:
            optimizer = keras.optimizers.Adam(0.02)
        self.optimizer = keras.optimizers.get(optimizer)
        accumulated = self.optimizer.gradient_accumulation_steps
        if accumulated:
            raise ValueError(
                "The policy takes a step at each step of the weights. Received:"
                f" gradient_accumulation_steps={accumulated}. A lower learning "
                "rate averages over steps, too."
            )
        self.warmup = warmup
        self.activation_delay = activation_delay
        self.freeze = freeze
        self.entropy_weight = entropy_weight
        self.baseline_momentum = baseline_momentum
        self.cost_samples = cost_samples
        self.credit = credit
        self.prior = None if prior is None else np.asarray(prior, "float32")
        self.prior_weight = prior_weight
        self.critic = Critic(name="critic") if credit == "decision" else None

    def prepare(self, policy: Policy, budget: Budget, beta: float) -> None:
        """Creates the state for a policy: baseline, critic, optimizer.

        Args:
            policy: The policy.
            budget: What its samples cost.
            beta: Weight of the cost in the reward.

        Raises:
            ValueError: If there is a prior that does not fit the policy.
        """
        self.baseline = self.add_weight(
            name="baseline", shape=(), initializer="zeros", aggregation="mean"
        )
        self.rewards_seen = self.add_weight(
            name="rewards_seen",
            shape=(),
            initializer="zeros",
            aggregation="mean",
        )
        if self.critic is not None:
            self.critic.prepare(policy)
        if self.prior is not None:
            self._start(policy, self.prior, budget, beta)
        self.optimizer.build([policy.logits])
        self.built = True

    def _start(self, policy, prior, budget, beta):
        shape = tuple(policy.logits.shape)
        if prior.shape != shape or not np.all(np.isfinite(prior)):
            raise ValueError(
                "`prior` must have a finite number for each option of each "
                f"decision, shape {shape}. Received: shape {prior.shape}."
            )
        policy.logits.assign(
            initial_logits(budget, prior, self.prior_weight, beta)
        )
        if self.critic is not None:
            self.critic.start(prior, deviations(budget, prior))

    def entropy_weight_at(self, progress):
        """Weight `w` of the entropy penalty at a fraction of the run."""
        progress = ops.convert_to_tensor(progress, "float32")
        share = (progress - self.warmup) / (self.freeze - self.warmup)
        share = ops.clip(share, 0.0, 1.0)
        return self.entropy_weight * (1.0 - ops.cos(math.pi * share)) / 2.0

    def gradient(self, policy, sample, advantage, progress, simulated=None):
        """Gradient of the minimised loss in the logits.

        Args:
            policy: The policy.
            sample: int32 `(decisions,)`.
            advantage: Scalar.
            progress: Fraction of the run, a scalar.
            simulated: See `update`.

        Returns:
            float32 `(decisions, options)`.
        """
        if self.critic is None:
            ascent = advantage * policy.log_prob_gradient(sample)
        else:
            ascent = self.critic.gradient(policy)
        if simulated is not None:
            samples, values = simulated
            # The mean over the other samples, a baseline without bias.
            advantages = (values - ops.mean(values)) / (self.cost_samples - 1)
            ascent += ops.tensordot(
                advantages, policy.log_prob_gradient(samples), axes=1
            )
        weight = self.entropy_weight_at(progress)
        descent = weight * policy.entropy_gradient() - ascent
        return descent / len(policy.decisions)

    def update(
        self,
        policy,
        sample,
        reward,
        progress,
        frozen,
        simulated=None,
        share=1.0,
    ) -> None:
        """Learns from one sample.

        Args:
            policy: The policy that was sampled.
            sample: int32 `(decisions,)`.
            reward: Scalar.
            progress: Fraction of the run that is done, a scalar in [0, 1].
            frozen: Whether the formats are fixed, a boolean scalar.
            simulated: `(samples, rewards)`, int32 `(cost_samples, decisions)`
                and float32 `(cost_samples,)`: what is known of the reward
                without running the model, then not part of `reward`.
            share: Weight of this sample's gradient; optimizers sum over
                replicas.
        """
        self.baseline.assign(
            numerics.running_mean(
                self.baseline, self.rewards_seen, reward, self.baseline_momentum
            )
        )
        self.rewards_seen.assign(self.rewards_seen + 1.0)
        advantage = reward - self.baseline
        learns = ops.logical_and(
            progress >= self.warmup, ops.logical_not(frozen)
        )
        # Logits of NaN would sample options that do not exist.
        finite = ops.isfinite(advantage)
        learns = ops.logical_and(learns, finite)
        if self.critic is not None:
            # Before, inputs are not rounded: other qualities than later.
            rounded = progress >= self.activation_delay
            seen = ops.logical_and(rounded, ops.logical_not(frozen))
            self.critic.update(
                policy,
                sample,
                ops.where(finite, advantage, 0.0),
                ops.logical_and(seen, finite),
            )
        gradient = self.gradient(policy, sample, advantage, progress, simulated)
        # A copy: `convert_to_tensor` would return the variable itself.
        before = ops.copy(policy.logits)
        # Not under a condition: optimizers synchronise replicas, which no
        # branch may do. What an idle step has done is undone instead.
        self.optimizer.apply(
            [ops.where(learns, gradient * share, 0.0)], [policy.logits]
        )
        policy.logits.assign(ops.where(learns, policy.logits, before))
        steps = self.optimizer.iterations
        steps.assign(ops.where(learns, steps, ops.zeros_like(steps)))

    def scores(self, policy: Policy):
        """What the freeze maximises the sum of: `(decisions, options)`.

        Log-probabilities, or the critic's values if there is one.
        """
        if self.critic is None:
            return policy.log_probabilities()
        return ops.convert_to_tensor(self.critic.values)

    def get_config(self):
        return {
            **super().get_config(),
            "optimizer": keras.optimizers.serialize(self.optimizer),
            "warmup": self.warmup,
            "activation_delay": self.activation_delay,
            "freeze": self.freeze,
            "entropy_weight": self.entropy_weight,
            "baseline_momentum": self.baseline_momentum,
            "cost_samples": self.cost_samples,
            "credit": self.credit,
            "prior": None if self.prior is None else self.prior.tolist(),
            "prior_weight": self.prior_weight,
        }

    @classmethod
    def from_config(cls, config):
        config = {**config}
        config["optimizer"] = keras.optimizers.deserialize(config["optimizer"])
        del config["dtype"], config["trainable"]
        return cls(**config)
