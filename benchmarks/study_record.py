"""The record of a study: a JSON file of the results so far and the settings that they hold for.

It makes a study resumable where the checkpoints are gone. null stands for an infinite value: the
error of a failed registration.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from filelock import FileLock

from training.run_config import differences
from utils.errors import InputError
from utils.files import write_text_atomically

# By column of the table: errors of pairs, infinite where a registration failed, or one figure.
Values = dict[str, list[float]]
Key = tuple[str, int]  # variant and seed
DECIMALS = 4  # of a recorded value


class StudyRecord:
    """Results by variant and seed. Several processes may add to the same file.

    Args:
        path: of the JSON file; it need not exist.
        settings: all that the results depend on, besides variant and seed; JSON values.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        # As they are read back: tuples become lists.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def check(self) -> None:
        """Compare the settings with those of the file.

        Raises:
            InputError: an unreadable file, or one with other settings.
        """
        self._read()

    def drop(self, seeds: list[int]) -> None:
        """Remove the results of some seeds; all results, if the file has other settings.

        Args:
            seeds: whose results are removed.

        Raises:
            InputError: an unreadable file.
        """
        with self._lock():
            content = self._load()
            same = content["settings"] == self.settings
            rows = [row for row in content["results"] if same and row["seed"] not in seeds]
            self._write(rows)

    def results(self) -> dict[Key, Values]:
        """The recorded values of every variant and seed.

        Raises:
            InputError: see :meth:`check`.
        """
        return {
            (row["variant"], row["seed"]): {
                column: [math.inf if value is None else float(value) for value in values]
                for column, values in row["values"].items()
            }
            for row in self._read()
        }

    def add(self, variant: str, seed: int, values: Values) -> None:
        """Append a result to the file.

        Args:
            variant: a row of the table.
            seed: of the training.
            values: by column.

        Raises:
            InputError: see :meth:`check`.
        """
        plain = {
            column: [round(value, DECIMALS) if math.isfinite(value) else None for value in each]
            for column, each in values.items()
        }
        with self._lock():
            self._write([*self._read(), {"variant": variant, "seed": seed, "values": plain}])

    def _lock(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_name(f".{self.path.name}.lock"))

    def _load(self) -> dict[str, Any]:
        """Content of the file; without one, no results under the present settings."""
        if not self.path.exists():
            return {"settings": self.settings, "results": []}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            return {"settings": dict(content["settings"]), "results": list(content["results"])}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"--record {self.path}: no record of this study ({error!r}); move it away, or give "
                "another --record."
            ) from error

    def _read(self) -> list[dict[str, Any]]:
        content = self._load()
        if content["settings"] != self.settings:
            changed = differences(content["settings"], self.settings)
            raise InputError(
                f"--record {self.path}: its results hold for other settings: "
                f"{'; '.join(changed) or 'it names more of them'}. Give the same settings, another "
                "--record, or --overwrite to start anew."
            )
        return content["results"]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """One line per result, so that a new one is a new line in a comparison of versions."""
        head = json.dumps(self.settings, indent=2, ensure_ascii=False).replace("\n", "\n  ")
        lines = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in rows)
        text = f'{{\n  "settings": {head},\n  "results": [\n{lines}\n  ]\n}}\n'
        write_text_atomically(self.path, text)
