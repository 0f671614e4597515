"""Tables of pairs to register, and of their results."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.files import write_text_atomically
from utils.tables import locate, read_table

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
    rows, columns = read_table(path, PAIR_COLUMNS)
    extra = [name for name in columns if name not in (*PAIR_COLUMNS, *RESULT_COLUMNS)]
    return [
        PairToRegister(
            id=row["id"].strip(),
            fixed=locate(row["fixed"], path.parent),
            moving=locate(row["moving"], path.parent),
            extra={name: row[name] for name in extra},
        )
        for row in rows
    ]


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
