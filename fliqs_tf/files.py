"""Files of plain data, never half-written."""

import json
import math
import os
from collections.abc import Mapping
from typing import Any


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: If it is none, as what another program left half-written.
    """
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(
                f"Expected a JSON file. Received: {os.fspath(path)}, which is "
                f"none ({error}). Delete it, or put a whole one in its place."
            ) from error


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Writes a JSON file beside, then puts it in place at once.

    Numbers that JSON lacks, NaN and the infinities, become `null`.
    """
    text = json.dumps(finite(data), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def finite(data: Any) -> Any:
    """Plain data with `None` for numbers that are not finite."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file beside, then puts it in place at once."""
    partial = f"{os.fspath(path)}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)
