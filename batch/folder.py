"""The folder of a batch: one process at a time, and no result of other images overwritten."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from batch.journal import JOURNAL_NAME, Journal
from batch.pair_folder import UNREADABLE, clear_pair, images_of_folder
from batch.run_record import RUN_NAME, RunRecord, read_record
from dataset.reviews import REVIEW_NAME
from registration.pair_names import Paths
from registration.pair_tables import RESULTS_NAME, PairToRegister
from utils.errors import InputError
from utils.files import check_writable
from utils.names import is_plain_name

LOCK_NAME = "register.lock"
LOG_NAME = "register.log"
PARQUET_NAME = "results.parquet"
PAIRS_NAME = "pairs.csv"
REPORT_NAME = "report.html"
RESERVED = frozenset(
    {
        *(RESULTS_NAME, JOURNAL_NAME, RUN_NAME, LOCK_NAME, LOG_NAME, PARQUET_NAME, PAIRS_NAME),
        *(REPORT_NAME, REVIEW_NAME),
    }
)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the folder of a batch; the lock is free again when this process ends in any way.

    Args:
        out: made if it is missing.

    Raises:
        InputError: it cannot be written to, or another process holds it.
    """
    check_writable(out, "--out")
    path = out / LOCK_NAME
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"--out {out}: another process ({_holder(out)}) is working there; wait for it, or give "
            "another folder."
        ) from error
    try:
        _holder_file(out).write_text(f"{os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        _holder_file(out).unlink(missing_ok=True)
        lock.release()


def _holder_file(out: Path) -> Path:
    return out / f".{LOCK_NAME}.holder"


def _holder(out: Path) -> str:
    try:
        return f"process {_holder_file(out).read_text(encoding='utf-8')}"
    except OSError:
        return "unknown"


def prepare(out: Path, run: RunRecord, overwrite: bool, only: Paths | None) -> None:
    """Make a folder ready for a run: go on with its rows, or start anew.

    Args:
        out: folder of the results.
        run: weights and settings of now.
        overwrite: remove all results that the journal names.
        only: images of the one pair to register; rows of this pair alone are replaced when the
            settings differ. None for a table.

    Raises:
        InputError: the folder has rows of other weights or settings, or results without a journal.
    """
    journal, results = out / JOURNAL_NAME, out / RESULTS_NAME
    if overwrite:
        _remove_results(out)
    elif not journal.exists() and results.exists():
        raise InputError(
            f"{results}: has no journal beside it, so it was not made by this version; give "
            "another --out, or --overwrite."
        )
    earlier = None if overwrite else read_record(out)
    if journal.exists() and earlier is None and journal.stat().st_size:
        raise InputError(
            f"{out / RUN_NAME}: missing, so the settings of the rows in {JOURNAL_NAME} are "
            "unknown; give another --out, or --overwrite."
        )
    differences = run.differences(earlier) if earlier else []
    if differences:
        if journal.exists() and not _holds_only(journal, only):
            raise InputError(
                f"--out {out}: its rows were made with other settings ({'; '.join(differences)}); "
                "give another --out, or --overwrite to do all rows again."
            )
        _remove_results(out)
        earlier = None
    (run.after(earlier) if earlier else run).write(out)


def _holds_only(journal: Path, only: Paths | None) -> bool:
    with Journal(journal) as lines:
        return all(
            (entry.content["record"]["fixed"], entry.content["record"]["moving"]) == only
            for entry in lines.entries()
        )


def _remove_results(out: Path) -> None:
    """Remove the results that the journal names; the journal last, so that a stop loses nothing."""
    journal = out / JOURNAL_NAME
    if journal.exists():
        with Journal(journal) as lines:
            for entry in lines.entries():
                clear_pair(out / entry.content["id"])
    for name in (RESULTS_NAME, PARQUET_NAME, RUN_NAME, JOURNAL_NAME):
        (out / name).unlink(missing_ok=True)


def is_valid_id(name: str) -> bool:
    """Whether a name can be the folder of a pair beside the files of the batch.

    Args:
        name: id of the pair.
    """
    return is_plain_name(name) and name.casefold() not in RESERVED


def belongs_to_others(
    out: Path, name: str, paths: Paths, recorded: Mapping[str, Paths]
) -> Paths | None:
    """The images to which the folder of a pair belongs, if they are others.

    Args:
        out: folder of the results.
        name: id of the pair.
        paths: of its images.
        recorded: images of every id of the journal.

    Returns:
        Paths of the other images; None if the folder may be written to.
    """
    owner = recorded.get(name)
    if owner is None and is_valid_id(name):
        owner = images_of_folder(out / name)
    return None if owner in (None, paths) else owner


def check_folders(
    out: Path, rows: Sequence[PairToRegister], recorded: Mapping[str, Paths], overwrite: bool
) -> None:
    """Refuse a table whose ids are those of other images.

    Args:
        out: folder of the results.
        rows: all with an id.
        recorded: images of every id of the journal.
        overwrite: replace results of other images; never files that are no results.

    Raises:
        InputError: the message names the first of them.
    """
    names = {name.casefold() for name in (*os.listdir(out), *recorded)}
    taken = []
    for row in rows:
        if row.id.casefold() in names:
            owner = belongs_to_others(out, row.id, (row.fixed, row.moving), recorded)
            if owner is not None and (owner == UNREADABLE or not overwrite):
                taken.append((row, owner))
    if taken:
        row, owner = taken[0]
        whose = "files that are no results" if owner == UNREADABLE else " and ".join(owner)
        raise InputError(
            f"{out / row.id}: belongs to {whose}, not to {row.fixed} and {row.moving}"
            + (f" (and {len(taken) - 1} more)" if len(taken) > 1 else "")
            + "; give another id or another --out"
            + ("." if owner == UNREADABLE else ", or --overwrite to do all rows again.")
        )
