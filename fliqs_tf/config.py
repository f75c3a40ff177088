"""Configurations of runs: frozen values with a JSON form."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from fliqs_tf.choices import check_choice
from fliqs_tf.space import APART
from fliqs_tf.space import TIED
from fliqs_tf.space import get_space

OPTIMIZERS = ("adam", "sgd", "rmsprop")
SCHEDULES = ("cosine", "exponential", "step", "constant")
# Of the exported file, see `fliqs.export_tflite`.
ACTIVATIONS = ("fake_quant", "float", "int8", "int16", "dynamic")
# Where a run is, not what it is.
PLACES = ("run_dir", "data_dir")
# What only the method "fliqs" reads.
_SEARCH = (
    "reward",
    "beta",
    "quality",
    "controller_learning_rate",
    "warmup",
    "activation_delay",
    "freeze",
    "entropy_weight",
    "baseline_momentum",
    "cost_samples",
    "credit",
    "prior_weight",
)
# What a study may vary for this method alone.
VARIABLE = (
    "space",
    "input_formats",
    "input_range",
    "input_signedness",
    *_SEARCH,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a training run needs to know.

    Args:
        run_dir: Folder that the run writes.
        dataset: Name of a data set, see `fliqs.datasets`.
        data_dir: Where TFDS keeps data sets; `None` for its default.
        model: Name of a network, see `fliqs.models`.
        width: Width multiplier of the network; `None` if it takes none.
        model_arguments: Further arguments of the network's builder, as a JSON
            object.
        image_size: Side of the images, in pixels, of sets whose images vary in
            size.
        normalize: `False` for a model that takes pixels in [0, 255], see
            `fliqs.datasets.load`.
        rand_augment: Strength of RandAugment, see there.
        random_erasing: Share of images that lose a box, see there.
        mixup: Parameter of mixup, see there.
        cutmix: Parameter of CutMix, see there.
        model_file: Trained Keras model (.keras or .h5) to start from, instead
            of a new `model`; `None` for none.
        formats: Format of all layers (`"fp32"` for a float model), or the path
            of an assignment file.
        input_range: `"ema"`, `"dynamic"`, `"percentile"` or `"lsq"`, see
            `fliqs.to_searchable`.
        input_signedness: Grids of integer inputs, see there.
        epochs: Epochs of the whole run. 0 trains nothing, which makes sense
            for a model from a file only.
        batch_size: Samples a step.
        optimizer: `"adam"`, `"sgd"` (with Nesterov momentum 0.9) or
            `"rmsprop"` (decay and momentum 0.9).
        optimizer_epsilon: Of RMSprop; `None` for 1e-3.
        learning_rate: Its learning rate at the peak.
        learning_rate_warmup: Epochs in which it grows from 0 to that.
        schedule: How it falls: `"cosine"` (to 0), `"exponential"`, `"step"` or
            `"constant"`, see `fliqs_tf.recipes.Schedule`.
        schedule_decay: Factor of the exponential schedule and of the steps.
        schedule_epochs: Epochs between two of its decays.
        weight_decay: Decoupled weight decay, without biases, norms and learned
            ranges.
        clip_norm: Largest norm of all gradients together; 0 for no bound.
        weight_ema: Momentum of a moving average of the weights, which the
            trained model has in the end; 0 for none.
        label_smoothing: In [0, 1).
        teacher: Float model (.keras) to learn from besides the labels, see
            `fliqs.distill`; `None` for none.
        teacher_temperature: See there.
        teacher_weight: See there.
        activations: How the exported file treats inputs of layers, as
            `fliqs.export_tflite` takes it: `"fake_quant"` as in training,
            `"float"` unrounded, `"int8"` in integer arithmetic, ...
        seed: Seed of weights, data order and sampling.
    """

    run_dir: str
    dataset: str = "digits"
    data_dir: str | None = None
    model: str = "residual_small"
    width: float | None = None
    model_arguments: str = "{}"
    image_size: int = 224
    normalize: bool = True
    rand_augment: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    model_file: str | None = None
    formats: str = "int8"
    input_range: str = "ema"
    input_signedness: str = "symmetric"
    epochs: int = 30
    batch_size: int = 32
    optimizer: str = "adam"
    optimizer_epsilon: float | None = None
    learning_rate: float = 3e-3
    learning_rate_warmup: float = 0.0
    schedule: str = "cosine"
    schedule_decay: float = 0.97
    schedule_epochs: float = 2.4
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    weight_ema: float = 0.0
    label_smoothing: float = 0.0
    teacher: str | None = None
    teacher_temperature: float = 4.0
    teacher_weight: float = 0.9
    activations: str = "fake_quant"
    seed: int = 0

    def __post_init__(self):
        if not self.run_dir:
            raise ValueError(
                "A run writes a folder. Received: run_dir=''. Name one."
            )
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("activations", self.activations, ACTIVATIONS)
        for name in (
            "batch_size",
            "image_size",
            "learning_rate",
            "schedule_decay",
            "schedule_epochs",
        ):
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
        if not 0 <= self.learning_rate_warmup <= self.epochs:
            raise ValueError(
                "`learning_rate_warmup` must lie between 0 and `epochs`. "
                f"Received: learning_rate_warmup={self.learning_rate_warmup}, "
                f"epochs={self.epochs}."
            )
        if not 0 <= self.weight_ema < 1 or self.clip_norm < 0:
            raise ValueError(
                "`weight_ema` must be in [0, 1) and `clip_norm` at least 0. "
                f"Received: weight_ema={self.weight_ema}, "
                f"clip_norm={self.clip_norm}."
            )
        self.network_arguments()
        if self.weight_decay < 0 or not 0 <= self.label_smoothing < 1:
            raise ValueError(
                "`weight_decay` must be at least 0 and `label_smoothing` in "
                f"[0, 1). Received: weight_decay={self.weight_decay}, "
                f"label_smoothing={self.label_smoothing}."
            )

    def network_arguments(self) -> dict[str, Any]:
        """Arguments of the network's builder, besides its input and output.

        Raises:
            ValueError: If `model_arguments` is no JSON object.
        """
        try:
            arguments = json.loads(self.model_arguments)
        except json.JSONDecodeError:
            arguments = None
        if not isinstance(arguments, dict):
            raise ValueError(
                "`model_arguments` must be a JSON object, such as "
                "'{\"squeeze_excite\": false}'. Received: model_arguments="
                f"{self.model_arguments!r}."
            )
        width = {} if self.width is None else {"width": self.width}
        return width | arguments

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
        input_formats: What inputs can have: `"tied"` (the weights' format, one
            decision a layer), `"apart"` (the same formats, but a decision of
            their own), `"float"` (unrounded), or formats. (Other methods than
            `"fliqs"` know the first two, `"differentiable"` the first only.)
        method: `"fliqs"` (the search), or a method to compare it with, see
            `fliqs_tf.baselines`.
        cost: Cost that is bounded, see `fliqs.costs`.
        cost_target: Its bound, as in `fliqs.SearchModel`. (Not used by
            `"uniform:<format>"`.)
        bounds: Further costs and their bounds, `"size:0.05,memory:50%"`.
            (Not used by `"uniform:<format>"`.)
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
        credit: See there.
        prior_weight: Of minus the sensitivities that a post-training search
            finds in the model of `model_file`, as the prior there; 0 for none.
        variant: What a study calls these settings of the search, where it
            compares several; it changes nothing else.
    """

    space: str = "int_l"
    input_formats: str = "tied"
    method: str = "fliqs"
    cost: str = "bitops"
    cost_target: str | None = "1.25xint4"
    bounds: str = ""
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
    credit: str = "sample"
    prior_weight: float = 0.0
    variant: str = ""

    def __post_init__(self):
        super().__post_init__()
        # Before a study has begun: names in a variant, too.
        get_space(self.space)
        known = (TIED,) if self.method == "differentiable" else (TIED, APART)
        if self.method != "fliqs" and self.input_formats not in known:
            raise ValueError(
                f"`input_formats` must be {' or '.join(map(repr, known))} "
                f"under the method {self.method!r}. Received: input_formats="
                f"{self.input_formats!r}."
            )
        if self.method == "fliqs" and not (self.epochs or self.prior_weight):
            raise ValueError(
                "A search without epochs decides nothing. Received: epochs=0, "
                "prior_weight=0.0. Give it epochs, or a `prior_weight` of 1, "
                "or use the method 'ptq', which needs no training."
            )
        if self.prior_weight and (
            self.model_file is None or self.input_formats not in (TIED, APART)
        ):
            raise ValueError(
                "A `prior_weight` above 0 needs a trained `model_file`, whose "
                "sensitivities it weighs, and `input_formats` 'tied' or "
                f"'apart'. Received: prior_weight={self.prior_weight}, "
                f"model_file={self.model_file!r}, input_formats="
                f"{self.input_formats!r}."
            )

    def override(self, settings: Mapping[str, str]) -> "SearchConfig":
        """The same run with other settings of the search.

        Args:
            settings: Name, one of `VARIABLE` -> value, as a flag has it.

        Raises:
            ValueError: If there is no such setting, or the value is no number.
        """
        values: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in VARIABLE:
                raise ValueError(
                    "A setting of the search must be one of "
                    f"{', '.join(VARIABLE)}. Received: {name}={text}."
                )
            kind = type(getattr(self, name))
            try:
                values[name] = kind(text)
            except ValueError as error:
                raise ValueError(
                    f"`{name}` must be of type {kind.__name__}. Received: "
                    f"{name}={text}."
                ) from error
        return dataclasses.replace(self, **values)

    def without_search(self) -> "SearchConfig":
        """The same run with what only "fliqs" reads at its defaults."""
        defaults: dict[str, Any] = {
            f.name: f.default for f in dataclasses.fields(self)
        }
        return dataclasses.replace(
            self, **{name: defaults[name] for name in _SEARCH}
        )
