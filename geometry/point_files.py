"""Text files of points, one ``x y`` per line: landmarks and points mapped by a transform."""

from __future__ import annotations

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


def write_points(path: Path, points: np.ndarray) -> None:
    """Write points atomically in the format of :func:`read_points`, with 6 decimals.

    Args:
        path: of the text file.
        points: (N, 2), pixels (x, y).
    """
    write_text_atomically(path, "".join(f"{x:.6f} {y:.6f}\n" for x, y in points))
