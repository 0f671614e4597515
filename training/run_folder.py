"""The folder of a run: locked by one process, always with an intact checkpoint, logs without
duplicates."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from filelock import FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter

from training.curves import draw_curves
from training.epoch_log import EpochLog
from training.report import write_training_report
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import InputError
from utils.files import write_text_atomically
from utils.names import is_plain_name

# In the order in which --resume tries them; each of them can be resumed.
CHECKPOINTS = ("latest.pth", "previous.pth", "best.pth")
LATEST, PREVIOUS, BEST = CHECKPOINTS
LOCK_NAME = ".lock"
# The data workers of a killed run hold its lock until they notice, within 5 s, that it has ended.
LOCK_SECONDS = 10.0


def run_folder(save: str | Path, mode: str, name: str) -> Path:
    """The folder ``save/<mode>/<name>``.

    Args:
        save: folder of all runs.
        mode: kinds of pairs, joined by "_".
        name: of the run.

    Raises:
        InputError: a name that is not a plain folder name.
    """
    for part in (mode, name):
        if not is_plain_name(part):
            raise InputError(
                f"--name {name!r}: must be a plain name; the run becomes the folder "
                f"{save}/<mode>/<name>."
            )
    return Path(save) / mode / name


@dataclass(frozen=True)
class Run:
    """A new run, or one that is resumed.

    Attributes:
        folder: ``save/<mode>/<name>``.
        checkpoint: to resume from; None for a new run.
        saved: the ``config`` entry of that checkpoint; None for a new run.
        damage: a line for the log where a newer checkpoint is damaged; else "".
    """

    folder: Path
    checkpoint: Path | None = None
    saved: dict[str, Any] | None = None
    damage: str = ""


def find_run(save: str | Path, modes: list[str], name: str, resume: str | None) -> Run:
    """The run of a name, new or to be resumed.

    Args:
        save: folder of all runs.
        modes: kinds of pairs; joined by "_" they name a folder.
        name: of the run.
        resume: None for a new run, "latest" or a checkpoint file.

    Raises:
        InputError: as :func:`run_folder` and :func:`find_checkpoint`, or an unreadable checkpoint.
    """
    folder = run_folder(save, "_".join(modes), name)
    found = find_checkpoint(folder, resume)
    if found is None:
        return Run(folder)
    checkpoint, damage = found
    saved = read_checkpoint(checkpoint, ["config"])["config"]
    return Run(folder, checkpoint=checkpoint, saved=saved, damage=damage)


def find_checkpoint(run_dir: Path, resume: str | None) -> tuple[Path, str] | None:
    """The checkpoint to resume, or None for a new run.

    Args:
        run_dir: folder of the run.
        resume: None for a new run, "latest" for the newest undamaged checkpoint, or a file.

    Returns:
        The file, and a line for the log where a newer checkpoint is damaged.

    Raises:
        InputError: nothing to resume, no undamaged checkpoint, or a new run in a used folder.
    """
    present = [run_dir / name for name in CHECKPOINTS if (run_dir / name).is_file()]
    used = f"{run_dir}: already holds a run; continue it with --resume, or choose another --name."
    if resume is None:
        if present:
            raise InputError(used)
        return None
    if resume != "latest":
        path = Path(resume)
        if not path.is_file():
            raise InputError(f"{path}: nothing to resume; check the path given to --resume.")
        if present and path.resolve().parent != run_dir.resolve():
            raise InputError(used)
        return path, ""
    if not present:
        raise InputError(
            f"{run_dir / LATEST}: nothing to resume; check --mode, --name and --save, or leave "
            "--resume out."
        )
    return _newest_undamaged(run_dir, present)


def _newest_undamaged(run_dir: Path, present: list[Path]) -> tuple[Path, str]:
    problems: list[str] = []
    for path in present:
        try:
            read_checkpoint(path, ["config"])
        except InputError as error:
            problems.append(str(error))
            continue
        note = f"continuing from {path.name}, the last undamaged one"
        return path, "; ".join([*problems, note]) if problems else ""
    raise InputError(f"{run_dir}: every checkpoint is damaged: {'; '.join(problems)}")


class RunFolder:
    """Writes the files of a run; used by rank 0 only.

    Args:
        path: ``save/<mode>/<name>``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / LOCK_NAME)
        self._events: SummaryWriter | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a full disk or a missing permission into an error that names the intact checkpoint.

        Raises:
            InputError: a file could not be written.
        """
        try:
            yield
        except OSError as error:
            survivor = next((name for name in CHECKPOINTS if (self.path / name).is_file()), None)
            kept = f"; {survivor} is intact: then continue with --resume" if survivor else ""
            raise InputError(
                f"{self.path}: cannot be written to ({error}). Free space or grant permission to "
                f"write{kept}."
            ) from error

    def open(self) -> None:
        """Lock the folder, and remove incomplete files of a killed process.

        Raises:
            InputError: another process trains this run, or the folder cannot be written to.
        """
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=LOCK_SECONDS)
            except Timeout as error:
                raise InputError(
                    f"{self.path}: another process is training this run; wait for it, or choose "
                    "another --name."
                ) from error
            for leftover in self.path.glob(".*.tmp"):
                leftover.unlink()

    def close(self) -> None:
        """Unlock the folder."""
        if self._events is not None:
            self._events.close()
        self._lock.release()

    def save(self, content: dict[str, Any], is_best: bool = False) -> None:
        """Write the newest checkpoint; the one before it is kept as ``previous.pth``.

        ``best.pth`` is written first: a run that is killed between the two repeats the epoch's
        validation when it is resumed.

        Args:
            content: of the checkpoint.
            is_best: also write it as ``best.pth``.

        Raises:
            InputError: as :meth:`writing`.
        """
        with self.writing():
            if is_best:
                save_checkpoint(self.path / BEST, content)
            save_checkpoint(self.path / LATEST, content, previous=self.path / PREVIOUS)
            _flush_folder(self.path)

    def write_epoch(
        self, epoch: int, validation_text: str, training_text: str, history: list[dict[str, float]]
    ) -> None:
        """Write logs, curves, TensorBoard events and the report of a finished epoch.

        They replace what a stopped run had written about the same epoch.

        Args:
            epoch: number of the epoch.
            validation_text: for ``validation_log.txt``; "" writes nothing.
            training_text: for ``train_log.txt``; "" writes nothing.
            history: one record per finished epoch.

        Raises:
            InputError: as :meth:`writing`.
        """
        with self.writing():
            logs = {"validation_log.txt": validation_text, "train_log.txt": training_text}
            for name, text in logs.items():
                if text:
                    EpochLog(self.path / name).write(epoch, text)
            self._write_events(history)
            draw_curves(self.path / "curves.png", history)
            write_training_report(self.path / "report.html", history)

    def _write_events(self, history: list[dict[str, float]]) -> None:
        fresh = history[-1:]
        if self._events is None:
            # Event files are append-only, so a resumed run rewrites them from its history.
            shutil.rmtree(self.path / "events", ignore_errors=True)
            self._events, fresh = SummaryWriter(self.path / "events"), history
        for record in fresh:
            for name, value in record.items():
                if name != "epoch" and np.isfinite(value):
                    self._events.add_scalar(name, value, int(record["epoch"]))
        self._events.flush()


def _flush_folder(path: Path) -> None:
    """Flush renamed files to the disk, on systems that support it for folders."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_run_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Write the resolved settings of a run as ``config.yaml``.

    Args:
        run_dir: folder of the run.
        config: plain values.
    """
    write_text_atomically(run_dir / "config.yaml", yaml.safe_dump(config, sort_keys=False))
