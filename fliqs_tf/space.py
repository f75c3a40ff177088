"""The search space as plain data: decisions, and rules that shape them."""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from collections.abc import Sequence

from fliqs_tf.formats import get_format

# FLIQS-S and FLIQS-L. The paper's list of 16 floats is not published: these
# are all ExMy of 4 to 8 bits but the E1My, whose grids are the integers' own.
SPACES: dict[str, tuple[str, ...]] = {
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
        path: Path of the layer (or name of the tied group) it belongs to.
        kind: What is chosen: `"format"` (weights and inputs of a layer
            together), `"weight_format"` or `"input_format"`.
        options: The options, in the order in which they are numbered.
    """

    path: str
    kind: str
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """Unique name: the path, with the kind unless it is the whole layer."""
        return (
            self.path if self.kind == "format" else f"{self.path}:{self.kind}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Says what the search may do with the layers it matches.

    The first rule that matches a layer decides; layers that none matches get
    the whole space. A rule that matches nothing is an error.

    Args:
        path: Regular expression that must match the layer's whole path.
        formats: Options of these layers (a space, or one format to fix them),
            or `None` to leave them alone.
    """

    path: str
    formats: str | Sequence[str] | None = None

    def __post_init__(self):
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(
                "A rule's path is a regular expression. Received: "
                f"path={self.path!r} ({error})."
            ) from error
        if self.formats is not None:
            object.__setattr__(self, "formats", get_space(self.formats))

    def matches(self, path: str) -> bool:
        return re.fullmatch(self.path, path) is not None


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the up to five closest names, joined, for an error message."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.3)
    return ", ".join(close or names[:5]) or "none"
