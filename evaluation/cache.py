"""Results per pair, kept in ``pairs.csv``; all metrics and the report are computed from them.

``pairs.settings.json`` beside the table holds everything that the rows depend on: the protocol for
all rows, and the settings of each set of pairs and of each method. A row is computed once. Rows of
other settings are an error, so results of different settings are never mixed.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from evaluation.stress import LEVEL_NAMES, Stress
from geometry.accuracy import PairError
from registration.pair_tables import MATRIX_COLUMNS
from utils.errors import InputError
from utils.files import write_text_atomically

# Set, method, pair and stress.
RowKey = tuple[str, str, str, Stress]


@dataclass(frozen=True)
class EvaluationRow:
    """One method on one pair under one stress: a row of ``pairs.csv``.

    Attributes:
        set, method, id, eye: names of the set, the method, the pair and the eye.
        stress: degradation of the moving image.
        status: "ok" or "failed".
        reason: why it failed; "" when it did not.
        error: px at 512; infinite when failed, not a number without landmarks.
        n_matches, n_inliers: numbers of matches, and of those that agree with the matrix.
        seconds: run time of the method.
        matrix: the 9 values of ``H_fix_to_mov`` row by row, in pixels of the degraded pair; empty
            when failed. For a curved transform its affine part (``error`` is that of the whole
            transform).
        checksum: of the pair before the stress.
    """

    set: str
    method: str
    id: str
    eye: str
    stress: Stress
    status: str
    reason: str
    error: PairError
    n_matches: int
    n_inliers: int
    seconds: float
    matrix: tuple[float, ...]
    checksum: str

    @property
    def key(self) -> RowKey:
        """What identifies the row."""
        return (self.set, self.method, self.id, self.stress)


ERROR_NAMES = [item.name for item in fields(PairError)]
COLUMNS = [
    "set",
    "method",
    "id",
    "eye",
    *LEVEL_NAMES,
    "status",
    "reason",
    *ERROR_NAMES,
    "n_matches",
    "n_inliers",
    "seconds",
    *MATRIX_COLUMNS,
    "checksum",
]


def _to_record(row: EvaluationRow) -> dict[str, object]:
    matrix = dict(
        zip(MATRIX_COLUMNS, map(repr, row.matrix) if row.matrix else [""] * 9, strict=True)
    )
    values = vars(row) | asdict(row.stress) | asdict(row.error) | matrix
    return {name: values[name] for name in COLUMNS}


def _from_record(record: dict[str, str]) -> EvaluationRow:
    stress = Stress(**{name: float(record[name]) for name in LEVEL_NAMES})
    error = PairError(**{name: float(record[name]) for name in ERROR_NAMES})
    matrix = tuple(float(record[name]) for name in MATRIX_COLUMNS) if record["h00"] else ()
    return EvaluationRow(
        set=record["set"],
        method=record["method"],
        id=record["id"],
        eye=record["eye"],
        stress=stress,
        status=record["status"],
        reason=record["reason"],
        error=error,
        n_matches=int(record["n_matches"]),
        n_inliers=int(record["n_inliers"]),
        seconds=float(record["seconds"]),
        matrix=matrix,
        checksum=record["checksum"],
    )


def read_rows(path: Path) -> list[EvaluationRow]:
    """Read ``pairs.csv``.

    Raises:
        InputError: no such table, or a table of another format.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such table of results; evaluate.py writes it.")
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        if reader.fieldnames != COLUMNS:
            raise ValueError("other columns")
        return [_from_record(record) for record in reader]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError, csv.Error, InputError) as error:
        raise InputError(
            f"{path}: not a table of results of this version ({error}); evaluate into another "
            "--out, or --overwrite it."
        ) from error


