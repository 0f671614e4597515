"""What all engines have in common: pairs are submitted one by one, results come as they finish."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType
from typing import NamedTuple, Protocol

from batch.work import Record, Work
from registration.pair_tables import PairToRegister


class Fault(Enum):
    """Why a pair has no result."""

    DIED = "the worker process died"
    TIMEOUT = "not finished in time"


class Task(NamedTuple):
    """A pair under way.

    Attributes:
        number: index of its row in the table.
        row: the pair.
        attempt: 1 for the first.
    """

    number: int
    row: PairToRegister
    attempt: int


class Outcome(NamedTuple):
    """What became of a task.

    Attributes:
        task: that ended.
        record: the row of the table of results; None after a fault.
        fault: of the worker; None with a record.
        detail: of the fault, such as the exit code.
    """

    task: Task
    record: Record | None
    fault: Fault | None = None
    detail: str = ""


class Engine(Protocol):
    """Runs tasks. It holds no more of them than it has workers, so memory is bounded.

    Attributes:
        name: for messages.
    """

    name: str

    def n_free(self) -> int:
        """Number of tasks that can be submitted now."""
        ...

    def submit(self, task: Task) -> None:
        """Begin a task; only when ``n_free`` is positive."""
        ...

    def wait(self, seconds: float) -> list[Outcome]:
        """Wait until a task ends, a worker becomes free or the time is over.

        Args:
            seconds: at most.

        Returns:
            The tasks that ended.
        """
        ...

    def close(self) -> None:
        """End all workers at once; tasks under way are dropped."""
        ...


class InProcess:
    """Runs every task in this process, one after the other.

    The time limit of a pair is kept where the system has timers and in the main thread only; a
    computation that is inside a library ends first.

    Args:
        work: on the pairs.
        timeout: seconds a pair; None for no limit.
    """

    name = "this process"

    def __init__(self, work: Work, timeout: float | None) -> None:
        self._do = work.open()
        self._timeout = timeout
        self._task: Task | None = None

    def n_free(self) -> int:
        """1 until a task was submitted."""
        return int(self._task is None)

    def submit(self, task: Task) -> None:
        """Keep the task until :meth:`wait` runs it."""
        self._task = task

    def wait(self, seconds: float) -> list[Outcome]:
        """Run the submitted task; ``seconds`` has no meaning here."""
        if self._task is None:
            time.sleep(seconds)
            return []
        task, self._task = self._task, None
        try:
            with time_limit(self._timeout):
                return [Outcome(task, self._do(task.row))]
        except PairTimeoutError:
            return [Outcome(task, None, Fault.TIMEOUT)]

    def close(self) -> None:
        """Nothing is left to end."""


class PairTimeoutError(BaseException):
    """The time of a pair is over; no ``Exception``, so that no stage takes it for its own."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupt the block when the time is over, where the system can.

    Args:
        seconds: None for no limit.

    Raises:
        PairTimeoutError: the time is over.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if seconds is None or not in_main or not hasattr(signal, "setitimer"):
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise PairTimeoutError

    former = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


class StopRequest:
    """Whether the user or the system asked the batch to stop.

    The first signal sets :attr:`requested`, which the loop reads between rows.
    """

    def __init__(self) -> None:
        self.requested = False
        self._at_once = False

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle Ctrl-C, SIGTERM and SIGHUP (a closed terminal) inside the block."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = [signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)])]
        # A process that was started with nohup ignores SIGHUP and goes on doing so.
        former = {
            number: signal.signal(number, self._handle)
            for number in numbers
            if signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a second signal ends at once.

        Raises:
            KeyboardInterrupt: at the second signal.
        """
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and self._at_once:
            raise KeyboardInterrupt
        self.requested = True
