"""Faults of the machine in a training run: full disks, killed workers, growing memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import TINY_RUN, error_of, run_main

import register
import train_multimodal_e2e
from utils.checkpoint import read_checkpoint, save_checkpoint

pytestmark = pytest.mark.slow


# --- around the run -------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_checkpoint(tiny_data, new_run, forked_runs):
    arguments, folder = new_run(tiny_data)
    # From the third step on no file may grow beyond 20 kB, as if the disk were full.
    patch = """
import resource, signal
from training.engine import Engine
step = Engine._train_one_step
def limited(self, batches, epoch):
    if self.progress.steps == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return step(self, batches, epoch)
Engine._train_one_step = limited
"""
    message = error_of(forked_runs(*arguments, patch=patch))
    assert (
        str(folder) in message
        and "File too large" in message
        and "latest.pth is intact" in message
        and "--resume" in message
    )
    assert read_checkpoint(folder / "latest.pth")["progress"]["steps"] >= 0
    assert not list(folder.glob(".*.tmp"))
    assert forked_runs("--save", folder.parents[1], "--name", "run", "--resume")["codes"] == [0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a full disk")
def test_a_full_file_system(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=200k tmpfs {disk} 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    try:
        save_checkpoint(disk / "latest.pth", {"epoch": 1})
        kept = (disk / "latest.pth").read_bytes()
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(
                disk / "latest.pth",
                {"epoch": 2, "weights": torch.zeros(200_000)},
                disk / "previous.pth",
            )
        assert (disk / "latest.pth").read_bytes() == kept and [
            path.name for path in disk.iterdir()
        ] == ["latest.pth"]
    finally:
        os.system(f"umount {disk}")


def test_a_folder_that_cannot_be_written_to(
    tiny_data, tiny_config, untrained_weights, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for where in (tmp_path / "file" / "below", Path("/proc/none")):
        arguments = (
            *(f"--save {where} --config {tiny_config} --data {tiny_data} --device cpu").split(),
        )
        assert run_main(train_multimodal_e2e, monkeypatch, *arguments) == 2
        assert "cannot be written to" in capsys.readouterr().err
        assert (
            run_main(
                register,
                monkeypatch,
                "a.png",
                "b.png",
                *f"--out {where} --weights {untrained_weights}".split(),
            )
            == 2
        )
        assert "cannot be written to" in capsys.readouterr().err


def test_a_killed_data_worker(tiny_data, new_run, forked_runs):
    patch = """
import os, signal
from dataset.aligned_pairs import AlignedPairs
from torch.utils.data import get_worker_info
get = AlignedPairs.__getitem__
def killed(self, key):
    if get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return get(self, key)
AlignedPairs.__getitem__ = killed
"""
    arguments, folder = new_run(tiny_data, "--workers", 1)
    message = error_of(forked_runs(*arguments, patch=patch))
    assert (
        "a data worker was killed by the system" in message
        and "--workers" in message
        and "--resume" in message
    )
    assert forked_runs("--save", folder.parents[1], "--name", "run", "--workers", 0, "--resume")[
        "codes"
    ] == [0]


# --- memory and time ------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_over_200_steps(tiny_data, tmp_path, forked_runs):
    settings = TINY_RUN | {
        "train": TINY_RUN["train"] | {"views_per_sample": 100, "batch_size": 2, "save_seconds": 1e9}
    }
    (tmp_path / "long.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    patch = f"""
from training.engine import Engine
step = Engine._train_one_step
def measured(self, batches, epoch):
    loss = step(self, batches, epoch)
    with open("/proc/self/statm") as source, open({str(tmp_path / "memory")!r}, "a") as log:
        log.write(source.read().split()[1] + "\\n")
    return loss
Engine._train_one_step = measured
"""
    reply = forked_runs(
        *(
            f"--save {tmp_path} --config {tmp_path / 'long.yaml'} --data "
            f"{tiny_data} --epoch 1 --profile"
        ).split(),
        patch=patch,
    )
    assert reply["codes"] == [0], reply["output"]
    resident_mb = (
        np.array([int(line) for line in (tmp_path / "memory").read_text().split()])
        * resource.getpagesize()
        / 2**20
    )
    assert len(resident_mb) == 200
    assert np.median(resident_mb[-20:]) - np.median(resident_mb[40:60]) < 16.0
    log = (tmp_path / "cffa" / "e2e" / "train_log.txt").read_text()
    assert 100.0 < float(log.split("peak_memory_mb ")[1].split()[0]) < 10_000.0
    # --profile prints the time of each part, and the slowest operators.
    assert (
        "200 steps in" in reply["output"]
        and "forward and loss" in reply["output"]
        and "aten::" in reply["output"]
    )
