"""Other ways to spend a step of the search, tried for `search_rank.py`.

What does not help beside a critic's credit is not in the product, and stands
here, so that its figures can be made again.
"""

import keras
import tensorflow as tf
from keras import ops

import fliqs_tf as fliqs

PARTS = 4
_TEMPERATURE = 4.0


class _Trial(fliqs.SearchModel):
    """A search whose step a subclass defines until the formats are fixed."""

    def search_gradients(self, x, y):
        """Gradients of the weights, loss, outputs, and qualities of samples."""
        raise NotImplementedError

    def train_step(self, data):
        x, y = data
        progress = self.progress()
        frozen = self.frozen > 0

        def fixed():
            self._choose(self.frozen_sample, True)
            gradients, loss, y_pred = self._gradients(x, y)
            pairs = [(ops.copy(self.frozen_sample), -loss)] * self.pairs
            return gradients, loss, y_pred, pairs

        gradients, loss, y_pred, pairs = tf.cond(
            frozen, fixed, lambda: self.search_gradients(x, y)
        )
        weights = self.searchable_model.trainable_variables
        self.optimizer.apply(gradients, weights)
        for sample, quality in pairs:
            self._update_policy(
                *(sample, quality, quality, progress, frozen), replicas=1
            )
        self.step.assign(self.step + 1)
        self._loss_tracker.update_state(loss)
        return self.compute_metrics(x, y, y_pred)

    def progress(self):
        """Fraction of the run that is done."""
        return ops.cast(self.step, "float32") / ops.cast(
            self.total_steps, "float32"
        )

    def try_sample(self, sample):
        """Hands a sample to the layers, as far as the schedule lets it."""
        delay = self.controller.activation_delay
        self._choose(sample, self.progress() >= delay)

    def _gradients(self, x, y):
        """Of the weights under the formats chosen; loss and outputs."""
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred)
        weights = self.searchable_model.trainable_variables
        return tape.gradient(loss, weights), loss, y_pred

    def searched(self, sample, x, y):
        """`_gradients` under a sample."""
        self.try_sample(sample)
        return self._gradients(x, y)

    def judged(self, sample, x, y):
        """Quality of a sample without a step of the weights, and outputs."""
        self.try_sample(sample)
        y_pred = self(x, training=True)
        return -self.compute_loss(x, y, y_pred), y_pred


def _against_the_others(samples, qualities):
    """Advantages with a leave-one-out baseline: the same weights and batch."""
    count = len(qualities)
    mean = sum(qualities) / count
    return [
        (sample, (quality - mean) * count / (count - 1))
        for sample, quality in zip(samples, qualities, strict=True)
    ]


class Parts(_Trial):
    """Each quarter of the batch under a sample of its own; one step of all."""

    pairs = PARTS

    def search_gradients(self, x, y):
        samples = tf.unstack(self.policy.sample(PARTS))
        found = [
            self.searched(*arguments)
            for arguments in zip(
                samples, tf.split(x, PARTS), tf.split(y, PARTS), strict=True
            )
        ]
        gradients, losses, outputs = zip(*found, strict=True)
        return (
            [sum(g) / PARTS for g in zip(*gradients, strict=True)],
            sum(losses) / PARTS,
            tf.concat(outputs, 0),
            _against_the_others(samples, [-loss for loss in losses]),
        )


class Judged(_Trial):
    """The weights learn under one sample; three more judge the same batch."""

    pairs = PARTS

    def search_gradients(self, x, y):
        first, *others = samples = tf.unstack(self.policy.sample(PARTS))
        gradients, loss, y_pred = self.searched(first, x, y)
        qualities = [-loss, *(self.judged(other, x, y)[0] for other in others)]
        pairs = _against_the_others(samples, qualities)
        return gradients, loss, y_pred, pairs


class HeldOut(_Trial):
    """Three quarters of the batch train, and the last one judges."""

    pairs = 1

    def search_gradients(self, x, y):
        *parts, last_x = tf.split(x, PARTS)
        *labels, last_y = tf.split(y, PARTS)
        sample = self.policy.sample(1)[0]
        gradients, loss, y_pred = self.searched(
            sample, tf.concat(parts, 0), tf.concat(labels, 0)
        )
        quality, last = self.judged(sample, last_x, last_y)
        outputs = tf.concat([y_pred, last], 0)
        return gradients, loss, outputs, [(sample, quality)]


class SelfDistilled(_Trial):
    """The full-precision pass learns the labels, and teaches the sample.

    The last format of the space is `fp32`, which the policy must never draw.
    """

    pairs = 1

    def search_gradients(self, x, y):
        sample = self.policy.sample(1)[0]
        weights = self.searchable_model.trainable_variables
        full = ops.full_like(sample, len(self.decisions[0].options) - 1)
        self._choose(full, False)
        with tf.GradientTape() as tape:
            teacher = self(x, training=True)
            loss = self.compute_loss(x, y, teacher)
        own = tape.gradient(loss, weights)
        soft = ops.softmax(tf.stop_gradient(teacher) / _TEMPERATURE)
        self.try_sample(sample)
        with tf.GradientTape() as tape:
            student = self(x, training=True)
            loss = self.compute_loss(x, y, student)
            taught = 0.5 * loss + 0.5 * _TEMPERATURE**2 * ops.mean(
                keras.losses.kl_divergence(
                    soft, ops.softmax(student / _TEMPERATURE)
                )
            )
        other = tape.gradient(taught, weights)
        gradients = [(a + b) / 2 for a, b in zip(own, other, strict=True)]
        return gradients, loss, student, [(sample, -loss)]
