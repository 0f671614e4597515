"""Atomic writing: a file is complete or absent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import InputError


@contextmanager
def replace_atomically(path: str | Path, previous: Path | None = None) -> Iterator[Path]:
    """Write a file so that after a crash it has either the old or the new content.

    The block writes to a temporary file beside the target. If it ends without an exception, that
    file is flushed to disk and renamed to the target.

    Args:
        path: of the target; missing parent folders are made.
        previous: the old file is renamed to this; None replaces it.

    Yields:
        Path of the temporary file.
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
    """Make a folder and write a test file to it, before any long computation.

    Args:
        folder: for the results.
        option: command-line option that named the folder, for the message.

    Raises:
        InputError: the folder cannot be written to.
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
    """Write a file as :func:`replace_atomically` does.

    Args:
        path: of the file.
        data: its content.
        previous: the old file is renamed to this; None replaces it.
    """
    with replace_atomically(path, previous) as temporary:
        temporary.write_bytes(data)


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write UTF-8 text as :func:`replace_atomically` does.

    Args:
        path: of the file.
        text: its content.
    """
    write_bytes_atomically(path, text.encode("utf-8"))


def sha256_of(path: str | Path) -> str:
    """SHA-256 checksum of a file, in hexadecimal.

    Args:
        path: of the file.
    """
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
