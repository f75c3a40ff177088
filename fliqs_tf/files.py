"""Files of plain data, never half-written."""

import json
import os
from typing import Any


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_json(path: str | os.PathLike, data: Any) -> None:
    """Writes a JSON file beside, then puts it in place at once."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file beside, then puts it in place at once."""
    partial = f"{os.fspath(path)}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)
