"""Markdown tables, and the section of a document that a benchmark rewrites."""

from __future__ import annotations

from pathlib import Path

from utils.errors import InputError
from utils.files import write_text_atomically

# Lines of the document; everything between them is replaced.
MARKERS = ("<!-- table: begin -->", "<!-- table: end -->")


def markdown_table(corner: str, rows: dict[str, dict[str, str]]) -> str:
    """Format cells as a Markdown table, without a final line break.

    Args:
        corner: heading of the first column, which holds the keys of ``rows``.
        rows: cells of each row by column; the first row names the columns. At least one row.
    """
    columns = list(next(iter(rows.values())))
    lines = [[corner, *columns]]
    lines += [[title, *(cells[name] for name in columns)] for title, cells in rows.items()]
    head, *body = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, f"|{'---|' * (len(columns) + 1)}", *body])


def write_into(doc: Path, text: str) -> None:
    """Replace the text between ``MARKERS`` in a document.

    Raises:
        InputError: the document does not exist or lacks a marker.
    """
    content = doc.read_text(encoding="utf-8") if doc.is_file() else ""
    begin, end = MARKERS
    if begin not in content or end not in content:
        raise InputError(f"{doc}: no such file, or it lacks the lines {begin} and {end}.")
    before, rest = content.split(begin, 1)
    after = rest.split(end, 1)[1]
    write_text_atomically(doc, f"{before}{begin}\n\n{text}\n\n{end}{after}")
