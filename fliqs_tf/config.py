"""Configurations of runs: frozen values with a JSON form."""

import dataclasses
import json
from typing import Any

OPTIMIZERS = ("adam", "sgd")
ACTIVATIONS = ("fake_quant", "float")
# Where a run is, not what it is.
PLACES = ("run_dir", "data_dir")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training run needs to know.

    Args:
        run_dir: Folder that the run writes.
        dataset: Name of a data set, see `fliqs.datasets`.
        data_dir: Where TFDS keeps data sets; `None` for its default.
        model: Name of a network, see `fliqs.models`.
        width: Width multiplier of the network; `None` if it takes none.
        model_file: Trained Keras model (.keras) to start from, instead of a
            new `model`; `None` for none.
        formats: Format of all layers (`"fp32"` for a float model), or the path
            of an assignment file.
        input_range: `"ema"` or `"dynamic"`, see `fliqs.to_searchable`.
        epochs: Epochs of the whole run. 0 trains nothing, which makes sense
            for a model from a file only.
        batch_size: Samples a step.
        optimizer: `"adam"` or `"sgd"` (with Nesterov momentum 0.9).
        learning_rate: Its learning rate at the start; a cosine brings it to 0.
        weight_decay: Decoupled weight decay.
        label_smoothing: In [0, 1).
        activations: How the exported file treats inputs of layers:
            `"fake_quant"` as in training, `"float"` unrounded.
        seed: Seed of weights, data order and sampling.
    """

    run_dir: str
    dataset: str = "digits"
    data_dir: str | None = None
    model: str = "residual_small"
    width: float | None = None
    model_file: str | None = None
    formats: str = "int8"
    input_range: str = "ema"
    epochs: int = 30
    batch_size: int = 32
    optimizer: str = "adam"
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    activations: str = "fake_quant"
    seed: int = 0

    def __post_init__(self):
        if not self.run_dir:
            raise ValueError(
                "A run writes a folder. Received: run_dir=''. Name one."
            )
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("activations", self.activations, ACTIVATIONS)
        for name in ("batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"`{name}` must be positive. Received: {name}="
                    f"{getattr(self, name)}."
                )
        if self.epochs < (0 if self.model_file else 1):
            raise ValueError(
                "`epochs` must be positive (0 to train nothing needs a "
                f"`model_file`). Received: epochs={self.epochs}, "
                f"model_file={self.model_file!r}."
            )
        if self.weight_decay < 0 or not 0 <= self.label_smoothing < 1:
            raise ValueError(
                "`weight_decay` must be at least 0 and `label_smoothing` in "
                f"[0, 1). Received: weight_decay={self.weight_decay}, "
                f"label_smoothing={self.label_smoothing}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data that `json.dump` takes."""
        return {"kind": type(self).__name__, **dataclasses.asdict(self)}

    def differences(self, data: dict[str, Any]) -> dict[str, tuple]:
        """Compares with a stored configuration, wherever either run is.

        Args:
            data: What `to_dict` returned, perhaps of an older version: what
                it lacks is at its default.

        Returns:
            Name -> (own value, stored value), of what differs.
        """
        own = json.loads(json.dumps(self.to_dict()))
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        stored = {**defaults, **data}
        return {
            name: (own.get(name), stored[name])
            for name in stored
            if name not in PLACES and own.get(name) != stored[name]
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(TrainConfig):
    """What a search needs to know, besides what training does.

    Args:
        space: Formats to choose from: a key of `fliqs.SPACES`, or names joined
            by commas. (`formats` is not used.)
        method: `"fliqs"` (the search), or a method to compare it with, see
            `fliqs_tf.baselines`.
        cost: Cost that is bounded, see `fliqs.costs`.
        cost_target: Its bound, as in `fliqs.SearchModel`. (Not used by
            `"uniform:<format>"`.)
        reward: See `fliqs_tf.rewards`.
        beta: Weight of the cost in the reward.
        quality: `"loss"` or `"accuracy"`.
        controller_learning_rate: Of the controller's Adam.
        warmup: See `fliqs.Controller`, as are the following.
        activation_delay: See there.
        freeze: See there.
        entropy_weight: See there.
        baseline_momentum: See there.
        cost_samples: See there.
    """

    space: str = "int_l"
    method: str = "fliqs"
    cost: str = "bitops"
    cost_target: str | None = "1.25xint4"
    reward: str = "absolute"
    beta: float = 1.0
    quality: str = "loss"
    controller_learning_rate: float = 0.02
    warmup: float = 0.25
    activation_delay: float = 0.125
    freeze: float = 0.9
    entropy_weight: float = 0.5
    baseline_momentum: float = 0.95
    cost_samples: int = 1


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(choices)}. Received: "
            f"{name}={value!r}."
        )
