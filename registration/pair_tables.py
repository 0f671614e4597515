"""Tables of pairs to register, and of their results."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError
from utils.files import write_text_atomically

PAIR_COLUMNS = ("id", "fixed", "moving")
MATRIX_COLUMNS = tuple(f"h{row}{column}" for row in range(3) for column in range(3))
RESULT_COLUMNS = [
    "id",
    "status",
    "reason",
    "confidence",
    "n_matches",
    "n_inliers",
    "seconds",
    *MATRIX_COLUMNS,
]
RESULTS_NAME = "results.csv"
MAX_TABLE_BYTES = 256 << 20  # larger tables are refused
MAX_STEM = 48  # characters of either file name in the id of a pair


class PairToRegister(NamedTuple):
    """One pair to register.

    Attributes:
        id: name of its folder and of its row in the results.
        fixed, moving: paths of the images.
        extra: further columns of the table, kept in the results.
    """

    id: str
    fixed: str
    moving: str
    extra: dict[str, str]


def read_pairs(path: str | Path) -> list[PairToRegister]:
    """Read a table of pairs (CSV, UTF-8).

    Args:
        path: of the table. Paths in it are relative to the current folder, or else to the table.

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
    missing = [name for name in PAIR_COLUMNS if name not in columns]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing; the header must be "
            "id,fixed,moving[,...]."
        )
    extra = [name for name in columns if name not in (*PAIR_COLUMNS, *RESULT_COLUMNS)]
    return [
        PairToRegister(
            id=(row["id"] or "").strip(),
            fixed=_locate(row["fixed"], path.parent),
            moving=_locate(row["moving"], path.parent),
            extra={name: row[name] or "" for name in extra},
        )
        for row in rows
    ]


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


def _locate(value: str | None, table_folder: Path) -> str:
    """A path of the table, relative to its folder where it does not exist otherwise."""
    value = (value or "").strip()
    in_table_folder = table_folder / value
    # os.path, unlike pathlib, treats an impossible name as a missing file, which becomes the
    # reason of that row later.
    if value and not os.path.exists(value) and os.path.exists(in_table_folder):
        return str(in_table_folder)
    return value


def pair_name(fixed: str, moving: str) -> str:
    """Id of a pair that is given without one: both file names, reduced to valid characters.

    Args:
        fixed, moving: paths of the images.
    """
    stems = [re.sub(r"[^\w-]+", "_", Path(path).stem)[:MAX_STEM] for path in (fixed, moving)]
    return "_".join(stems).strip("_") or "pair"


def write_results(
    path: Path, records: Sequence[Mapping[str, object]], extra: Sequence[str]
) -> None:
    """Write the table of results atomically.

    Args:
        path: of the table.
        records: rows with the keys ``RESULT_COLUMNS`` and ``extra``.
        extra: further columns, kept from the table of pairs.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*RESULT_COLUMNS, *extra], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text_atomically(path, buffer.getvalue())
