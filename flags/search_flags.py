"""Flags of a search."""

import dataclasses

from absl import flags

from fliqs_tf import baselines
from fliqs_tf import costs
from fliqs_tf import rewards
from fliqs_tf.config import SearchConfig
from fliqs_tf.controller import CREDITS
from fliqs_tf.flags import run_flags
from fliqs_tf.quality import QUALITIES
from fliqs_tf.space import APART
from fliqs_tf.space import SPACES
from fliqs_tf.space import TIED
from fliqs_tf.space import get_space

flags.adopt_module_key_flags(run_flags)

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(SearchConfig)}

SPACE = flags.DEFINE_string(
    "space",
    _DEFAULTS["space"],
    f"Formats to choose from: {', '.join(SPACES)}, or names joined by commas.",
)
INPUT_FORMATS = flags.DEFINE_string(
    "input_formats",
    _DEFAULTS["input_formats"],
    "Formats of a layer's inputs: tied (the weights', one decision a layer), "
    "apart (the space's, a decision of their own), float (not rounded), or a "
    "format or formats joined by commas, such as int8.",
)
METHOD = flags.DEFINE_string(
    "method",
    _DEFAULTS["method"],
    "How formats are found: fliqs (the search in the run that trains), or one "
    f"of {', '.join(baselines.NAMES)}.",
)
COST = flags.DEFINE_string(
    "cost",
    _DEFAULTS["cost"],
    f"Cost that is bounded: {', '.join(costs.NAMES)}, or table:<file.json> "
    "for a table of hardware costs, see fliqs_tf.bin.latency.",
)
COST_TARGET = flags.DEFINE_string(
    "cost_target",
    _DEFAULTS["cost_target"],
    "Largest cost allowed: a number in the cost's unit (GBOPs, MiB), a "
    "multiple of a uniform format's cost, such as 1.25xint4, or a per cent of "
    "the float32 model's, such as 10%.",
)
BOUNDS = flags.DEFINE_string(
    "bounds",
    _DEFAULTS["bounds"],
    "Further costs that the result has to keep, such as "
    "size:0.05,memory:1.5xint4.",
)
REWARD = flags.DEFINE_enum(
    "reward",
    _DEFAULTS["reward"],
    list(rewards.NAMES),
    "How quality and cost make the reward.",
)
BETA = flags.DEFINE_float(
    "beta",
    _DEFAULTS["beta"],
    "Weight of the cost in the reward, in units of the quality. At one below "
    "what formats of more cost are worth, the policy stays above the target "
    "until the freeze.",
    lower_bound=0.0,
    upper_bound=1000.0,
)
QUALITY = flags.DEFINE_enum(
    "quality",
    _DEFAULTS["quality"],
    list(QUALITIES),
    "Quality of a sample: minus the batch's loss, or its accuracy.",
)
CONTROLLER_LEARNING_RATE = flags.DEFINE_float(
    "controller_learning_rate",
    _DEFAULTS["controller_learning_rate"],
    "Learning rate of the controller's Adam.",
    lower_bound=1e-9,
    upper_bound=10.0,
)
WARMUP = flags.DEFINE_float(
    "warmup",
    _DEFAULTS["warmup"],
    "Fraction of the run in which only the weights learn.",
    lower_bound=0.0,
    upper_bound=0.99,
)
ACTIVATION_DELAY = flags.DEFINE_float(
    "activation_delay",
    _DEFAULTS["activation_delay"],
    "Fraction of the run before inputs of layers are quantized; at most "
    "--warmup.",
    lower_bound=0.0,
    upper_bound=0.99,
)
FREEZE = flags.DEFINE_float(
    "freeze",
    _DEFAULTS["freeze"],
    "Fraction of the run after which the formats are fixed; above --warmup.",
    lower_bound=0.01,
    upper_bound=1.0,
)
ENTROPY_WEIGHT = flags.DEFINE_float(
    "entropy_weight",
    _DEFAULTS["entropy_weight"],
    "Final weight of the entropy penalty.",
    lower_bound=0.0,
    upper_bound=100.0,
)
BASELINE_MOMENTUM = flags.DEFINE_float(
    "baseline_momentum",
    _DEFAULTS["baseline_momentum"],
    "Momentum of the reward's moving average.",
    lower_bound=0.0,
    upper_bound=0.9999,
)
COST_SAMPLES = flags.DEFINE_integer(
    "cost_samples",
    _DEFAULTS["cost_samples"],
    "Samples from which the cost's share of the controller's gradient is "
    "estimated at each step; 1 is the paper's setting.",
    lower_bound=1,
    upper_bound=65536,
)
CREDIT = flags.DEFINE_enum(
    "credit",
    _DEFAULTS["credit"],
    list(CREDITS),
    "What the quality of a sample teaches the controller: REINFORCE from the "
    "sample as a whole, the paper's setting, or a critic's share for each "
    "decision, which needs --cost_samples above 1.",
)
PRIOR_WEIGHT = flags.DEFINE_float(
    "prior_weight",
    _DEFAULTS["prior_weight"],
    "How much the policy at the start goes by what each format of each layer "
    "alone does to the output of the --model_file (a divergence, relative to "
    "the mean that the best assignment within the budget has). That policy "
    "keeps the budget, as far as --beta asks for it. 0 for a uniform one, the "
    "paper's setting.",
    lower_bound=0.0,
    upper_bound=10000.0,
)


def _is_space(value):
    try:
        get_space(value)
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error
    return True


def _are_input_formats(value):
    return value in (TIED, APART, "float") or _is_space(value)


def is_method(value: str) -> bool:
    """Whether a name is a method; raises with the message if not."""
    try:
        if value != "fliqs":
            baselines.get(value)
    except ValueError as error:
        raise flags.ValidationError(f"Besides fliqs: {error}") from error
    return True


def _is_cost(value):
    try:
        costs.get(value)
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error
    return True


def _are_bounds(value):
    try:
        return all(map(_is_cost, costs.parse_bounds(value)))
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error


def _are_phases(values):
    if values["activation_delay"] <= values["warmup"] < values["freeze"]:
        return True
    raise flags.ValidationError(
        "Expected --activation_delay <= --warmup < --freeze. Received: "
        f"{values['activation_delay']}, {values['warmup']}, "
        f"{values['freeze']}."
    )


flags.register_validator(SPACE, _is_space)
flags.register_validator(INPUT_FORMATS, _are_input_formats)
flags.register_validator(METHOD, is_method)
flags.register_validator(COST, _is_cost)
flags.register_validator(BOUNDS, _are_bounds)
flags.register_multi_flags_validator(
    [ACTIVATION_DELAY, WARMUP, FREEZE], _are_phases
)


def search_config_from_flags() -> SearchConfig:
    """The configuration that the flags describe."""
    return SearchConfig(
        space=SPACE.value,
        input_formats=INPUT_FORMATS.value,
        method=METHOD.value,
        cost=COST.value,
        cost_target=COST_TARGET.value,
        bounds=BOUNDS.value,
        reward=REWARD.value,
        beta=BETA.value,
        quality=QUALITY.value,
        controller_learning_rate=CONTROLLER_LEARNING_RATE.value,
        warmup=WARMUP.value,
        activation_delay=ACTIVATION_DELAY.value,
        freeze=FREEZE.value,
        entropy_weight=ENTROPY_WEIGHT.value,
        baseline_momentum=BASELINE_MOMENTUM.value,
        cost_samples=COST_SAMPLES.value,
        credit=CREDIT.value,
        prior_weight=PRIOR_WEIGHT.value,
        **run_flags.run_arguments(),
    )
