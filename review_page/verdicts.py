"""``review.csv``: the judgements of a person, one row per pair, kept as they are made.

Several windows and several runs may write at once: each change reads the file under a lock, changes
its own row, and replaces the file. Columns and rows that are not known here are kept.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from dataset.reviews import VERDICTS
from utils.errors import InputError
from utils.files import write_text_atomically
from utils.tables import read_table

COLUMNS = ("id", "verdict", "note")
MAX_NOTE = 2000  # characters
LOCK_SECONDS = 10.0  # a change takes milliseconds


class Verdict(NamedTuple):
    """The judgement of one pair.

    Attributes:
        verdict: one of ``VERDICTS``, or "" for none.
        note: one line of text.
    """

    verdict: str = ""
    note: str = ""


class VerdictStore:
    """The judgements of a folder.

    Args:
        path: of ``review.csv``, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cached: tuple[tuple[int, int], dict[str, Verdict]] | None = None

    def read(self) -> dict[str, Verdict]:
        """All judgements by the id of the pair.

        Raises:
            InputError: an unreadable file.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return {}
        # The inode too: a replaced file may have the size and, on coarse clocks, the time.
        version = (status.st_mtime_ns, status.st_ino)
        if self._cached is None or self._cached[0] != version:
            rows, _ = self._rows()
            found = {row["id"]: Verdict(row["verdict"], row["note"]) for row in rows.values()}
            self._cached = (version, found)
        return dict(self._cached[1])

    def change(self, identity: str, verdict: str | None = None, note: str | None = None) -> Verdict:
        """Change the judgement of one pair; what is None stays as it is in the file.

        Args:
            identity: id of the pair.
            verdict: one of ``VERDICTS``, or "" to take it back.
            note: of any length up to ``MAX_NOTE``; line breaks become blanks.

        Returns:
            The judgement after the change.

        Raises:
            InputError: an unknown verdict, a note that is too long, or a file that cannot be read
                or locked.
        """
        if verdict is not None and verdict not in (*VERDICTS, ""):
            raise InputError(f"{self.path}: a verdict is one of {', '.join(VERDICTS)}.")
        if note is not None and len(note) > MAX_NOTE:
            raise InputError(f"{self.path}: a note has at most {MAX_NOTE} characters.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=LOCK_SECONDS)
        try:
            with lock:
                rows, columns = self._rows()
                row = rows.setdefault(identity, {"id": identity, "verdict": "", "note": ""})
                if verdict is not None:
                    row["verdict"] = verdict
                if note is not None:
                    row["note"] = " ".join(note.replace("\0", "").split())
                self._write(rows, columns)
        except Timeout as error:
            raise InputError(
                f"{self.path}: is locked by another program for more than {LOCK_SECONDS:g} s."
            ) from error
        return Verdict(row["verdict"], row["note"])

    def _rows(self) -> tuple[dict[str, dict[str, str]], list[str]]:
        """Rows by id, and the columns of the file."""
        if not self.path.is_file():
            return {}, list(COLUMNS)
        rows, columns = read_table(self.path, COLUMNS)
        return {row["id"]: row for row in rows}, columns

    def _write(self, rows: Mapping[str, Mapping[str, str]], columns: list[str]) -> None:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        write_text_atomically(self.path, buffer.getvalue())
