"""The policy: an independent categorical distribution for each decision."""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from fliqs_tf.space import Decision


@keras.saving.register_keras_serializable(package="fliqs_tf")
class Policy(keras.layers.Layer):
    """Free logits over the options of decisions (FLIQS, TuNAS).

    `p_d = softmax(logits_d)` for each decision `d`, all independent; the
    initial policy is uniform. Decisions with fewer options than the largest
    are padded with options of probability zero.

    Args:
        decisions: The decisions, in the order in which samples number them.
        seed: Seed of the sampling; its state is saved with the policy.
    """

    def __init__(self, decisions: Sequence[Decision], seed: int = 0, **kwargs):
        super().__init__(dtype="float32", trainable=False, **kwargs)
        self.decisions = tuple(
            d if isinstance(d, Decision) else Decision(**d) for d in decisions
        )
        if not self.decisions:
            raise ValueError(
                "A policy needs at least one decision. Received: none."
            )
        self.seed = seed
        sizes = [len(d.options) for d in self.decisions]
        # Large and finite: 0 * log(0) never appears.
        self._padding = np.where(
            np.arange(max(sizes)) < np.array(sizes)[:, None], 0.0, -1e9
        ).astype("float32")
        self._is_option = self._padding == 0.0
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.logits = self.add_weight(
            name="logits", shape=self._padding.shape, initializer="zeros"
        )
        self.built = True

    def log_probabilities(self):
        """Returns float32 `(decisions, options)`; about -1e9 where padded."""
        return ops.log_softmax(self.logits + self._padding, axis=-1)

    def probabilities(self):
        """Returns float32 `(decisions, options)`; 0 where padded."""
        return ops.softmax(self.logits + self._padding, axis=-1)

    def sample(self, count: int = 1):
        """Draws options for each decision: int32 `(count, decisions)`."""
        drawn = keras.random.categorical(
            self.logits + self._padding, count, seed=self.seed_generator
        )
        return ops.cast(ops.transpose(drawn), "int32")

    def best(self):
        """Returns the most probable option of each decision, int32."""
        return ops.cast(
            ops.argmax(self.logits + self._padding, axis=-1), "int32"
        )

    def log_prob(self, sample):
        """Returns `log p(sample)` of each decision, float32 `(decisions,)`."""
        return ops.sum(self.one_hot(sample) * self.log_probabilities(), -1)

    def entropy(self):
        """Entropy of each decision in nat, float32 `(decisions,)`.

        `H_d = -sum_o p log p`; `log(options)` for a uniform policy.
        """
        p, log_p = self.probabilities(), self.log_probabilities()
        return -ops.sum(ops.where(self._is_option, p * log_p, 0.0), -1)

    def log_prob_gradient(self, sample):
        """Gradient of `log p(sample)` in the logits: `onehot - p`.

        Args:
            sample: int32 `(..., decisions)`.

        Returns:
            float32 `(..., decisions, options)`.
        """
        return self.one_hot(sample) - self.probabilities()

    def entropy_gradient(self):
        """Gradient of each decision's entropy in the logits.

        `dH_d / dlogit_o = -p_o (log p_o + H_d)`.

        Returns:
            float32 `(decisions, options)`.
        """
        p, log_p = self.probabilities(), self.log_probabilities()
        gradient = -p * (log_p + self.entropy()[:, None])
        return ops.where(self._is_option, gradient, 0.0)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        # Keras saves the state of no random generator.
        store["random_state"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store):
        saved = {key: store[key] for key in store.keys()}
        self.seed_generator.state.assign(saved.pop("random_state"))
        super().load_own_variables(saved)

    def one_hot(self, sample):
        """One-hot rows of a sample, float32 `(..., decisions, options)`."""
        return ops.one_hot(sample, self._padding.shape[1], dtype="float32")

    def get_config(self):
        return {
            **super().get_config(),
            "decisions": [
                {
                    "path": d.path,
                    "kind": d.kind,
                    "options": list(d.options),
                    "layers": list(d.layers),
                }
                for d in self.decisions
            ],
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        config["decisions"] = [
            Decision(
                d["path"],
                d["kind"],
                tuple(d["options"]),
                tuple(d.get("layers", ())),
            )
            for d in config["decisions"]
        ]
        config.pop("dtype", None)
        config.pop("trainable", None)
        return cls(**config)
