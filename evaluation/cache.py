"""Results pair by pair, kept in ``pairs.csv``: what every figure and the report are computed from.

Beside the table stands ``pairs.settings.json``: everything that the rows depend on, for all of them (the protocol), for
each set of pairs and for each method. A row is computed once; a run that finds rows of other settings refuses to go on
instead of mixing them.
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
from utils.errors import InputError
from utils.files import write_text_atomically


@dataclass(frozen=True)
class EvaluationRow:
    """One method on one pair under one stress: a row of ``pairs.csv``.

    Attributes:
        set, method, id, eye: what was done to what.
        stress: what was done to the moving image first.
        status, reason: "ok", or "failed" and why.
        error: px at 512; infinite when failed.
        h: the matrix ``H_fix_to_mov`` row by row, in the pixels of the stressed pair, of a curved transform the affine
            matrix that it refines (the errors are those of the whole transform); empty when failed.
        checksum: of the pair as it was before the stress.
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
    h: tuple[float, ...]
    checksum: str

    @property
    def key(self) -> tuple:
        """What the row is found by."""
        return (self.set, self.method, self.id, self.stress)


MATRIX_COLUMNS = [f"h{row}{column}" for row in range(3) for column in range(3)]
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
    plain = {
        name: getattr(row, name)
        for name in (
            "set",
            "method",
            "id",
            "eye",
            "status",
            "reason",
            "n_matches",
            "n_inliers",
            "seconds",
            "checksum",
        )
    }
    matrix = dict(zip(MATRIX_COLUMNS, map(repr, row.h) if row.h else [""] * 9, strict=True))
    return plain | asdict(row.stress) | asdict(row.error) | matrix


def _from_record(record: dict[str, str]) -> EvaluationRow:
    stress = Stress(**{name: float(record[name]) for name in LEVEL_NAMES})
    error = PairError(**{name: float(record[name]) for name in ERROR_NAMES})
    matrix = tuple(float(record[name]) for name in MATRIX_COLUMNS) if record["h00"] else ()
    names = ("set", "method", "id", "eye")
    return EvaluationRow(
        *(record[name] for name in names),
        stress,
        record["status"],
        record["reason"],
        error,
        int(record["n_matches"]),
        int(record["n_inliers"]),
        float(record["seconds"]),
        matrix,
        record["checksum"],
    )


def read_rows(path: Path) -> list[EvaluationRow]:
    """Read ``pairs.csv``.

    Raises:
        InputError: no such table, or not one of ours.
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
            f"{path}: not a table of results of this version ({error}); evaluate into another --out, or "
            "--overwrite it."
        ) from error


class PairCache:
    """The rows of a folder, and the settings that they were made with.

    Args:
        folder: of the evaluation.
        protocol: what all rows depend on.
        name: of the table, without its suffix.
        overwrite: forget what is there.

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
        self.rows: dict[tuple, EvaluationRow] = {}
        if overwrite or not (self.table.exists() or self.settings_file.exists()):
            return
        known = self._read_settings()
        self._refuse(known["protocol"], self.settings["protocol"], "of the protocol")
        self.settings |= {"sets": known["sets"], "methods": known["methods"]}
        if self.table.exists():
            self.rows = {row.key: row for row in read_rows(self.table)}

    def _read_settings(self) -> dict[str, Any]:
        try:
            content = json.loads(self.settings_file.read_text(encoding="utf-8"))
            return {name: dict(content[name]) for name in ("protocol", "sets", "methods")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.settings_file}: missing or unreadable, so it is not known what the rows of "
                f"{self.table.name} were made with; evaluate into another --out, or --overwrite them."
            ) from error

    def _refuse(self, old: dict[str, Any], new: dict[str, Any], whose: str) -> None:
        changed = [
            f"{name} was {old.get(name)!r} and is now {new.get(name)!r}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        if changed:
            raise InputError(
                f"{self.table}: holds results of other settings {whose}: {'; '.join(changed)}. They are not mixed: "
                "evaluate into another --out, or --overwrite them."
            )

    def declare_set(self, name: str, settings: dict[str, Any]) -> None:
        """Say what a set of pairs is, before its rows are asked for or added.

        Raises:
            InputError: there are rows of a set of this name with other settings.
        """
        self._declare("sets", name, settings, any(row.set == name for row in self.rows.values()))

    def declare_method(self, name: str, settings: dict[str, Any]) -> None:
        """Say what a method's rows depend on, before they are asked for or added.

        Raises:
            InputError: there are rows of this method with other settings.
        """
        self._declare(
            "methods", name, settings, any(row.method == name for row in self.rows.values())
        )

    def _declare(self, kind: str, name: str, settings: dict[str, Any], has_rows: bool) -> None:
        settings = _as_json(settings)
        if has_rows:
            self._refuse(self.settings[kind].get(name, {}), settings, f"of {name}")
        self.settings[kind][name] = settings

    def get(
        self, set_name: str, method: str, pair_id: str, stress: Stress, checksum: str
    ) -> EvaluationRow | None:
        """The row, if it was computed before.

        Raises:
            InputError: it was, on other images or landmarks of the same name.
        """
        row = self.rows.get((set_name, method, pair_id, stress))
        if row is not None:
            self._refuse(
                {"images and landmarks": row.checksum},
                {"images and landmarks": checksum},
                f"of {pair_id}",
            )
        return row

    def add(self, row: EvaluationRow) -> None:
        """Keep a row; :meth:`write` brings it to the disk."""
        self.rows[row.key] = row

    def write(self) -> None:
        """Write settings and table; settings first, because rows without settings are of no use."""
        write_text_atomically(self.settings_file, json.dumps(self.settings, indent=2) + "\n")
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_to_record(row) for row in self.rows.values())
        write_text_atomically(self.table, buffer.getvalue())


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """As they will be read back: tuples as lists."""
    return json.loads(json.dumps(settings))
