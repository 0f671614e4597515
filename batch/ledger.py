"""Which rows of a table are done: kept from the journal, or appended to it.

Only the place of each row in the journal is held in memory, not its content.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from batch.folder import is_valid_id
from batch.journal import Journal
from batch.pair_folder import is_manual
from batch.run_record import key_of
from batch.work import Record, failed_record
from registration.pair_names import Paths
from registration.pair_tables import PairToRegister

NOT_DONE = -1


class Line(NamedTuple):
    """What is needed of a line of the journal to know whether its row is kept.

    Attributes:
        offset: of the line.
        key: checksum of all that the row depends on.
        images: paths of the fixed and of the moving image.
        has_files: whether the folder of the pair was written.
        is_ok: whether the pair was registered.
    """

    offset: int
    key: str
    images: Paths
    has_files: bool
    is_ok: bool


def last_lines(journal: Journal) -> dict[str, Line]:
    """The last line of every id of a journal; only that counts.

    Args:
        journal: open.
    """
    lines = {}
    for offset, content in journal.entries():
        record = content["record"]
        images = (record["fixed"], record["moving"])
        is_ok = record["status"] == "ok"
        lines[content["id"]] = Line(offset, content["key"], images, content["files"], is_ok)
    return lines


class Ledger:
    """The rows of a table beside the journal.

    Args:
        journal: open.
        lines: last line of every id of the journal, from :func:`last_lines`.
        out: folder of the results.
        rows: of the table, all with an id.
        run_fingerprint: of weights and settings.
        retry_failed: do rows again that have failed.

    Attributes:
        refused: reason why a row cannot be registered, by its index: an id that is no plain name or
            occurs twice. These rows are not in the journal.
        n_kept: number of rows that are done already.
        n_changed: number of rows that are done again, because their images, or the files of their
            folder, are not those of the journal.
        n_others: number of rows of earlier tables, which stay in the results.
    """

    def __init__(
        self,
        journal: Journal,
        lines: Mapping[str, Line],
        out: Path,
        rows: Sequence[PairToRegister],
        run_fingerprint: str,
        retry_failed: bool = False,
    ) -> None:
        self.rows, self.journal, self._out = rows, journal, out
        self._fingerprint = run_fingerprint
        self.refused = refused_rows(rows, out)
        self._offsets = array("q", [NOT_DONE]) * len(rows)
        self._others: dict[str, int] = {}
        self._other_columns: dict[str, None] = {}
        self._n_ok = 0
        self.n_changed = 0
        self._find_kept(lines, retry_failed)
        self.n_kept = sum(offset != NOT_DONE for offset in self._offsets)

    def _find_kept(self, lines: Mapping[str, Line], retry_failed: bool) -> None:
        index_of = {row.id: i for i, row in enumerate(self.rows) if i not in self.refused}
        images = {(self.rows[i].fixed, self.rows[i].moving) for i in index_of.values()}
        for name, line in lines.items():
            index = index_of.get(name)
            if index is None:
                # The same images under an id that the table no longer has are not a row twice.
                if line.images not in images:
                    self._others[name] = line.offset
                    extra = self.journal.at(line.offset)["extra"]
                    self._other_columns |= dict.fromkeys(extra)
                continue
            changed = line.key != self.key_of(index) or (
                line.has_files and not (self._out / name / "transform.json").is_file()
            )
            self.n_changed += changed
            # --retry_failed must not replace what a person rescued.
            kept = line.is_ok or not retry_failed or is_manual(self._out / name)
            if not changed and kept:
                self._offsets[index] = line.offset
                self._n_ok += line.is_ok

    @property
    def n_ok(self) -> int:
        """Number of rows of the table that are registered."""
        return self._n_ok

    @property
    def n_done(self) -> int:
        """Number of rows of the table that have a result, refused ones included."""
        return sum(offset != NOT_DONE for offset in self._offsets) + len(self.refused)

    @property
    def n_others(self) -> int:
        """Number of rows of earlier tables."""
        return len(self._others)

    def to_do(self) -> Iterator[int]:
        """Indices of the rows without a result."""
        for index, offset in enumerate(self._offsets):
            if offset == NOT_DONE and index not in self.refused:
                yield index

    def key_of(self, index: int) -> str:
        """Checksum of all that a row depends on, as its files are now.

        Args:
            index: of the row.
        """
        return key_of(self.rows[index], self._fingerprint)

    def add(self, index: int, record: Record, key: str) -> None:
        """Append a finished row to the journal.

        Args:
            index: of the row.
            record: its result.
            key: from before it was registered, so that files that changed meanwhile are noticed.

        Raises:
            OSError: no space, or a failing disk.
        """
        row = self.rows[index]
        has_files = (self._out / row.id / "transform.json").is_file()
        content = {
            "id": row.id,
            "key": key,
            "files": has_files,
            "record": record,
            "extra": row.extra,
        }
        self._offsets[index] = self.journal.append(content)
        self._n_ok += record["status"] == "ok"

    def extra_columns(self) -> list[str]:
        """Columns of the user: those of the table, then those of earlier tables."""
        own = dict.fromkeys(self.rows[0].extra) if self.rows else {}
        return list(own | self._other_columns)

    def records(self) -> Iterator[Record]:
        """The finished rows in the order of the table, then those of earlier tables."""
        for index, row in enumerate(self.rows):
            if index in self.refused:
                yield failed_record(row, self.refused[index]) | row.extra
            elif self._offsets[index] != NOT_DONE:
                yield self.journal.at(self._offsets[index])["record"] | row.extra
        for offset in self._others.values():
            content = self.journal.at(offset)
            yield content["record"] | content["extra"]


def refused_rows(rows: Sequence[PairToRegister], out: Path) -> dict[int, str]:
    """Rows whose id cannot be the name of their folder.

    Args:
        rows: of a table.
        out: folder of the results.

    Returns:
        The reason by the index of the row.
    """
    reasons: dict[int, str] = {}
    seen: set[str] = set()
    for index, row in enumerate(rows):
        if not is_valid_id(row.id):
            reasons[index] = f"id {row.id!r} is not a plain name; it becomes a folder below {out}."
        elif row.id.casefold() in seen:
            reasons[index] = f"id {row.id} occurs twice; the first row keeps it."
        seen.add(row.id.casefold())
    return reasons
