"""Tables of pairs to register, and of their results."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.files import replace_atomically
from utils.tables import locate, read_table

PAIR_COLUMNS = ("id", "fixed", "moving")
MATRIX_COLUMNS = tuple(f"h{row}{column}" for row in range(3) for column in range(3))
RESULT_COLUMNS = [
    "id",
    "status",
    "reason",
    "confidence",
    "agreement",
    "n_matches",
    "n_inliers",
    "seconds",
    "transform",
    "transform_reason",
    "matrix",
    *MATRIX_COLUMNS,
    "fixed",
    "moving",
]
RESULTS_NAME = "results.csv"
# Values of the column "matrix": what h00 ... h22 are.
WHOLE_TRANSFORM, AFFINE_PART = "whole transform", "affine part"
# A cell that begins with one of these becomes a formula in a spreadsheet (OWASP, CSV injection).
# The apostrophe is among them, so that taking off one apostrophe gives the cell back.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "'")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class PairToRegister(NamedTuple):
    """One pair to register.

    Attributes:
        id: name of its folder and of its row in the results; "" until it is named.
        fixed, moving: absolute paths of the images.
        extra: further columns of the table, kept in the results.
    """

    id: str
    fixed: str
    moving: str
    extra: dict[str, str]


def absolute(path: str) -> str:
    """An absolute path, which names the same file from any folder; "" stays "".

    Args:
        path: as it was given.
    """
    return os.path.abspath(path) if path else ""


def read_pairs(path: str | Path) -> list[PairToRegister]:
    """Read a table of pairs (:mod:`utils.tables`).

    Args:
        path: of the table. Paths in it are relative to the current folder, or else to the table.

    Returns:
        The pairs; the id is "" where the table has none.

    Raises:
        InputError: missing or unreadable table, or missing columns.
    """
    path = Path(path)
    rows, columns = read_table(path, PAIR_COLUMNS[1:], RESULT_COLUMNS)
    extra = [name for name in columns if name not in RESULT_COLUMNS]
    return [
        PairToRegister(
            id=row.get("id", "").strip(),
            fixed=absolute(locate(row["fixed"], path.parent)),
            moving=absolute(locate(row["moving"], path.parent)),
            extra={name: row[name] for name in extra},
        )
        for row in rows
    ]


def without_formula(cell: object) -> object:
    """A cell that no spreadsheet takes for a formula.

    Text that begins as a formula does gets an apostrophe in front; numbers stay as they are.

    Args:
        cell: of a table.
    """
    text = str(cell)
    if not text.startswith(FORMULA_STARTS) or NUMBER.fullmatch(text):
        return cell
    return f"'{text}"


def with_formula(cell: str) -> str:
    """The cell that :func:`without_formula` was given.

    Args:
        cell: as it is in the file.
    """
    return cell[1:] if cell.startswith("'") else cell


def write_results(
    path: Path, records: Iterable[Mapping[str, object]], extra: Sequence[str]
) -> None:
    """Write the table of results atomically, one row after the other.

    Args:
        path: of the table.
        records: rows with keys of ``RESULT_COLUMNS`` and ``extra``; missing ones are empty.
        extra: further columns, kept from the table of pairs.
    """
    columns = [*RESULT_COLUMNS, *extra]
    with (
        replace_atomically(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as handle,
    ):
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow([without_formula(name) for name in columns])
        for record in records:
            writer.writerow([without_formula(record.get(name, "")) for name in columns])


def read_results(path: str | Path) -> Iterator[dict[str, str]]:
    """Read a table of results; cells are as they were before they were written.

    Args:
        path: of ``results.csv``.
    """
    with open(path, encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            yield {with_formula(name): with_formula(value or "") for name, value in row.items()}
