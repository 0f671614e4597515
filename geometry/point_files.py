"""Files of points: one ``x y`` per line, or tables with a header and further columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import write_text_atomically

MAX_POINT_FILE_BYTES = 4 << 20  # about 200 000 points; chosen by hand
MAX_COORDINATE = 1e6  # pixels; larger values are taken for errors of the file


def read_points(path: Path, columns: int) -> np.ndarray:
    """Read points, one per line, values separated by blanks or commas; empty lines are skipped.

    Args:
        path: of the text file.
        columns: number of values per line.

    Returns:
        (N, columns) float64, as a rule pixels (x, y).

    Raises:
        InputError: missing or unreadable file, a line with another number of values, or a value
            that is not a finite number of at most ``MAX_COORDINATE``.
    """
    return _parse(path, _read_text(path), columns)


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file of points; check the path (every image of a real pair needs "
            "one)."
        )
    try:
        if path.stat().st_size > MAX_POINT_FILE_BYTES:
            raise InputError(
                f"{path}: larger than {MAX_POINT_FILE_BYTES >> 20} MB; that is no file of points."
            )
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check its rights and the disk."
        ) from error
    return text


def _parse(path: Path, text: str, columns: int) -> np.ndarray:
    """Points of lines of numbers; see :func:`read_points`."""
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise InputError(f"{path}: line {number} is not numbers: {line[:60]!r}.") from None
        if (
            len(values) != columns
            or not np.isfinite(values).all()
            or max(map(abs, values)) > MAX_COORDINATE
        ):
            raise InputError(
                f"{path}: line {number} must hold {columns} finite numbers of pixels, "
                f"not {line[:60]!r}."
            )
        rows.append(values)
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


@dataclass(frozen=True)
class PointTable:
    """Points in a table that has a header, with its other columns.

    Attributes:
        points: (N, 2) float64, pixels (x, y).
        header: names of the columns.
        rows: cells of the other lines, as they stand in the file.
        places: which columns hold x and y.
        delimiter: "," or ";" or a tab; " " for blanks.
    """

    points: np.ndarray
    header: list[str]
    rows: list[list[str]]
    places: tuple[int, int]
    delimiter: str

    def text_with(self, points: np.ndarray, frame: str, other: str) -> str:
        """The table with mapped points; columns that name the frame get the name of the other.

        Args:
            points: (N, 2), pixels (x, y).
            frame: of the points of this table, "fixed" or "moving".
            other: of the mapped points.
        """
        header = list(self.header)
        for place in self.places:
            renamed = header[place].replace(frame, other)
            taken = renamed != header[place] and renamed in header
            header[place] = f"mapped_{'xy'[self.places.index(place)]}" if taken else renamed
        rows = [list(row) for row in self.rows]
        for row, point in zip(rows, points, strict=True):
            for place, value in zip(self.places, point, strict=True):
                number = f"{value:.6f}"
                row[place] = number.replace(".", ",") if "," in row[place] else number
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter=self.delimiter, lineterminator="\n")
        writer.writerows([header, *rows])
        return buffer.getvalue()


def read_point_table(path: Path, frame: str) -> PointTable | None:
    """Read points of a table with a header; None for a file without one.

    Columns may be divided by commas, semicolons, tabs or blanks. The points are in the columns
    ``x`` and ``y``, or in those whose names begin with the frame and end with x and y.

    Args:
        path: of the file.
        frame: of the points, "fixed" or "moving".

    Raises:
        InputError: unreadable file, no such columns, or a cell that is no number of pixels.
    """
    lines = [line for line in _read_text(path).splitlines() if line.strip()]
    if not lines or all(_number(word) is not None for word in lines[0].replace(",", " ").split()):
        return None
    delimiter = max(",;\t", key=lines[0].count)
    if not lines[0].count(delimiter):
        delimiter, lines = " ", [" ".join(line.split()) for line in lines]
    header, *rows = csv.reader(lines, delimiter=delimiter)
    places = _place(path, header, "x", frame), _place(path, header, "y", frame)
    points = []
    for number, row in enumerate(rows, start=2):
        values = [_number(row[place]) if place < len(row) else None for place in places]
        if any(value is None for value in values):
            raise InputError(
                f"{path}: row {number} has no numbers of pixels in the columns "
                f"{header[places[0]]} and {header[places[1]]}."
            )
        points.append(values)
    return PointTable(
        np.array(points, dtype=np.float64).reshape(-1, 2), header, rows, places, delimiter
    )


def _place(path: Path, header: Sequence[str], axis: str, frame: str) -> int:
    """Which column holds an axis.

    Raises:
        InputError: none or several.
    """
    names = [name.split("[")[0].split("(")[0].strip().casefold() for name in header]
    for fits in (
        lambda name: name == axis,
        lambda name: name.startswith(frame) and name.endswith(axis),
        lambda name: name.endswith(("_" + axis, " " + axis)),
    ):
        found = [place for place, name in enumerate(names) if fits(name)]
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise InputError(
        f"{path}: the header {', '.join(header)[:80]!r} has no single column for {axis}; name the "
        "columns x and y."
    )


def _number(word: str) -> float | None:
    """A finite number of pixels, also with a decimal comma; None for anything else."""
    try:
        value = float(word.strip().replace(",", "."))
    except ValueError:
        return None
    return value if abs(value) <= MAX_COORDINATE else None


def write_points(path: Path, points: np.ndarray) -> None:
    """Write points atomically in the format of :func:`read_points`, with 6 decimals.

    Args:
        path: of the text file.
        points: (N, 2), pixels (x, y).
    """
    write_text_atomically(path, "".join(f"{x:.6f} {y:.6f}\n" for x, y in points))
