"""From a Keras model to a searchable one, and to a fixed one.

Both clone the model layer by layer (`keras.models.clone_model`): kernel layers
become their searchable form, everything else is cloned as it is, weights are
copied. The model that was given is never changed.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence

import keras

from fliqs_tf.assignment import Assignment
from fliqs_tf.layers.base import TIED
from fliqs_tf.layers.base import SearchableLayer
from fliqs_tf.layers.base import graph_of
from fliqs_tf.layers.base import searchable_form
from fliqs_tf.layers.base import searchable_layers
from fliqs_tf.layers.base import walk
from fliqs_tf.quantizers import check_range
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
) -> keras.Model:
    """Clones a model with a choice of formats in every kernel layer.

    Args:
        model: Built Functional or Sequential model, trained or not.
        space: Key of `fliqs.SPACES`, a format, or a sequence of formats.
        rules: Exceptions; the first that matches a layer's path decides.
        input_range: Where the scale of inputs comes from: `"ema"` or
            `"dynamic"`, see `fliqs.layers`.

    Returns:
        A model of the same class, names and weights. Its attribute
        `conversion_report` tells what was left alone and why.

    Raises:
        ValueError: If the model has no searchable layer, is not built, is
            searchable already, or a rule matches nothing.
    """
    space = get_space(space)
    check_range(input_range)
    _check_model(model)
    if any(isinstance(layer, SearchableLayer) for _, layer in walk(model)):
        raise ValueError(
            "`to_searchable` takes a plain Keras model. Received: a model with "
            "searchable layers. Convert the original, or use `to_fixed`."
        )
    formats: dict[str, tuple[str, ...]] = {}
    left_alone = {}
    used = set()
    for path, layer in walk(model):
        if searchable_form(layer) is None:
            if any(len(weight.shape) > 1 for weight in layer.weights):
                kind = type(layer).__name__
                left_alone[path] = f"{kind} has no searchable form"
            continue
        rule = next((r for r in rules if r.matches(path)), None)
        used.add(rule)
        if rule is None:
            formats[path] = space
        elif rule.formats is None:
            left_alone[path] = f"rule {rule.path!r}"
        else:
            formats[path] = get_space(rule.formats)
    _check_rules(rules, used, model)
    if not formats:
        raise ValueError(
            "A search needs a layer with a searchable form (see "
            "`fliqs.layers`). Received: a model whose layers are "
            f"{sorted({type(la).__name__ for _, la in walk(model)})}"
            f"{', all left alone by rules' if left_alone else ''}."
        )

    def arguments(path, layer):
        if path not in formats:
            return None
        return {"formats": formats[path], "input_range": input_range}

    searchable = _clone(model, arguments)
    searchable.conversion_report = ConversionReport(
        tuple(formats), dict(left_alone)
    )
    return searchable


def to_fixed(
    model: keras.Model, assignment: Mapping, input_range: str = "ema"
) -> keras.Model:
    """Clones a model with one format a layer.

    Args:
        model: A built plain, searchable or fixed model, or a `SearchModel`.
        assignment: Path -> format for every searchable layer of the model.
        input_range: As in `to_searchable`, for layers that are plain Keras
            layers so far; others keep theirs.

    Returns:
        A Functional or Sequential model of the same weights and names.

    Raises:
        ValueError: If the assignment names a layer that the model lacks, or
            misses one.
    """
    model = getattr(model, "searchable_model", model)
    check_range(input_range)
    _check_model(model)
    if not isinstance(assignment, Assignment):
        assignment = Assignment(assignment)
    check_assignment(model, assignment)

    def arguments(path, layer):
        if path not in assignment:
            return None
        weight, inputs = assignment.formats(path)
        return {
            "formats": weight,
            "input_formats": TIED if inputs == weight else inputs,
            "input_range": getattr(layer, "input_range", input_range),
        }

    return _clone(model, arguments)


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
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            "Expected a built model. Received: one without weights yet. Give "
            "it an `Input`, or call it once on a batch."
        )
    if graph_of(model) is None:
        raise ValueError(
            "Expected a Functional or Sequential model. Received: "
            f"{type(model).__name__}, a subclass of `keras.Model`. Build it "
            "with the functional API, or use the layers of `fliqs.layers` in "
            "it directly."
        )


def _check_rules(rules, used, model):
    paths = searchable_layers(model)
    for rule in rules:
        if rule not in used:
            raise ValueError(
                "Every rule must decide for at least one layer. Received: "
                f"path={rule.path!r}, which matches none that an earlier rule "
                f"has not taken. Nearest paths: {nearest(rule.path, paths)}."
            )


def _clone(model: keras.Model, arguments: Callable) -> keras.Model:
    """Clones; `arguments(path, layer)` are the keywords of searchable forms."""
    paths = {id(layer): path for path, layer in walk(model)}

    def clone_layer(layer):
        keywords = None
        if id(layer) in paths:
            keywords = arguments(paths[id(layer)], layer)
        if keywords is None:
            return layer.__class__.from_config(layer.get_config())
        form = searchable_form(layer)
        return form.from_config({**layer.get_config(), **keywords})

    clone = keras.models.clone_model(
        model, clone_function=clone_layer, recursive=_has_models(model)
    )
    for (_, source), (_, target) in zip(walk(model), walk(clone), strict=True):
        _copy_weights(source, target)
    return clone


def _has_models(model):
    return any(isinstance(layer, keras.Model) for layer in model.layers)


def _copy_weights(source, target):
    if not isinstance(target, SearchableLayer):
        target.set_weights(source.get_weights())
        return
    values = {w.name: w for w in source.weights}
    for variable in target.weights:
        if variable.name in values and not variable.name.endswith("_choice"):
            variable.assign(values[variable.name])
