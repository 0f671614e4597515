"""Register the pairs of a table, or go on with them: what register.py does after its arguments."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from batch.engine import Engine, InProcess, StopRequest
from batch.folder import LOG_NAME, belongs_to_others, check_folders, locked, prepare
from batch.journal import JOURNAL_NAME, Journal
from batch.ledger import Ledger, last_lines
from batch.processes import Processes
from batch.results import write_tables
from batch.run import Batch, log
from batch.run_record import RunRecord, record_of
from batch.work import RegistrationWork
from batch.worker_pool import WorkerPool
from registration.pair_names import name_pairs
from registration.pair_tables import RESULTS_NAME, PairToRegister
from utils.device import pick_device
from utils.errors import InputError, RunStoppedError

# Each process holds about half a GB of a GPU for itself; chosen by hand.
MAX_PER_GPU = 8


@dataclass(frozen=True)
class BatchOptions:
    """How a batch runs; nothing of it changes a row.

    Attributes:
        workers: number of processes; 1 for this process itself, None for one per core (or, on a
            cluster, one per GPU).
        cluster: address of a Ray cluster; None for this machine without Ray.
        timeout: seconds a pair; None for no limit.
        overwrite: start anew.
        retry_failed: do rows again that have failed.
        command: that goes on after a stop, for the message.
    """

    workers: int | None = None
    cluster: str | None = None
    timeout: float | None = None
    overwrite: bool = False
    retry_failed: bool = False
    command: str = ""


@dataclass(frozen=True)
class Summary:
    """Numbers of rows of the table: all, registered, kept from before, and new."""

    n_rows: int
    n_ok: int
    n_kept: int
    n_new: int


def n_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: str) -> int:
    """Number of processes of this machine: one per core; on GPUs at most ``MAX_PER_GPU`` for each.

    Args:
        device: of the registration, as in ``utils.device.pick_device``.
    """
    if pick_device(device).type == "cuda":
        return min(n_cores(), MAX_PER_GPU * torch.cuda.device_count())
    return n_cores()


def make_engine(work: RegistrationWork, options: BatchOptions, n_to_do: int) -> Engine:
    """The engine that the options ask for.

    Args:
        work: on the pairs.
        options: of the batch.
        n_to_do: number of pairs; there are no more workers than that.
    """
    if options.cluster is not None:
        # Imported here because Ray takes a quarter of a second.
        from batch.ray_cluster import RayCluster  # noqa: PLC0415

        return WorkerPool(RayCluster(options.cluster, options.workers), work, options.timeout)
    n_workers = min(options.workers or default_workers(work.device), max(n_to_do, 1))
    if n_workers == 1:
        return InProcess(work, options.timeout)
    return WorkerPool(Processes(n_workers), work, options.timeout)


def register_pairs(
    rows: Sequence[PairToRegister],
    work: RegistrationWork,
    options: BatchOptions,
    is_table: bool = True,
    on_done: Callable[[int], None] | None = None,
) -> Summary:
    """Register pairs, and write the tables of their results.

    Args:
        rows: the pairs; those without an id get one.
        work: on the pairs; its ``out`` is the folder of the results.
        options: of the batch.
        is_table: False for one pair that was given alone.
        on_done: called with the number of rows that were finished, after each.

    Raises:
        InputError: a folder, table or setting that cannot be used.
        RunStoppedError: Ctrl-C, SIGTERM or SIGHUP; the rows that were finished are kept.
    """
    out, run = Path(work.out), record_of(work)
    with locked(out), logged(out), StopRequest().listening() as stop:
        only = None if is_table else (rows[0].fixed, rows[0].moving)
        prepare(out, run, options.overwrite, only)
        with Journal(out / JOURNAL_NAME) as journal:
            ledger = _ledger_of(rows, journal, out, run, options)
            _say_what_is_kept(ledger)
            n_new = _run(ledger, work, options, stop, on_done)
            _write_tables(out, ledger)
            summary = Summary(len(rows), ledger.n_ok, ledger.n_kept, n_new)
            log.info("%s", summary)
            if stop.requested:
                raise RunStoppedError(
                    f"{ledger.n_done} of {len(rows)} rows are done and kept in {out}; to go on: "
                    f"{options.command or 'start again'}"
                )
    return summary


def _ledger_of(
    rows: Sequence[PairToRegister],
    journal: Journal,
    out: Path,
    run: RunRecord,
    options: BatchOptions,
) -> Ledger:
    """Give every pair an id, and find what is done.

    Raises:
        InputError: ids whose folders belong to other images.
    """
    lines = last_lines(journal)
    recorded = {name: line.images for name, line in lines.items()}
    named = name_pairs(
        rows,
        {paths: name for name, paths in recorded.items()},
        lambda name, paths: belongs_to_others(out, name, paths, recorded) is None,
    )
    ledger = Ledger(journal, lines, out, named, run.fingerprint, options.retry_failed)
    usable = [row for index, row in enumerate(named) if index not in ledger.refused]
    check_folders(out, usable, recorded, options.overwrite)
    for index, reason in ledger.refused.items():
        log.warning("row %d: %s", index + 1, reason)
    return ledger


def _say_what_is_kept(ledger: Ledger) -> None:
    journal, said = ledger.journal, []
    if ledger.n_kept:
        said.append(f"{ledger.n_kept} of {len(ledger.rows)} rows are done and kept")
    if ledger.n_changed:
        said.append(f"{ledger.n_changed} are done again, for their files have changed")
    if ledger.n_others:
        said.append(f"{ledger.n_others} rows of other pairs stay in {RESULTS_NAME}")
    if journal.n_cut:
        said.append("the last line of the journal was incomplete, its row is done again")
    if journal.n_damaged:
        said.append(
            f"{journal.n_damaged} damaged lines of the journal are ignored, their rows are done "
            "again"
        )
    if said:
        print("; ".join(said), flush=True)
        log.info("; ".join(said))


def _run(
    ledger: Ledger,
    work: RegistrationWork,
    options: BatchOptions,
    stop: StopRequest,
    on_done: Callable[[int], None] | None,
) -> int:
    """Register the rows that are not done. Returns how many were finished."""
    n_to_do = sum(1 for _ in ledger.to_do())
    if not n_to_do:
        return 0
    with closing(make_engine(work, options, n_to_do)) as engine:
        log.info("%d pairs to register with %s: %s", n_to_do, engine.name, work)
        batch = Batch(ledger, engine, Path(work.out), options.timeout, on_done)
        try:
            with stop.at_once():
                batch.run(stop)
        except KeyboardInterrupt:
            log.warning("stopped at the second signal, without waiting for the pair under way")
        return batch.n_new


def _write_tables(out: Path, ledger: Ledger) -> None:
    """Write results.csv and results.parquet.

    Raises:
        InputError: no space.
    """
    try:
        write_tables(out, ledger.records(), ledger.extra_columns())
    except OSError as error:
        raise InputError(
            f"{out / RESULTS_NAME}: cannot be written ({error.strerror or error}); the rows are "
            "kept. Free some space, then the same command writes the table."
        ) from error


@contextmanager
def logged(out: Path) -> Iterator[None]:
    """Append what the batch reports to its log file.

    Args:
        out: folder of the results.
    """
    handler = logging.FileHandler(out / LOG_NAME, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    except (InputError, RunStoppedError) as error:
        log.error("%s", error)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
