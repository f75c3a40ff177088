"""From a Keras model to a searchable one, and to a fixed one.

Both copy the model (see `model_copy.py`): kernel layers become their
searchable form, everything else stays as it is, weights are copied. The model
that was given is never changed.
"""

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras

from fliqs_tf.assignment import Assignment
from fliqs_tf.attention_products import PRODUCT
from fliqs_tf.attention_products import has_attention
from fliqs_tf.attention_products import with_attention_products
from fliqs_tf.layers.base import is_container
from fliqs_tf.layers.base import kind_of
from fliqs_tf.layers.base import searchable_form
from fliqs_tf.layers.base import searchable_layers
from fliqs_tf.layers.base import walk
from fliqs_tf.layers.children import own_variables
from fliqs_tf.layers.searchable_layer import SearchableLayer
from fliqs_tf.model_copy import copy_model
from fliqs_tf.quantizers import InputQuantizer
from fliqs_tf.quantizers import WeightQuantizer
from fliqs_tf.quantizers import check_range
from fliqs_tf.space import APART
from fliqs_tf.space import TIED
from fliqs_tf.space import Rule
from fliqs_tf.space import get_space
from fliqs_tf.space import nearest


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Args:
        converted: Paths of the layers that became searchable.
        left_alone: Path -> reason, of layers with a kernel that did not.
    """

    converted: tuple[str, ...]
    left_alone: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} layers are searchable."]
        lines += [f"Left alone: {p} ({r})" for p, r in self.left_alone.items()]
        return "\n".join(lines)


def to_searchable(
    model: keras.Model,
    space: str | Sequence[str],
    rules: Sequence[Rule] = (),
    input_range: str = "ema",
    input_signedness: str = "symmetric",
    weight_granularity: str | int = "channel",
    rounding: str = "nearest",
) -> keras.Model:
    """Copies a model with a choice of formats in every kernel layer.

    Functional, Sequential and subclassed models, models in models, wrappers
    (`TimeDistributed`, `Bidirectional`), attention, and layers of one's own
    that hold kernel layers are converted. A layer that is called twice is one
    decision. What has no searchable form passes through.

    Args:
        model: Built model, trained or not.
        space: Key of `fliqs.SPACES`, a format, or a sequence of formats.
        rules: Exceptions; the first that matches a layer decides. See
            `fliqs.rules` for common sets of them.
        input_range: Where the scale of inputs comes from: `"ema"`,
            `"dynamic"`, `"percentile"` or `"lsq"`, see `fliqs.layers`.
        input_signedness: Grids of integer inputs: `"symmetric"`, `"unsigned"`
            or `"affine"`.
        weight_granularity: Weights that share a scale: `"channel"`,
            `"tensor"`, or the size of groups.
        rounding: `"nearest"`, or `"stochastic"` while training.

    Returns:
        A model of the same class, names and weights. Its attribute
        `conversion_report` tells what was left alone and why.

    Raises:
        ValueError: If the model has no searchable layer, is not built, is
            searchable or quantized already, or a rule matches nothing.
    """
    space = get_space(space)
    if isinstance(rules, Rule):
        raise ValueError(
            "`rules` is a sequence of rules, the first that matches decides. "
            f"Received: rules={rules!r}. Put it into a list."
        )
    _check_model(model)
    layers = dict(walk(model))
    if any(isinstance(layer, SearchableLayer) for layer in layers.values()):
        raise ValueError(
            "`to_searchable` takes a plain Keras model. Received: a model with "
            "searchable layers. Convert the original, or use `to_fixed`."
        )
    keywords: dict[str, dict[str, Any]] = {}
    left_alone = {}
    used = set()
    for path, layer in layers.items():
        obstacle = _obstacle(layer)
        if obstacle is not None:
            if obstacle:
                left_alone[path] = obstacle
            continue
        kind = kind_of(layer)
        number = next(
            (i for i, r in enumerate(rules) if r.matches(path, kind, layer)),
            None,
        )
        rule = Rule(formats=space) if number is None else rules[number]
        used.add(number)
        if rule.leaves_alone:
            left_alone[path] = f"rule {rule}"
        else:
            keywords[path] = {
                **_keywords(rule, space),
                "input_range": input_range,
                "input_signedness": input_signedness,
                "weight_granularity": weight_granularity,
                "rounding": rounding,
            }
            _check_keywords(**keywords[path])
    _check_rules(rules, used, model)
    if not keywords:
        raise ValueError(
            "A search needs a layer with a searchable form (see "
            "`fliqs.layers`). Received: a model whose layers are "
            f"{sorted({type(layer).__name__ for layer in layers.values()})}"
            f"{', all left alone' if left_alone else ''}."
        )
    searchable = copy_model(model, keywords)
    searchable.conversion_report = ConversionReport(
        tuple(keywords), dict(left_alone)
    )
    return searchable


def to_fixed(
    model: keras.Model,
    assignment: Mapping | str,
    input_range: str = "ema",
    input_signedness: str = "symmetric",
) -> keras.Model:
    """Copies a model with one format a layer.

    Args:
        model: A built plain, searchable or fixed model, or a `SearchModel`.
        assignment: Path -> format for every searchable layer of the model, or
            one format for all.
        input_range: As in `to_searchable`, for layers that are plain Keras
            layers so far; others keep theirs.
        input_signedness: Likewise.

    Returns:
        A model of the same class, names and weights.

    Raises:
        ValueError: If the assignment names a layer that the model lacks, or
            misses one.
    """
    model = getattr(model, "searchable_model", model)
    check_range(input_range)
    _check_model(model)
    if isinstance(assignment, str):
        assignment = Assignment.uniform(model, assignment)
    elif not isinstance(assignment, Assignment):
        assignment = Assignment(assignment)
    known = searchable_layers(model)
    lacking = [p for p in assignment if p not in known and PRODUCT.fullmatch(p)]
    if lacking and has_attention(model):
        # Found in a model whose attention has products, which this one lacks.
        model = with_attention_products(model)
    check_assignment(model, assignment)
    layers = dict(walk(model))
    keywords = {}
    for path in assignment:
        weight, inputs = assignment.formats(path)
        keywords[path] = {
            "formats": weight,
            "input_formats": TIED if inputs == weight else inputs,
            "input_range": getattr(layers[path], "input_range", input_range),
            "input_signedness": getattr(
                layers[path], "input_signedness", input_signedness
            ),
            "tie": None,
        }
    return copy_model(model, keywords)


def check_assignment(model: keras.Model, assignment: Mapping) -> None:
    """Raises unless an assignment names exactly the layers it must.

    A searchable or fixed model must be named in its searchable layers, a plain
    one in every layer that has a searchable form.
    """
    found = searchable_layers(model)
    made = {p for p, la in found.items() if isinstance(la, SearchableLayer)}
    expected = made or set(found)
    unknown = [path for path in assignment if path not in found]
    missing = [p for p in found if p in expected and p not in assignment]
    if unknown:
        raise ValueError(
            "An assignment names searchable layers of the model. Received: "
            f"unknown {unknown}; nearest to {unknown[0]!r}: "
            f"{nearest(unknown[0], found)}."
        )
    if missing:
        raise ValueError(
            "An assignment gives a format to every searchable layer. "
            f"Received: none for {missing}. Add them ('fp32' leaves a layer "
            "as it is)."
        )


def _check_model(model):
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"Expected a `keras.Model`. Received: {type(model).__name__}."
        )
    layers = dict(walk(model)) if model.built else {}
    unbuilt = [
        path
        for path, layer in layers.items()
        if searchable_form(layer) is not None and not layer.built
    ]
    if not model.built or unbuilt:
        where = f" in layers {', '.join(unbuilt)}" if unbuilt else ""
        raise ValueError(
            f"Expected a built model. Received: one without weights yet{where}."
            " Give it an `Input`, or call it once on a batch."
        )
    quantized = [
        path
        for path, layer in layers.items()
        if getattr(layer, "quantization_mode", None) is not None
    ]
    if quantized:
        raise ValueError(
            "Expected a model with floating-point weights. Received: layers "
            f"{', '.join(quantized)}, quantized by Keras's `quantize`. Convert "
            "the model from before."
        )


def _obstacle(layer):
    """Why a layer cannot be searched: `None` if it can, "" if nobody would."""
    kind = type(layer).__name__
    if searchable_form(layer) is None:
        weights = own_variables(layer) if is_container(layer) else layer.weights
        if all(len(weight.shape) < 2 for weight in weights):
            return ""
        return (
            f"{kind} has no searchable form; `fliqs.layers.searchable` tells "
            "how to give it one"
        )
    if getattr(layer, "lora_enabled", False):
        return "its LoRA weights are not merged into its kernel"
    return None


def _keywords(rule, space):
    """Arguments of a searchable layer that a rule decides for."""
    formats = rule.formats or space
    inputs = rule.input_formats
    if inputs == APART:
        inputs = formats
    return {"formats": formats, "input_formats": inputs, "tie": rule.tie}


def _check_keywords(
    formats,
    input_formats,
    input_range,
    input_signedness,
    weight_granularity,
    rounding,
    tie,
):
    """Raises what the layer would, which Keras would wrap in its config."""
    del tie
    WeightQuantizer(formats, -1, weight_granularity, rounding)
    inputs = formats if input_formats in (TIED, None) else input_formats
    InputQuantizer(inputs, input_range, signedness=input_signedness)


def _check_rules(rules, used, model):
    for number, rule in enumerate(rules):
        if number not in used:
            paths = {
                f"{path} ({kind_of(layer)})": path
                for path, layer in searchable_layers(model).items()
            }
            raise ValueError(
                "Every rule must decide for at least one layer. Received: "
                f"{rule}, which matches none that an earlier rule has not "
                f"taken. Nearest paths: {nearest(rule.path, paths)}."
            )
