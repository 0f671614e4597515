"""Batches of register.py under load and under attack.

    python -m benchmarks.batch kills      # kill -9 of workers and driver at random moments
    python -m benchmarks.batch workers    # pairs a second of one worker and of two
    python -m benchmarks.batch rows       # 100,000 rows without registration: time, memory, restart
    python -m benchmarks.batch nodes      # a Ray cluster of two nodes that loses one

Each prints one line of JSON; with --out it is also added to a file. Pairs are generated.
``workers`` means something on a quiet machine only. ``nodes`` needs requirements-cluster.txt.
Minutes each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from batch.command import BatchOptions, n_cores, register_pairs
from batch.journal import JOURNAL_NAME
from batch.work import Record, RegistrationWork, failed_record
from registration.pair_tables import PairToRegister, read_pairs, read_results
from registration.registrar import DEFAULT_WEIGHTS
from synthesis.generated_set import write_generated_set
from utils.errors import InputError, run_script
from utils.files import sha256_of

PROJECT = Path(__file__).resolve().parents[1]
WINDOW = 1000  # rows at the beginning and at the end whose time is compared


@dataclass(frozen=True)
class StubWork(RegistrationWork):
    """A row of the usual size without any registration and without files.

    Attributes:
        pause: seconds a pair.
    """

    pause: float = 0.0

    def open(self) -> Callable[[PairToRegister], Record]:
        """The function that does one pair."""
        return self.do

    def do(self, row: PairToRegister) -> Record:
        """Do one pair.

        Args:
            row: the pair.
        """
        if self.pause:
            time.sleep(self.pause)
        record = failed_record(row, "") | {"status": "ok", "transform": "affine"}
        return record | {f"h{i}{j}": repr(1.0 / (i + j + 3)) for i in range(3) for j in range(3)}


def stub_work(out: Path, pause: float = 0.0) -> StubWork:
    """Work that needs no weights.

    Args:
        out: folder of the results.
        pause: seconds a pair.
    """
    return StubWork("none", "0", "affine", None, "cpu", str(out), (), pause=pause)


def stub_rows(n_rows: int) -> list[PairToRegister]:
    """Rows of files that do not exist.

    Args:
        n_rows: number of rows.
    """
    folder = "/archive/patient"
    return [
        PairToRegister(f"p{i:06d}", f"{folder}_{i}/cf.png", f"{folder}_{i}/fa.png", {"eye": "OD"})
        for i in range(n_rows)
    ]


def measure_rows(folder: Path, n_rows: int, workers: int) -> dict[str, object]:
    """Time and memory of a batch without registration, and time of its restart.

    The times of a row, ms, are given by the clock and for the processor time of this process alone,
    which a busy machine does not change.

    Args:
        folder: for the results.
        n_rows: number of rows.
        workers: number of processes.
    """
    times: list[tuple[float, float]] = []  # of the clock, and of this process alone
    tenths: list[float] = []
    memory: list[int] = []
    process = psutil.Process()

    def on_done(n_new: int) -> None:
        if n_new <= WINDOW + 1 or n_new > n_rows - WINDOW - 1:
            times.append((time.perf_counter(), time.process_time()))
        if n_new % (n_rows // 10) == 0:
            memory.append(process.memory_info().rss)
            tenths.append(time.process_time())

    rows, work, options = stub_rows(n_rows), stub_work(folder), BatchOptions(workers)
    start = time.perf_counter()
    register_pairs(rows, work, options, on_done=on_done)
    seconds = time.perf_counter() - start
    start, start_alone = time.perf_counter(), time.process_time()
    kept = register_pairs(rows, work, options).n_kept
    first, last = np.subtract(times[WINDOW], times[0]), np.subtract(times[-1], times[-1 - WINDOW])
    return {
        "rows": n_rows,
        "workers": workers,
        "seconds": round(seconds, 1),
        "ms_a_row_first": np.round(first, 3).tolist(),
        "ms_a_row_last": np.round(last, 3).tolist(),
        "last_over_first": np.round(last / first, 2).tolist(),
        "processor_ms_a_row_by_tenth": np.round(np.diff(tenths) * 1e4 / n_rows, 3).tolist(),
        "mb_by_tenth": np.round(np.array(memory) / 2**20, 1).tolist(),
        "restart_seconds": round(time.perf_counter() - start, 1),
        "restart_processor_seconds": round(time.process_time() - start_alone, 1),
        "restart_kept": kept,
        "journal_mb": round((folder / JOURNAL_NAME).stat().st_size / 2**20, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1),
    }


def write_pairs(folder: Path, n_pairs: int, size: int) -> Path:
    """Generated CF-FA pairs and their table.

    Args:
        folder: for both.
        n_pairs: number of pairs; an eye gives several, of different modalities.
        size: side of the images, pixels.

    Returns:
        Path of the table.
    """
    kinds = ("fa_gen", "oct_gen", "octa_gen")
    write_generated_set(folder / "eyes", -(-n_pairs // len(kinds)), size=size, progress=False)
    rows = [
        {"id": f"{eye.name}_{kind}", "fixed": eye / f"{eye.name}_cf.png"}
        | {"moving": eye / f"{eye.name}_{kind}.png"}
        for eye in sorted((folder / "eyes").glob("*_A"))
        for kind in kinds
    ]
    lines = [f"{row['id']},{row['fixed']},{row['moving']}\n" for row in rows[:n_pairs]]
    (folder / "pairs.csv").write_text("id,fixed,moving\n" + "".join(lines), encoding="utf-8")
    return folder / "pairs.csv"


def start_register(table: Path, out: Path, workers: int, *more: str) -> subprocess.Popen:
    """Start register.py over a table.

    Args:
        table: of the pairs.
        out: folder of the results.
        workers: number of processes.
        *more: further arguments.
    """
    command = [sys.executable, str(PROJECT / "register.py"), "--pairs", str(table), "--out"]
    return subprocess.Popen(
        [*command, str(out), "--workers", str(workers), "--device", "cpu", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def comparable_rows(out: Path) -> list[dict[str, str]]:
    """Rows of the table of results without what is measured.

    Args:
        out: folder of the results.
    """
    rows = read_results(out / "results.csv")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def measure_kills(folder: Path, n_pairs: int, moments: int, img_size: int) -> dict[str, object]:
    """Kill workers and the driver at random moments, start again, and compare the last table.

    Args:
        folder: for pairs and results.
        n_pairs: number of pairs.
        moments: number of kills, spread over the batch.
        img_size: size of the images and working size, pixels; a small one is fast.

    Raises:
        InputError: the table is not that of an undisturbed run, or all was done before the kills.
    """
    table, draw = write_pairs(folder, n_pairs, img_size), random.Random(0)
    size = ("--img_size", str(img_size))
    start_register(table, folder / "undisturbed", 2, *size).communicate()
    wanted, out = comparable_rows(folder / "undisturbed"), folder / "out"
    victims = draw.sample(["driver", "worker"] * moments, moments)
    process = start_register(table, out, 2, *size)
    for number, victim in enumerate(victims):
        while _n_lines(out) < number * (n_pairs - 5) // moments or not _workers_of(process.pid):
            if process.poll() is not None:
                raise InputError(f"{out}: the batch ended early: {process.communicate()[0]}")
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5))
        if victim == "worker":
            for worker in _workers_of(process.pid)[-1:]:
                worker.kill()
        else:
            process.kill()
            process.communicate()
            process = start_register(table, out, 2, *size)
    output, _ = process.communicate()
    got = comparable_rows(out)
    if got != wanted or "Traceback" in output:
        raise InputError(f"{out}: {len(got)} rows are not those of the undisturbed run: {output}")
    return {
        "pairs": n_pairs,
        "killed": {name: victims.count(name) for name in ("driver", "worker")},
        "rows": len(got),
        "ok": sum(row["status"] == "ok" for row in got),
        "lines_of_journal": _n_lines(out),
        "equal": True,
    }


def _n_lines(out: Path) -> int:
    path = out / JOURNAL_NAME
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _workers_of(pid: int) -> list[psutil.Process]:
    try:
        everything = psutil.Process(pid).children(recursive=True)
        servers = {child.ppid() for child in everything}
        return [each for each in everything if each.pid not in servers and each.ppid() != pid]
    except psutil.NoSuchProcess:
        return []


def measure_workers(folder: Path, n_pairs: int, rounds: int) -> dict[str, object]:
    """Pairs a second with one worker and with two, in turn, without the start of the workers.

    Args:
        folder: for pairs and results.
        n_pairs: number of pairs of 500 px.
        rounds: number of runs of each kind.

    Raises:
        InputError: no pair was registered.
    """
    # Sets of 512 px have other file names.
    rows = read_pairs(write_pairs(folder, n_pairs, 500))
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for workers in rates:
            times: list[float] = []
            work = RegistrationWork(
                weights=str(DEFAULT_WEIGHTS),
                weights_sha256=sha256_of(DEFAULT_WEIGHTS),
                transform="affine",
                img_size=None,
                device="cpu",
                out=str(folder / f"out_{number}_{workers}"),
                exports=(),
            )
            options = BatchOptions(workers)
            summary = register_pairs(rows, work, options, on_done=_stopwatch(times))
            if not summary.n_ok:
                raise InputError(f"{work.out}: no pair was registered, so no time was measured.")
            # The first pair of each worker is warm-up.
            rates[workers].append((n_pairs - workers) / (times[-1] - times[workers - 1]))
    best = {workers: max(found) for workers, found in rates.items()}
    return {
        "pairs": n_pairs,
        "pairs_a_second": {workers: round(rate, 3) for workers, rate in best.items()},
        "two_over_one": round(best[2] / best[1], 2),
        "kb_a_pair": round(_bytes_of(folder / "out_0_1") / n_pairs / 1000),
        "load_average": os.getloadavg()[0],
        "cores": n_cores(),
    }


def _stopwatch(times: list[float]) -> Callable[[int], None]:
    return lambda n_new: times.append(time.perf_counter())


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_nodes(folder: Path, n_rows: int) -> dict[str, object]:
    """A batch without registration on a Ray cluster of two nodes, one of which is lost half-way.

    Args:
        folder: for the results.
        n_rows: number of rows.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        from ray.cluster_utils import Cluster
    except ImportError as error:
        raise InputError("nodes: needs requirements-cluster.txt.") from error
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()

    def on_done(n_new: int) -> None:
        if n_new == n_rows // 2:
            cluster.remove_node(lost, allow_graceful=False)

    options = BatchOptions(workers=2, cluster=cluster.address)
    try:
        summary = register_pairs(
            stub_rows(n_rows), stub_work(folder, 0.1), options, on_done=on_done
        )
    finally:
        cluster.shutdown()
    rows = comparable_rows(folder)
    died = (folder / "register.log").read_text(encoding="utf-8").count("the worker died")
    return {
        "rows": len(rows),
        "ids": len({row["id"] for row in rows}),
        "ok": summary.n_ok,
        "lines_of_journal": _n_lines(folder),
        "pairs_tried_again": died,
    }


def get_args_parser() -> argparse.ArgumentParser:
    """Arguments of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["kills", "workers", "rows", "nodes"])
    parser.add_argument("--pairs", type=int, help="number of pairs or rows")
    parser.add_argument("--moments", type=int, default=20, help="number of kills (default 20)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each kind (default 2)")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes of the measurement of rows (default 1)"
    )
    parser.add_argument("--img_size", type=int, default=192, help="of the kills (default 192)")
    parser.add_argument("--out", metavar="FILE", help="add the figures to this file")
    return parser


def main() -> None:
    """Measure, and print the figures."""
    args = get_args_parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.what == "kills":
            found = measure_kills(folder, args.pairs or 60, args.moments, args.img_size)
        elif args.what == "workers":
            found = measure_workers(folder, args.pairs or 24, args.rounds)
        elif args.what == "rows":
            found = measure_rows(folder / "out", args.pairs or 100_000, args.workers)
        else:
            found = measure_nodes(folder / "out", args.pairs or 200)
    line = json.dumps({"what": args.what, **found})
    print(line)
    if args.out:
        with open(args.out, "a", encoding="utf-8") as handle:
            handle.write(line + "\n")


if __name__ == "__main__":
    run_script(main)