class PairCache:
    """The rows of a folder, and the settings that they were computed with.

    Args:
        folder: of the evaluation.
        protocol: settings that all rows depend on.
        name: of the table, without its suffix.
        overwrite: ignore existing rows.

    Attributes:
        table, settings_file: paths of the table and of its settings.
        settings: by kind ("protocol", "sets", "methods").
        rows: by key.

    Raises:
        InputError: the folder holds rows of another protocol, or rows without settings.
    """

    def __init__(
        self, folder: Path, protocol: dict[str, Any], name: str = "pairs", overwrite: bool = False
    ) -> None:
        self.table, self.settings_file = folder / f"{name}.csv", folder / f"{name}.settings.json"
        self.settings: dict[str, dict[str, Any]] = {
            "protocol": _as_json(protocol),
            "sets": {},
            "methods": {},
        }
        self.rows: dict[RowKey, EvaluationRow] = {}
        if overwrite or not (self.table.exists() or self.settings_file.exists()):
            return
        known = self._read_settings()
        self._require_equal(known["protocol"], self.settings["protocol"], "of the protocol")
        self.settings |= {"sets": known["sets"], "methods": known["methods"]}
        if self.table.exists():
            self.rows = {row.key: row for row in read_rows(self.table)}

    def _read_settings(self) -> dict[str, Any]:
        try:
            content = json.loads(self.settings_file.read_text(encoding="utf-8"))
            return {name: dict(content[name]) for name in ("protocol", "sets", "methods")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.settings_file}: missing or unreadable, so the settings of the rows of "
                f"{self.table.name} are unknown; evaluate into another --out, or --overwrite them."
            ) from error

    def _require_equal(self, old: dict[str, Any], new: dict[str, Any], whose: str) -> None:
        changed = [
            f"{name} was {old.get(name)!r} and is now {new.get(name)!r}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        if changed:
            raise InputError(
                f"{self.table}: holds results of other settings {whose}: {'; '.join(changed)}. "
                "They are not mixed: evaluate into another --out, or --overwrite them."
            )

    def declare_set(self, name: str, settings: dict[str, Any]) -> None:
        """State the settings of a set of pairs, before its rows are read or added.

        Args:
            name: of the set.
            settings: everything that its pairs depend on.

        Raises:
            InputError: there are rows of a set of this name with other settings.
        """
        self._declare("sets", name, settings, any(row.set == name for row in self.rows.values()))

    def declare_method(self, name: str, settings: dict[str, Any]) -> None:
        """State the settings of a method, before its rows are read or added.

        Args:
            name: of the method.
            settings: everything that its results depend on.

        Raises:
            InputError: there are rows of this method with other settings.
        """
        self._declare(
            "methods", name, settings, any(row.method == name for row in self.rows.values())
        )

    def _declare(self, kind: str, name: str, settings: dict[str, Any], has_rows: bool) -> None:
        settings = _as_json(settings)
        if has_rows:
            self._require_equal(self.settings[kind].get(name, {}), settings, f"of {name}")
        self.settings[kind][name] = settings

    def get(
        self, set_name: str, method: str, pair_id: str, stress: Stress, checksum: str
    ) -> EvaluationRow | None:
        """The row, or None if it has not been computed.

        Args:
            set_name, method, pair_id, stress: the key of the row.
            checksum: of the pair before the stress.

        Raises:
            InputError: the row was computed on other images or landmarks of the same name.
        """
        row = self.rows.get((set_name, method, pair_id, stress))
        if row is not None:
            self._require_equal(
                {"images and landmarks": row.checksum},
                {"images and landmarks": checksum},
                f"of {pair_id}",
            )
        return row

    def add(self, row: EvaluationRow) -> None:
        """Add a row in memory; :meth:`write` writes it to the disk."""
        self.rows[row.key] = row

    def write(self) -> None:
        """Write the settings, then the table: a table without settings cannot be read back."""
        write_text_atomically(self.settings_file, json.dumps(self.settings, indent=2) + "\n")
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_to_record(row) for row in self.rows.values())
        write_text_atomically(self.table, buffer.getvalue())


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as JSON returns them: tuples become lists."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return plain
