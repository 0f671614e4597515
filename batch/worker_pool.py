"""Workers that hold the weights and do one pair at a time; their kind is a :class:`Backend`.

A worker that dies or overruns the time of its pair is replaced, and only its own pair is affected.
A pair is given to a worker only when that is ready, so the time of a pair does not include the
start of a worker.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from batch.engine import Fault, Outcome, Task
from batch.work import Work
from registration.pair_tables import PairToRegister
from utils.errors import InputError

MAX_FAILED_STARTS = 3  # a worker, with no call that ended well in between; then the batch stops
START_SECONDS = 600.0  # a worker that is not ready then is replaced; imports on a slow disk


class WorkerDiedError(Exception):
    """The process of a worker ended; the message says how."""


class Backend(Protocol):
    """Starts workers and calls them. A call is any object that can be waited for.

    Attributes:
        name: for messages.
        n_workers: number of workers.
        waits_for_room: whether a worker may have to wait until the cluster has room for it.
    """

    name: str
    n_workers: int
    waits_for_room: bool

    def start(self, work: Work) -> tuple[Any, Any]:
        """Start a worker. Returns it, and a call that ends when it is ready."""
        ...

    def call(self, worker: Any, row: PairToRegister) -> Any:
        """Begin one pair on a ready worker.

        Raises:
            WorkerDiedError: its process has ended.
        """
        ...

    def wait(self, calls: list[Any], seconds: float) -> Iterable[Any]:
        """Wait until a call ends; returns those that have ended."""
        ...

    def result(self, call: Any) -> Any:
        """Result of a call that has ended; raises what it raised.

        Raises:
            WorkerDiedError: the process of the worker ended.
        """
        ...

    def kill(self, worker: Any) -> None:
        """End a worker at once, whatever its state."""
        ...

    def close(self) -> None:
        """Release everything else."""
        ...


@dataclass
class _Worker:
    """A worker: ``call`` is that of its start (``task`` is None) or of a pair; None when idle."""

    handle: Any
    call: Any | None
    since: float
    task: Task | None = None


class WorkerPool:
    """Engine over the workers of a backend.

    Args:
        backend: that starts them.
        work: on the pairs.
        timeout: seconds a pair; None for no limit.
    """

    def __init__(self, backend: Backend, work: Work, timeout: float | None) -> None:
        self.name = backend.name
        self._backend, self._work, self._timeout = backend, work, timeout
        self._failed_starts = 0
        self._ended: list[Outcome] = []
        self._workers = [self._started() for _ in range(backend.n_workers)]

    def _started(self) -> _Worker:
        handle, call = self._backend.start(self._work)
        return _Worker(handle, call, time.monotonic())

    def n_free(self) -> int:
        """Number of idle workers."""
        return sum(worker.call is None for worker in self._workers)

    def submit(self, task: Task) -> None:
        """Give the task to an idle worker."""
        worker = next(each for each in self._workers if each.call is None)
        worker.task, worker.since = task, time.monotonic()
        try:
            worker.call = self._backend.call(worker.handle, task.row)
        except WorkerDiedError as error:
            self._ended.append(Outcome(task, None, Fault.DIED, str(error)))
            self._replace(worker)

    def wait(self, seconds: float) -> list[Outcome]:
        """Wait until a task ends, a worker is ready or the time is over.

        Args:
            seconds: at most.

        Returns:
            The tasks that ended.

        Raises:
            InputError: workers cannot be started.
        """
        calls = {worker.call: worker for worker in self._workers if worker.call is not None}
        outcomes, self._ended = self._ended, []
        for call in self._backend.wait(list(calls), 0.0 if outcomes else seconds):
            outcomes += self._end_of(calls[call])
        now = time.monotonic()
        for worker in self._workers:
            if worker.task and self._timeout and now - worker.since > self._timeout:
                outcomes.append(Outcome(worker.task, None, Fault.TIMEOUT))
                self._replace(worker)
            elif worker.call is not None and worker.task is None and self._is_overdue(worker, now):
                self._failed_start(worker, f"not ready after {START_SECONDS:.0f} s")
        return outcomes

    def _is_overdue(self, worker: _Worker, now: float) -> bool:
        return not self._backend.waits_for_room and now - worker.since > START_SECONDS

    def _end_of(self, worker: _Worker) -> list[Outcome]:
        """Take the end of a call: the result of a pair, or a worker that is ready."""
        task = worker.task
        try:
            result = self._backend.result(worker.call)
        except WorkerDiedError as error:
            if task is None:
                self._failed_start(worker, str(error))
                return []
            self._replace(worker)
            return [Outcome(task, None, Fault.DIED, str(error))]
        worker.call, worker.task = None, None
        self._failed_starts = 0
        return [] if task is None else [Outcome(task, result)]

    def _replace(self, worker: _Worker) -> None:
        self._backend.kill(worker.handle)
        self._workers[self._workers.index(worker)] = self._started()

    def _failed_start(self, worker: _Worker, reason: str) -> None:
        """Start the worker again, unless none can be started.

        Raises:
            InputError: several starts in a row have failed.
        """
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS * len(self._workers):
            raise InputError(
                f"{self.name}: no worker can be started ({reason}); give fewer --workers if the "
                "memory is short."
            )
        self._replace(worker)

    def close(self) -> None:
        """End all workers at once; tasks under way are dropped."""
        for worker in self._workers:
            self._backend.kill(worker.handle)
        self._backend.close()
