"""The search space as plain data: decisions, and rules that shape them."""

import dataclasses
import difflib
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

from fliqs_tf.formats import get_format

# FLIQS-S and FLIQS-L. The paper's list of 16 floats is not published: these
# are all ExMy of 4 to 8 bits but the E1My, whose grids are the integers' own.
_KINDS: dict[str, tuple[str, ...]] = {
    "int_s": ("int4", "int8"),
    "int_l": ("int4", "int5", "int6", "int7", "int8"),
    "fp_s": ("e2m1", "e4m3"),
    "fp_l": (
        *("e2m1", "e3m0"),
        *("e2m2", "e3m1", "e4m0"),
        *("e2m3", "e3m2", "e4m1"),
        *("e2m4", "e3m3", "e4m2", "e5m1"),
        *("e2m5", "e3m4", "e4m3", "e5m2"),
    ),
}
# And both kinds at once, which the paper does not search.
SPACES = {
    **_KINDS,
    "mixed_s": (*_KINDS["int_s"], *_KINDS["fp_s"]),
    "mixed_l": (*_KINDS["int_l"], *_KINDS["fp_l"]),
}


def get_space(space: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the canonical format names of a space.

    Args:
        space: A key of `SPACES`, a format name, names joined by commas, or a
            sequence of format names.

    Returns:
        Tuple of at least one format name, in the order given.

    Raises:
        ValueError: If the space is empty, repeats a format or names an unknown
            one.
    """
    if isinstance(space, str):
        if space in SPACES:
            return SPACES[space]
        space = [name.strip() for name in space.split(",") if name.strip()]
    try:
        names = tuple(get_format(name).name for name in space)
    except ValueError as error:
        raise ValueError(
            f"{error} A whole space is one of {', '.join(SPACES)}."
        ) from error
    if not names:
        raise ValueError(
            "A format space needs at least one format. Received: an empty "
            f"space. Name one of {', '.join(SPACES)} or list format names."
        )
    if len(set(names)) != len(names):
        raise ValueError(
            f"A format stands once in a space. Received: {', '.join(names)}."
        )
    return names


@dataclasses.dataclass(frozen=True)
class Decision:
    """One choice that the search makes.

    Args:
        path: Path of the layer, or name of the tied group, it belongs to.
        kind: What is chosen: `"format"` (weights and inputs of a layer
            together), `"weight_format"` or `"input_format"`.
        options: The options, in the order in which they are numbered.
        layers: Paths of the layers it decides for; by default `(path,)`.
    """

    path: str
    kind: str
    options: tuple[str, ...]
    layers: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "layers", self.layers or (self.path,))

    @property
    def name(self) -> str:
        """Unique name: the path, with the kind unless it is the whole layer."""
        return (
            self.path if self.kind == "format" else f"{self.path}:{self.kind}"
        )


# Values of `Rule.input_formats` beside formats.
TIED = "tied"
APART = "apart"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Says what the search may do with the layers it matches.

    A rule matches a layer if all of `path`, `kind` and `predicate` that are
    given do. The first rule that matches decides; layers that none matches get
    the whole space. A rule that matches nothing is an error.

    Example:
    >>> Rule(path="stem", formats="int8")  # Fixed.
    >>> Rule(kind="Dense", formats=("int4", "int8"))  # Fewer options.
    >>> Rule(path="head")  # Left alone, in float.
    >>> Rule(path="block_1/.*", tie="block_1")  # One decision for all.
    >>> Rule(kind="Embedding", input_formats=None)  # Weights only.
    >>> Rule(path=".*", input_formats="apart")  # Two decisions a layer.

    Args:
        path: Regular expression that must match the layer's whole path.
        kind: Regular expression that must match the name of the layer's class,
            such as `"Conv2D"` or `"Conv.*"`.
        predicate: Function `(path, layer) -> bool`.
        formats: Options of these layers: a space, or one format to fix them.
            `None` is the whole space if the rule says `input_formats` or
            `tie`; otherwise the rule leaves its layers alone.
        input_formats: What the inputs of these layers can have: `"tied"` (the
            weights' format, one decision), `"apart"` (the same options, but a
            decision of their own), options of their own, or `None` (inputs
            stay unquantized: weights only).
        tie: Name of one decision for all these layers together.
    """

    path: str = ".*"
    kind: str = ".*"
    predicate: Callable[[str, Any], bool] | None = None
    formats: str | Sequence[str] | None = None
    input_formats: str | Sequence[str] | None = TIED
    tie: str | None = None

    def __post_init__(self):
        for name in ("path", "kind"):
            pattern = getattr(self, name)
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"A rule's {name} is a regular expression. Received: "
                    f"{name}={pattern!r} ({error})."
                ) from error
        if self.formats in (TIED, APART):
            raise ValueError(
                "A rule's `formats` are formats or a space; 'tied' and 'apart' "
                f"go with `input_formats`. Received: formats={self.formats!r}."
            )
        for name in ("formats", "input_formats"):
            value = getattr(self, name)
            if value not in (None, TIED, APART):
                object.__setattr__(self, name, get_space(value))

    @property
    def leaves_alone(self) -> bool:
        """Whether the rule's layers stay as they are."""
        return (
            self.formats is None
            and self.input_formats == TIED
            and (self.tie is None)
        )

    def matches(self, path: str, kind: str, layer: Any) -> bool:
        """Whether the rule is about a layer of this path and class name."""
        return (
            re.fullmatch(self.path, path) is not None
            and re.fullmatch(self.kind, kind) is not None
            and (self.predicate is None or bool(self.predicate(path, layer)))
        )

    def __str__(self) -> str:
        said = []
        if self.path != ".*" or (self.kind == ".*" and not self.predicate):
            said.append(f"path={self.path!r}")
        if self.kind != ".*":
            said.append(f"kind={self.kind!r}")
        if self.predicate is not None:
            said.append(f"predicate={self.predicate!r}")
        return ", ".join(said)


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the up to five closest names, joined, for an error message."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.3)
    return ", ".join(close or names[:5]) or "none"
