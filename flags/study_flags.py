"""Flags of a study."""

import re
import shlex
from collections.abc import Sequence

from absl import flags

from fliqs_tf import baselines
from fliqs_tf.flags import run_flags
from fliqs_tf.flags import search_flags
from fliqs_tf.study import Study

flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(search_flags)

METHODS = flags.DEFINE_list(
    "methods",
    ["fliqs", "uniform:int4", "uniform:int8", "uniform:fp32"],
    "Methods to compare, instead of --method: fliqs, or any of "
    f"{', '.join(baselines.NAMES)}.",
)
TARGETS = flags.DEFINE_list(
    "targets", None, "Cost targets, each as --cost_target (default: that one)."
)
SEEDS = flags.DEFINE_list(
    "seeds", None, "Seeds of the runs (default: --seed alone)."
)
VARIANTS = flags.DEFINE_multi_string(
    "variant",
    [],
    "Another space or other settings of the search to run fliqs under, as a "
    "row of its own: name:flag=value,flag=value. May be given several times.",
)
WORKERS = flags.DEFINE_integer(
    "workers",
    1,
    "Runs at a time, each in its own process; 0: only the report of what is "
    "finished.",
    lower_bound=0,
)

# Flags that say where and how a study is run, not what it is.
_PLACES = ("run_dir", "data_dir", "workers")


def _are_methods(names):
    if not names:
        raise flags.ValidationError(
            "Expected methods, such as fliqs,uniform:int4. Received: none."
        )
    return all(search_flags.is_method(name) for name in names)


def _are_seeds(values):
    return values is None or all(
        value.strip().isdigit() and int(value) < 2**32 for value in values
    )


flags.register_validator(METHODS, _are_methods)
flags.register_validator(
    SEEDS,
    _are_seeds,
    "Expected whole numbers of 0 to 2**32 - 1, with commas, such as 0,1,2.",
)


def study_from_flags() -> Study:
    """The study that the flags describe."""
    if search_flags.METHOD.value != search_flags.METHOD.default:
        raise ValueError(
            "A study takes --methods. Received: --method="
            f"{search_flags.METHOD.value}. Write --methods=..., with commas."
        )
    base = search_flags.search_config_from_flags()
    return Study(
        base,
        METHODS.value,
        TARGETS.value or [base.cost_target],
        [int(seed) for seed in SEEDS.value or [base.seed]],
        parse_variants(VARIANTS.value),
    )


def parse_variants(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Reads variants, each `"name:flag=value,flag=value"`.

    Raises:
        ValueError: If one has another form, or the name of another.
    """
    variants: dict[str, dict[str, str]] = {}
    for text in texts:
        name, settings = _parse_variant(text)
        if name in variants:
            raise ValueError(
                "Each variant has a name of its own. Received: variant="
                f"{text!r}, the second of this name. Rename it."
            )
        variants[name] = settings
    return variants


def _parse_variant(text):
    name, _, settings = text.partition(":")
    # A comma within a value, of a list of formats, has no setting behind it.
    pairs = [
        pair.partition("=") for pair in re.split(r",(?=\s*\w+=)", settings)
    ]
    if not re.fullmatch(r"[\w+-]+", name) or not all(eq for _, eq, _ in pairs):
        raise ValueError(
            "A variant is a name and settings, such as early:freeze=0.6,"
            f"warmup=0.1. Received: variant={text!r}."
        )
    return name, {key.strip(): value for key, _, value in pairs}


def command(arguments: Sequence[str]) -> str:
    """The command that makes a study, without where and how it is run."""
    kept = []
    values = iter(arguments)
    for argument in values:
        name, equals, _ = argument.lstrip("-").partition("=")
        if name not in _PLACES:
            kept.append(argument)
        elif not equals:
            next(values, None)
    return shlex.join(["python", "-m", "fliqs_tf.bin.study", *kept])
