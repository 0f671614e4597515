"""``review.csv``: what a person judged of registered pairs."""

from __future__ import annotations

from pathlib import Path

from utils.errors import InputError
from utils.tables import read_table

REVIEW_NAME = "review.csv"
ACCEPT = "accept"
VERDICTS = (ACCEPT, "reject", "unsure")


def read_verdicts(folder: Path) -> dict[str, str] | None:
    """Verdicts of the pairs of a folder of results.

    Args:
        folder: of ``results.csv``.

    Returns:
        One of ``VERDICTS`` by id, without the pairs that nobody judged; None without a
        ``review.csv``.

    Raises:
        InputError: unreadable file, an unknown verdict, or two verdicts of one pair.
    """
    path = folder / REVIEW_NAME
    if not path.is_file():
        return None
    found: dict[str, str] = {}
    for row in read_table(path, ["id", "verdict"])[0]:
        name, verdict = row["id"], row["verdict"].strip().lower()
        if not verdict:
            continue
        if verdict not in VERDICTS:
            raise InputError(
                f"{path}: pair {name}: verdict {verdict!r} is unknown; use {', '.join(VERDICTS)}."
            )
        if found.setdefault(name, verdict) != verdict:
            raise InputError(f"{path}: pair {name} has two verdicts; remove one row.")
    return found
