"""CSV tables with paths of images, written by users."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from utils.errors import InputError
from utils.stored_image import file_of

MAX_TABLE_BYTES = 256 << 20  # larger tables are refused


def read_table(path: str | Path, required: Sequence[str]) -> tuple[list[dict[str, str]], list[str]]:
    """Read a table (CSV, UTF-8) with a header.

    Args:
        path: of the table.
        required: columns that it must have.

    Returns:
        One dict per row, "" where a row is short; and the names of the columns.

    Raises:
        InputError: missing or unreadable table, or missing columns.
    """
    path = Path(path)
    text = _read_text(path)
    try:
        rows = list(csv.DictReader(io.StringIO(text)))
        columns = next(csv.reader(io.StringIO(text)), [])
    except csv.Error as error:
        raise _unreadable(path, error) from error
    missing = [name for name in required if name not in columns]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing; the header must be "
            f"{','.join(required)}[,...]."
        )
    return [{name: row[name] or "" for name in columns} for row in rows], columns


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such table of pairs.")
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(
                f"{path}: larger than {MAX_TABLE_BYTES >> 20} MB; divide the table of pairs."
            )
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: not a readable CSV table in UTF-8: {error}")


def locate(value: str, table_folder: Path) -> str:
    """A path of a table, relative to its folder where it does not exist otherwise.

    Args:
        value: as the table has it.
        table_folder: folder of the table.
    """
    value = value.strip()
    in_table_folder = table_folder / value
    # os.path, unlike pathlib, treats an impossible name as a missing file, which is reported with
    # its row later.
    if value and not os.path.exists(file_of(value)) and os.path.exists(file_of(in_table_folder)):
        return str(in_table_folder)
    return value
