"""The loop of a batch: gives pairs to an engine and takes their results into the journal."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from batch.engine import Engine, Fault, Outcome, StopRequest, Task
from batch.ledger import Ledger
from batch.pair_folder import clear_pair
from batch.work import Record, failed_record
from registration.pair_tables import RESULTS_NAME, write_results
from utils.errors import InputError

MAX_RETRIES = 2  # of a pair whose worker died
WAIT_SECONDS = 0.5  # longest time until a stop is noticed
# results.csv is written anew at most so often, and never for more than 1 / 50 of the time.
SNAPSHOT_SECONDS = 60.0
SNAPSHOT_COST = 50.0
LOG_SECONDS = 60.0  # between two lines on the progress in the log
MAX_SHOWN = 100  # tables of at most so many pairs are shown pair by pair

log = logging.getLogger("batch")


class Batch:
    """One run over the rows of a ledger that are not done.

    Args:
        ledger: of the table.
        engine: that registers the pairs.
        out: folder of the results.
        timeout: seconds a pair, for messages; the engine keeps it.
        on_done: called with the number of rows that this run has finished, after each.
    """

    def __init__(
        self,
        ledger: Ledger,
        engine: Engine,
        out: Path,
        timeout: float | None = None,
        on_done: Callable[[int], None] | None = None,
    ) -> None:
        self._ledger, self._engine, self._out, self._timeout = ledger, engine, out, timeout
        self._on_done = on_done
        self._waiting = ledger.to_do()
        self._again: deque[Task] = deque()
        self._next = self._take()
        self._keys: dict[int, str] = {}  # of the pairs under way
        self._snapshot_at = self._logged_at = time.monotonic()
        self._snapshot_pause = SNAPSHOT_SECONDS
        self.n_new = 0

    def _take(self) -> Task | None:
        if self._again:
            return self._again.popleft()
        index = next(self._waiting, None)
        return None if index is None else Task(index, self._ledger.rows[index], 1)

    def run(self, stop: StopRequest) -> None:
        """Register all rows, or until a stop is requested; pairs under way are then dropped.

        Args:
            stop: read between pairs.

        Raises:
            InputError: the journal cannot be written, or no worker can be started.
        """
        n_rows, n_done = len(self._ledger.rows), self._ledger.n_done
        with tqdm(
            total=n_rows,
            initial=n_done,
            desc="register",
            unit="pair",
            disable=n_rows < 2,
            # A terminal is written often, a file seldom.
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        ) as bar:
            while (self._next or self._keys) and not stop.requested:
                while self._next and self._engine.n_free() and not stop.requested:
                    self._submit(self._next)
                    self._next = self._take()
                for outcome in self._engine.wait(WAIT_SECONDS):
                    bar.update(self._end(outcome))
                self._next = self._next or self._take()
                self._report(bar)

    def _submit(self, task: Task) -> None:
        self._keys[task.number] = self._ledger.key_of(task.number)
        self._engine.submit(task)

    def _end(self, outcome: Outcome) -> int:
        """Take an outcome; returns the number of rows that are finished by it, 0 or 1."""
        task, key = outcome.task, self._keys.pop(outcome.task.number)
        record = outcome.record
        if outcome.fault is Fault.DIED and task.attempt <= MAX_RETRIES:
            log.warning("%s: the worker died (%s); tried again", task.row.id, outcome.detail)
            self._again.append(task._replace(attempt=task.attempt + 1))
            return 0
        if record is None:
            record = self._fault_record(outcome)
        try:
            self._ledger.add(task.number, record, key)
        except OSError as error:
            raise InputError(
                f"{self._ledger.journal.path}: cannot be written ({error.strerror or error}); free "
                "some space, then the same command goes on."
            ) from error
        self.n_new += 1
        self._show(record)
        if self._on_done is not None:
            self._on_done(self.n_new)
        return 1

    def _fault_record(self, outcome: Outcome) -> Record:
        row = outcome.task.row
        # A registration that was cut off must leave no pictures of a failed row.
        clear_pair(self._out / row.id)
        if outcome.fault is Fault.TIMEOUT:
            reason = f"not finished within {self._timeout:g} s (--timeout)"
        else:
            reason = (
                f"the worker process died {outcome.task.attempt} times at this pair "
                f"({outcome.detail})"
            )
        return failed_record(row, reason)

    def _show(self, record: Record) -> None:
        reason = f" ({record['reason']})" if record["reason"] else ""
        if record["status"] != "ok":
            log.warning("%s: %s%s", record["id"], record["status"], reason)
        if len(self._ledger.rows) <= MAX_SHOWN:
            tqdm.write(f"{record['id']}: {record['status']}{reason}")

    def _report(self, bar: tqdm) -> None:
        """Now and then a line in the log, and ``results.csv`` from what is done."""
        now = time.monotonic()
        if now - self._logged_at > LOG_SECONDS:
            self._logged_at = now
            log.info("%s", bar if bar.disable else tqdm.format_meter(**bar.format_dict))
        if now - self._snapshot_at > self._snapshot_pause:
            write_results(
                self._out / RESULTS_NAME, self._ledger.records(), self._ledger.extra_columns()
            )
            self._snapshot_at = time.monotonic()
            cost = self._snapshot_at - now
            self._snapshot_pause = max(SNAPSHOT_SECONDS, SNAPSHOT_COST * cost)
