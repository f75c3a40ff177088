"""What each option of each decision is worth, learned from whole samples."""

import keras
from keras import ops

from fliqs_tf import numerics
from fliqs_tf.policy import Policy


@keras.saving.register_keras_serializable(package="fliqs_tf")
class Critic(keras.layers.Layer):
    """An additive model of the quality: one number an option.

    A sample's quality tells of all decisions at once, and of the batch. This
    model shares it out, with the baseline `b` of the quality `q`, the sampled
    one-hot rows `e_d` and the probabilities `p_d`:

        q - b  ~  sum_d (e_d - p_d) . v_d

    The features `e_d - p_d` are the gradients of `log p_d`, so `v` is a
    compatible function approximation of the advantage (Sutton et al., "Policy
    gradient methods for reinforcement learning with function approximation",
    NIPS 1999): where the quality is additive, `gradient` is that of the
    expected quality, without the noise of other decisions, and over many
    batches. As the features have mean zero, what all samples share, such as
    the progress of the weights, moves no `v`.

    It learns by least mean squares. An option's rate falls with its number of
    visits `n` in `D` decisions,

        max(1 / (n + D + r), (1 - momentum) / (1 + r)):

    all decisions together never correct more than the error, and late samples,
    under weights that have learned, replace early ones. Values known beforehand
    count as `1 / (1 - momentum)` visits, what is remembered in the long run.
    `r` is 0, or, if they are known up to a standard deviation `s`, the ratio
    `E[error^2] / s^2` of the noise of a sample to that, as in the gain of a
    Kalman filter for a constant. A batch that can tell nothing of the small
    differences between two formats of a robust layer then leaves them alone.

    Args:
        momentum: Weight of the past in the long run, in [0, 1).
    """

    def __init__(self, momentum: float = 0.99, **kwargs):
        super().__init__(dtype="float32", trainable=False, **kwargs)
        self.momentum = momentum

    def prepare(self, policy: Policy) -> None:
        """Creates the state for a policy."""
        shape = tuple(policy.logits.shape)
        self.values, self.visits, self.precisions = (
            self.add_weight(
                name=name, shape=shape, initializer="zeros", aggregation="mean"
            )
            for name in ("values", "visits", "precisions")
        )
        self.noise, self.samples = (
            self.add_weight(
                name=name, shape=(), initializer="zeros", aggregation="mean"
            )
            for name in ("noise", "samples")
        )
        self.built = True

    def start(self, values, deviations) -> None:
        """Starts from known values.

        Args:
            values: `(decisions, options)`.
            deviations: Their standard deviations, positive, of that shape.
        """
        self.values.assign(values)
        self.precisions.assign(1.0 / ops.square(deviations))
        visits = 1.0 / (1.0 - self.momentum)
        self.visits.assign(ops.full_like(self.visits, visits))

    def update(self, policy: Policy, sample, advantage, learns) -> None:
        """Learns from one sample.

        Args:
            policy: The policy that was sampled.
            sample: int32 `(decisions,)`.
            advantage: Quality of the sample less its baseline, a scalar.
            learns: Whether to learn from it, a boolean scalar.
        """
        features = policy.log_prob_gradient(sample)
        error = advantage - ops.sum(features * self.values)
        count = len(policy.decisions)
        noise = numerics.running_mean(
            self.noise, self.samples, ops.square(error), self.momentum
        )
        learned = ops.cast(learns, "float32")
        self.noise.assign(ops.where(learns, noise, self.noise))
        self.samples.assign(self.samples + learned)
        ratios = noise * self.precisions
        rates = ops.maximum(
            1.0 / (self.visits + count + ratios),
            (1.0 - self.momentum) / (1.0 + ratios),
        )
        self.values.assign(
            self.values + ops.where(learns, features * rates * error, 0.0)
        )
        self.visits.assign(self.visits + learned * policy.one_hot(sample))

    def gradient(self, policy: Policy):
        """Gradient of the expected quality in the logits.

        `p_o (v_o - sum_i p_i v_i)`, float32 `(decisions, options)`.
        """
        p = policy.probabilities()
        mean = ops.sum(p * self.values, axis=-1, keepdims=True)
        return p * (self.values - mean)

    def get_config(self):
        return {"name": self.name, "momentum": self.momentum}
