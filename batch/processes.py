"""Workers that are processes of this machine.

Each worker is a ``concurrent.futures.ProcessPoolExecutor`` with one process. An executor breaks
when a process dies, so with one process an executor exactly one pair is affected, and the processes
share no lock that a killed one could keep.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path

import torch

from batch.work import Record, Work
from batch.worker_pool import WorkerDiedError
from registration.pair_tables import PairToRegister

PROJECT = Path(__file__).resolve().parents[1]
# One thread a worker; the libraries read these when they are loaded.
ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    )
}
_do: Callable[[PairToRegister], Record] | None = None  # in a worker: what it does with a pair


def begin_worker() -> None:
    """Tie this process to the first one, before it waits for anything."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches all processes of a terminal; the first one decides.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def open_worker(work: Work) -> int:
    """Prepare this process as a worker.

    Args:
        work: on the pairs.

    Returns:
        Its process id.
    """
    global _do
    if torch.cuda.is_available():
        torch.cuda.set_device(os.getpid() % torch.cuda.device_count())
    _do = work.open()
    return os.getpid()


def _end_with_parent() -> None:
    """End this process when the first one was killed: another may go on with its folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def do_pair(row: PairToRegister) -> Record:
    """Do one pair in a worker.

    Args:
        row: the pair.
    """
    assert _do is not None, "open_worker comes first"
    return _do(row)


@dataclass
class _Process:
    """A worker: its executor, and the call that opens it and returns the process id."""

    executor: ProcessPoolExecutor
    opened: Future


class Processes:
    """Backend of processes of this machine.

    Args:
        n_workers: number of workers.
    """

    waits_for_room = False

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self.name = f"{n_workers} processes"
        self._context = _start_context()

    def start(self, work: Work) -> tuple[_Process, Future]:
        """Start a worker; the call ends when it is ready."""
        executor = ProcessPoolExecutor(1, mp_context=self._context, initializer=begin_worker)
        with environment(ONE_THREAD):
            opened = executor.submit(open_worker, work)
        return _Process(executor, opened), opened

    def call(self, worker: _Process, row: PairToRegister) -> Future:
        """Begin one pair on a ready worker.

        Raises:
            WorkerDiedError: its process has ended.
        """
        try:
            return worker.executor.submit(do_pair, row)
        except BrokenProcessPool as error:
            raise WorkerDiedError("before it was given the pair") from error

    def wait(self, calls: list[Future], seconds: float) -> Iterable[Future]:
        """Wait until a call ends; returns those that have ended."""
        first = concurrent.futures.FIRST_COMPLETED
        return concurrent.futures.wait(calls, seconds, return_when=first).done

    def result(self, call: Future) -> object:
        """Result of a call that has ended; raises what it raised.

        Raises:
            WorkerDiedError: the process of the worker ended.
        """
        try:
            return call.result()
        except BrokenProcessPool as error:
            raise WorkerDiedError("it was killed or it crashed; memory may be short") from error

    def kill(self, worker: _Process) -> None:
        """End a worker at once, whatever its state."""
        processes = list((worker.executor._processes or {}).values())
        for process in processes:
            process.kill()
        worker.executor.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Nothing else is held."""


def _start_context() -> BaseContext:
    """How processes are started: never as copies of this one, which has threads and weights.

    On Linux they are copies of a process that has only loaded the libraries, which takes
    milliseconds instead of seconds.
    """
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["batch.processes"])
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    with environment(ONE_THREAD | {"PYTHONPATH": path}):
        multiprocessing.forkserver.ensure_running()
    return context


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables inside the block, for processes that are started there.

    Args:
        variables: by name.
    """
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
