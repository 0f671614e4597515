"""Batches with several processes: workers and drivers that are killed, time limits, Ray."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from batch_works import CaseWork, case_work, rows_named, run_cases
from helpers import read_table
from register_runs import write_table

from batch import processes, ray_cluster
from batch.engine import Fault, Task
from batch.processes import Processes
from batch.worker_pool import WorkerPool
from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def row_of(record: dict[str, str]) -> dict[str, str]:
    """A row without what is measured."""
    return {name: value for name, value in record.items() if name != "seconds"}


def test_only_the_pairs_of_dead_and_late_workers_fail(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    rows = rows_named("a", "die", "b", "hang", "once", "bad", *"cdefgh")
    summary = run_cases(out, rows, workers=2, timeout=2.0)
    got = {row["id"]: row for row in read_table(out / "results.csv")}
    assert list(got) == [row.id for row in rows]
    assert "died 3 times" in got["die"]["reason"] and "2 s (--timeout)" in got["hang"]["reason"]
    assert got["once"]["status"] == "ok" and summary.n_ok == 9
    log = (out / "register.log").read_text()
    assert log.count("die: the worker died") == 2 and log.count("once: the worker died") == 1


def test_a_worker_that_dies_while_idle_costs_one_attempt(tmp_path):
    pool = WorkerPool(Processes(1), case_work(tmp_path), timeout=None)
    try:
        wait_until(lambda: pool.wait(0.1) == [] and pool.n_free() == 1)
        for child in workers_of(os.getpid()):
            child.kill()
        time.sleep(0.5)
        task = Task(0, rows_named("a")[0], 1)
        pool.submit(task)
        outcomes: list = []
        wait_until(lambda: outcomes.extend(pool.wait(0.1)) or outcomes)
        assert outcomes[0].task == task and outcomes[0].fault is Fault.DIED
        wait_until(lambda: pool.wait(0.1) == [] and pool.n_free() == 1)
    finally:
        pool.close()


class Unopenable(CaseWork):
    """Work whose weights differ on the worker."""

    def open(self):
        raise InputError("none: differs from the weights of the run; copy it again.")


def test_weights_that_a_worker_cannot_use_end_the_batch(tmp_path):
    pool = WorkerPool(Processes(1), Unopenable("", "", "", None, "", "", ()), timeout=None)
    try:
        with pytest.raises(InputError, match="differs from the weights"):
            wait_until(lambda: pool.wait(0.1) and False)
    finally:
        pool.close()


def wait_until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a driver; not the process from which they are copied."""
    everything = psutil.Process(pid).children(recursive=True)
    servers = {child.ppid() for child in everything}
    return [child for child in everything if child.pid not in servers and child.ppid() != pid]


class Driver:
    """Batches over one table in processes of their own."""

    def __init__(self, folder: Path, pause: float) -> None:
        self.folder, self.out, self.pause = folder, folder / "out", pause
        self.n_rows = 40
        rows = [{"id": f"r{i}", "fixed": f"{i}.png", "moving": "m.png"} for i in range(self.n_rows)]
        self.table = write_table(folder / "pairs.csv", rows)

    def start(self) -> subprocess.Popen:
        script = ROOT / "tests" / "batch_works.py"
        return subprocess.Popen(
            [sys.executable, script, self.table, self.out, "2", str(self.pause)],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def n_done(self) -> int:
        path = self.out / "journal.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def check_complete(self) -> None:
        """Every row once, as in a run that nothing disturbed."""
        undisturbed = self.folder / "undisturbed"
        rows = rows_named(*(f"r{i}" for i in range(self.n_rows)))
        run_cases(undisturbed, rows)
        got = read_table(self.out / "results.csv")
        wanted = read_table(undisturbed / "results.csv")
        names = ("id", "status", "reason", "h02")
        assert [[row[k] for k in names] for row in got] == [
            [row[k] for k in names] for row in wanted
        ]
        assert self.n_done() == self.n_rows, "no row was done twice"


def test_workers_and_drivers_killed_at_random_moments(tmp_path):
    driver, draw = Driver(tmp_path, pause=0.1), random.Random(0)
    for _ in range(2):
        done = driver.n_done()
        process = driver.start()
        wait_until(lambda done=done: driver.n_done() > done + 2)
        time.sleep(draw.uniform(0, 0.3))
        draw.choice(workers_of(process.pid)).kill()
        wait_until(lambda done=done: driver.n_done() > done + 8)
        workers = workers_of(process.pid)
        process.kill()
        process.communicate(timeout=60)
        assert len(workers) == 2
        wait_until(lambda workers=workers: not any(each.is_running() for each in workers), 20)
    output, errors = driver.start().communicate(timeout=300)
    assert f"of {driver.n_rows} rows are done and kept" in output and "Traceback" not in errors
    driver.check_complete()


@pytest.mark.parametrize("to_group", [False, True])
def test_sigterm_ends_with_one_line_and_the_batch_goes_on(tmp_path, to_group):
    """A batch system sends the signal to all processes."""
    driver = Driver(tmp_path, pause=0.05)
    process = driver.start()
    wait_until(lambda: driver.n_done() > 2)
    (os.killpg if to_group else os.kill)(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    said = [line for line in errors.splitlines() if "stopped: " in line]
    assert len(said) == 1 and said[0].endswith("to go on: again")
    assert 2 < len(read_table(driver.out / "results.csv")) < driver.n_rows
    assert driver.start().wait(timeout=300) == 0
    driver.check_complete()


@pytest.mark.skipif(not ray_cluster.is_installed(), reason="Ray (requirements-cluster.txt)")
def test_a_batch_on_ray(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    out = tmp_path / "out"
    out.mkdir()
    rows = rows_named("a", "die", "b", "hang", "once", "bad", *"cdef")
    summary = run_cases(out, rows, workers=2, cluster="local", timeout=2.0)
    got = {row["id"]: row for row in read_table(out / "results.csv")}
    assert list(got) == [row.id for row in rows] and summary.n_ok == 7
    assert "died 3 times" in got["die"]["reason"] and "2 s (--timeout)" in got["hang"]["reason"]


def test_ray_that_is_missing_or_does_not_answer_is_said(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ray_cluster, "ray", None)
        with pytest.raises(InputError, match="requirements-cluster.txt"):
            ray_cluster.RayCluster("local", 1)


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.setenv("A_SET", "1")
    with processes.environment({"A_SET": "2", "A_NEW": "3"}):
        assert os.environ["A_SET"] == "2" and os.environ["A_NEW"] == "3"
    assert os.environ["A_SET"] == "1" and "A_NEW" not in os.environ
