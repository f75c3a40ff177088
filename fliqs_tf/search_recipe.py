"""How formats are searched in a run: the model of the search, its controller.

Beside `recipes.py`, which says how the weights are trained.
"""

import dataclasses

import keras
import numpy as np

from fliqs_tf import costs
from fliqs_tf.config import SearchConfig
from fliqs_tf.controller import Controller
from fliqs_tf.search_model import SearchModel
from fliqs_tf.space import TIED
from fliqs_tf.space import Rule


def make_search(config: SearchConfig, model: keras.Model) -> SearchModel:
    """The search of a configuration in a plain model, not compiled."""
    return SearchModel(
        model,
        space=config.space,
        cost=config.cost,
        cost_target=config.cost_target,
        rules=_input_rules(config.input_formats),
        reward=config.reward,
        beta=config.beta,
        quality=config.quality,
        input_range=config.input_range,
        input_signedness=config.input_signedness,
        seed=config.seed,
        bounds=costs.parse_bounds(config.bounds),
    )


def make_controller(
    config: SearchConfig, prior: np.ndarray | None = None
) -> Controller:
    """The controller of a configuration.

    Args:
        config: The run.
        prior: What is known of the options, see `Controller`.
    """
    return Controller(
        optimizer=keras.optimizers.Adam(config.controller_learning_rate),
        warmup=config.warmup,
        activation_delay=config.activation_delay,
        freeze=config.freeze,
        entropy_weight=config.entropy_weight,
        baseline_momentum=config.baseline_momentum,
        cost_samples=config.cost_samples,
        credit=config.credit,
        prior=prior,
        prior_weight=config.prior_weight,
    )


def check(config: SearchConfig) -> None:
    """Tries the settings of a search, whatever its model and its budget.

    Raises:
        ValueError: What a run would, which a study starts hours later.
    """
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(32)])
    free = dataclasses.replace(
        config, cost="bitops", cost_target=None, bounds=""
    )
    make_search(free, model).compile(controller=make_controller(free))


def _input_rules(input_formats):
    if input_formats == TIED:
        return ()
    return (
        Rule(input_formats=None if input_formats == "float" else input_formats),
    )
