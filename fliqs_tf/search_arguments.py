"""What a search refuses, when it is made and not hours later."""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from fliqs_tf import rewards
from fliqs_tf.choices import check_choice
from fliqs_tf.controller import Controller
from fliqs_tf.quality import QUALITIES
from fliqs_tf.space import Rule


def check_arguments(
    reward: str, beta: float, quality: str, bounds: Mapping
) -> None:
    """Raises unless the arguments of a `SearchModel` are sound, and fit."""
    check_choice("quality", quality, QUALITIES)
    if not (
        isinstance(beta, int | float | np.number) and 0.0 <= beta < math.inf
    ):
        raise ValueError(
            "`beta` must be a finite number of at least 0. Received: "
            f"beta={beta!r}."
        )
    if reward in rewards.NEEDS_POSITIVE_QUALITY and quality == "loss":
        raise ValueError(
            f"The reward {reward!r} needs a quality that is not negative. "
            "Received: quality='loss'. Use quality='accuracy', or the reward "
            "'absolute'."
        )
    if not isinstance(bounds, Mapping):
        raise ValueError(
            "`bounds` must be a dictionary of costs and their targets, such as "
            f"{{'size': '50%'}}. Received: bounds={bounds!r}."
        )


def check_no_conversion(
    rules: Sequence[Rule], input_range: str, input_signedness: str
) -> None:
    """Raises if arguments say how to convert a model that is not converted."""
    given = [
        f"{name}={value!r}"
        for name, value, is_given in (
            ("rules", rules, bool(rules)),
            ("input_range", input_range, input_range != "ema"),
            (
                "input_signedness",
                input_signedness,
                input_signedness != "symmetric",
            ),
        )
        if is_given
    ]
    if given:
        raise ValueError(
            "A model is searched as it is if no space is given. Received: "
            f"{', '.join(given)} without `space`. Give them to "
            "`fliqs.to_searchable`, or here a plain model and a space."
        )


def check_steps(model: keras.Model, search: type, base: type) -> None:
    """Raises or warns if a model says itself how it is trained.

    Args:
        model: The model to search.
        search: Class of the search, whose methods stand for the model's.
        base: `SearchModel`, whose methods know nothing of the model's.

    Raises:
        ValueError: If it has a loss of its own, or is no model.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"Expected a `keras.Model`. Received: {type(model).__name__}."
        )
    for name in ("compute_loss", "train_step", "test_step"):
        own = getattr(getattr(model, name), "__func__", None)
        is_keras = own is getattr(keras.Model, name)
        if is_keras or getattr(search, name) is not getattr(base, name):
            continue
        received = f"{type(model).__name__} with `{name}` of its own"
        remedy = f"subclass `fliqs.SearchModel` and define `{name}` there"
        if name == "compute_loss":
            raise ValueError(
                "A search minimises the loss that it is compiled with. "
                f"Received: {received}, which would not be called. Instead, "
                f"{remedy}; the model is its `searchable_model`."
            )
        logging.warning(
            "A search trains and tests by steps of its own. Received: %s, "
            "which is not called. If it matters, %s, calling `super()`.",
            received,
            remedy,
        )


def check_controller(
    controller: Any, current: Controller | None, reward: str
) -> None:
    """Raises unless a search can be compiled with a controller.

    Args:
        controller: The controller.
        current: That which the search has, `None` for none.
        reward: Name of the search's reward.
    """
    if not isinstance(controller, Controller):
        raise ValueError(
            "`controller` must be a `fliqs.Controller(...)`. Received: "
            f"controller={controller!r}."
        )
    if controller.built and controller is not current:
        raise ValueError(
            "A controller belongs to one search. Received: one in use. Make a "
            "new one."
        )
    needs_sum = controller.cost_samples > 1
    if needs_sum and reward in rewards.NEEDS_POSITIVE_QUALITY:
        raise ValueError(
            "`cost_samples` above 1 needs a reward that is a sum of quality "
            f"and cost. Received: reward={reward!r}. Use 'absolute' or "
            "'one_sided'."
        )
