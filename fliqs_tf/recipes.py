"""How the weights of a run are trained: schedule and optimizer."""

import math
from typing import Any

import keras
from keras import ops

from fliqs_tf.config import TrainConfig

# Of TensorFlow's reference trainings of MobileNet and EfficientNet.
_RMSPROP = {"rho": 0.9, "momentum": 0.9}
_RMSPROP_EPSILON = 1e-3
# Biases, norms, and learned ranges, which decay would narrow. The names of
# TensorFlow are paths, and end in the number of an output.
_NOT_DECAYED = [r"(^|/)(bias|gamma|beta|\w+_range)(:\d+)?$"]


@keras.saving.register_keras_serializable(package="fliqs_tf")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up from 0, then a decay.

    With the step `t`, `w` warm-up steps, `n` steps and `d` steps a decay:

        cosine:       peak / 2 * (1 + cos(pi * (t - w) / (n - w)))
        exponential:  peak * decay^floor(t / d)
        step:         peak * decay^([t >= n / 2] + [t >= 3n / 4])
        constant:     peak

    Args:
        kind: `"cosine"` (Loshchilov and Hutter, 2017, without restarts),
            `"exponential"`, `"step"` (He et al., 2016, section 4.2) or
            `"constant"`.
        peak: Learning rate at the end of the warm-up.
        steps: Steps of the whole run.
        warmup: Steps of the warm-up.
        decay: Factor of the exponential schedule and of the steps.
        decay_steps: Steps between two decays of the exponential schedule.
    """

    def __init__(
        self,
        kind: str,
        peak: float,
        steps: int,
        warmup: int = 0,
        decay: float = 1.0,
        decay_steps: int = 1,
    ):
        super().__init__()
        self._config: dict[str, Any] = {
            "kind": kind,
            "peak": peak,
            "steps": steps,
            "warmup": warmup,
            "decay": decay,
            "decay_steps": decay_steps,
        }

    def __call__(self, step):
        own = self._config
        step = ops.cast(step, "float32")
        if own["kind"] == "cosine":
            length = max(own["steps"] - own["warmup"], 1)
            done = ops.clip((step - own["warmup"]) / length, 0.0, 1.0)
            factor = 0.5 * (1.0 + ops.cos(math.pi * done))
        elif own["kind"] == "exponential":
            factor = ops.power(
                own["decay"], ops.floor(step / own["decay_steps"])
            )
        elif own["kind"] == "step":
            done = ops.floor(4.0 * step / own["steps"])
            factor = ops.power(own["decay"], ops.clip(done - 1.0, 0.0, 2.0))
        else:
            factor = 1.0
        if own["warmup"]:
            factor *= ops.minimum(step / own["warmup"], 1.0)
        return own["peak"] * factor

    def get_config(self):
        return dict(self._config)


def make_optimizer(
    config: TrainConfig,
    steps_per_epoch: int,
    epochs: int,
    rate: float = 1.0,
) -> keras.optimizers.Optimizer:
    """Builds the optimizer of a run.

    Weight decay is decoupled and leaves biases, norms and learned ranges alone.

    Args:
        config: The run.
        steps_per_epoch: Steps of an epoch.
        epochs: Epochs that the schedule covers.
        rate: Factor of the learning rate.
    """
    schedule = Schedule(
        config.schedule,
        rate * config.learning_rate,
        steps_per_epoch * epochs,
        round(config.learning_rate_warmup * steps_per_epoch),
        config.schedule_decay,
        max(1, round(config.schedule_epochs * steps_per_epoch)),
    )
    arguments: dict[str, Any] = {
        "learning_rate": schedule,
        "weight_decay": config.weight_decay or None,
        "global_clipnorm": config.clip_norm or None,
    }
    if config.weight_ema:
        arguments |= {"use_ema": True, "ema_momentum": config.weight_ema}
    if config.optimizer == "adam":
        optimizer = keras.optimizers.Adam(**arguments)
    elif config.optimizer == "rmsprop":
        epsilon = config.optimizer_epsilon or _RMSPROP_EPSILON
        optimizer = keras.optimizers.RMSprop(
            epsilon=epsilon, **_RMSPROP, **arguments
        )
    else:
        optimizer = keras.optimizers.SGD(
            momentum=0.9, nesterov=True, **arguments
        )
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=_NOT_DECAYED)
    return optimizer
