"""A file that is proven before it gets its name."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator


@contextlib.contextmanager
def beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new file in the folder of `path`, removed if it is left.

    Args:
        path: What the file is to be renamed to, in the end. Of a link, the
            folder of what it leads to.

    Raises:
        ValueError: If nothing can be written there.
    """
    name = f".{path.name}.{secrets.token_hex(4)}.partial"
    partial = path.resolve().with_name(name)
    try:
        # Not `tempfile`, whose files only their owner may ever read.
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise ValueError(
            f"`path` must be in a folder that can be written. Received: "
            f"path={str(path)!r} ({error.strerror}). Choose another folder, or "
            "change its permissions."
        ) from error
    try:
        yield partial
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def write(partial: pathlib.Path, content: bytes, path: pathlib.Path) -> None:
    """Writes the file.

    Args:
        partial: The file.
        content: All of it.
        path: What it is to be renamed to, for the message.

    Raises:
        OSError: If it does not fit.
    """
    try:
        partial.write_bytes(content)
    except OSError as error:
        raise OSError(
            error.errno,
            f"The file must fit on the disk of `path`. Received: path="
            f"{str(path)!r} ({error.strerror}) for {len(content):,} bytes. "
            "Free some room, or choose another folder; nothing was left behind",
        ) from error


def keep(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Renames the file; a link stays one, and leads to it."""
    os.replace(partial, path.resolve())
