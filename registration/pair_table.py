"""Tables of pairs to register, and of their results."""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

from utils.errors import InputError
from utils.files import write_text_atomically

RESULT_COLUMNS = [
    "id",
    "status",
    "reason",
    "confidence",
    "n_matches",
    "n_inliers",
    "seconds",
    *(f"h{row}{column}" for row in range(3) for column in range(3)),
]
RESULTS_NAME = "results.csv"
MAX_TABLE_BYTES = 256 << 20


class PairToRegister(NamedTuple):
    """One pair to register; ``extra`` are further columns of the table, kept in the results."""

    id: str
    fixed: str
    moving: str
    extra: dict[str, str]


def read_pairs(path: str | Path) -> list[PairToRegister]:
    """Read a table of pairs. Paths are relative to the current folder, or else to the table's.

    Raises:
        InputError: missing or unreadable table, or missing columns.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such table of pairs.")
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(
                f"{path}: larger than {MAX_TABLE_BYTES >> 20} MB; divide the table of pairs."
            )
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text)))
        columns = next(csv.reader(io.StringIO(text)), [])
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: not a readable CSV table in UTF-8: {error}") from error
    missing = [name for name in ("id", "fixed", "moving") if name not in columns]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing; the header must be id,fixed,moving[,...]."
        )
    extra = [
        name
        for name in columns
        if name not in ("id", "fixed", "moving") and name not in RESULT_COLUMNS
    ]

    def locate(value: str | None) -> str:
        value = (value or "").strip()
        beside = path.parent / value
        # os.path and not pathlib: an impossible name is simply not there, and becomes that row's reason later.
        return (
            str(beside) if value and not os.path.exists(value) and os.path.exists(beside) else value
        )

    return [
        PairToRegister(
            (row["id"] or "").strip(),
            locate(row["fixed"]),
            locate(row["moving"]),
            {name: row[name] or "" for name in extra},
        )
        for row in rows
    ]


def pair_name(fixed: str, moving: str) -> str:
    """Id of a pair given without one: both file names, without what no folder may be called."""
    stems = [re.sub(r"[^\w-]+", "_", Path(path).stem)[:48] for path in (fixed, moving)]
    return "_".join(stems).strip("_") or "pair"


def write_results(path: Path, records: list[dict[str, object]], extra: list[str]) -> None:
    """Write ``results.csv`` atomically; ``extra`` names the columns kept from the table of pairs."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, RESULT_COLUMNS + extra, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    write_text_atomically(path, buffer.getvalue())
