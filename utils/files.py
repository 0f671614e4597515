"""Files are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError


@contextmanager
def replace_atomically(path: str | Path, previous: Path | None = None) -> Iterator[Path]:
    """Write a file so that a crash or an error leaves either the old content or the new, never a part.

    Gives a name beside the target to write to; when the block ends well, that file is flushed to disk and renamed over it.

    Args:
        previous: where the old content goes; replaced in turn.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: str | Path, option: str) -> None:
    """Make a folder and write to it, to find out now and not after the work.

    Args:
        option: by which the user gave it.

    Raises:
        InputError
    """
    folder = Path(folder)
    try:
        probe = folder / f".probe.{os.getpid()}.tmp"
        write_bytes_atomically(probe, b"probe")
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{option} {folder}: cannot be written to ({error}); give another folder."
        ) from error


def write_bytes_atomically(path: str | Path, data: bytes, previous: Path | None = None) -> None:
    """Write a whole file with the guarantee of :func:`replace_atomically`."""
    with replace_atomically(path, previous) as temporary:
        temporary.write_bytes(data)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write UTF-8 text with the same guarantee as :func:`write_bytes_atomically`."""
    write_bytes_atomically(path, text.encode("utf-8"))
