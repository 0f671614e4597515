"""Two processes with half a batch each train as one with the whole; a fault of one stops both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.progress import MEASURED
from utils.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[1]
# Write the gradients of the first step, before they are clipped.
DUMP_GRADIENTS = """
import torch
from training.engine import Engine
update_and_dump = Engine._update_weights
def dump(self, batch, parts, epoch):
    if epoch == 1 and self.progress.steps == 0 and self.fabric.is_global_zero:
        gradients = {name: p.grad.clone() for name, p in self.task.model.named_parameters()}
        torch.save(gradients, self.folder.path / "gradients.pt")
    return update_and_dump(self, batch, parts, epoch)
Engine._update_weights = dump
"""


@pytest.fixture(scope="module")
def arguments(tiny_data, tiny_config, tmp_path_factory):
    save = tmp_path_factory.mktemp("processes")

    def of(name: str, *more: object) -> tuple[list, Path]:
        return [
            *(
                f"--save {save} --config {tiny_config} --data {tiny_data} --epoch "
                f"2 --batch_size 4 --views_per_sample 2 --name {name}"
            ).split(),
            *more,
        ], save / "cffa" / name

    return of


@pytest.fixture(scope="module")
def one(arguments, forked_runs) -> Path:
    """The run of one process with the whole batch."""
    new, folder = arguments("one")
    reply = forked_runs(*new, patch=DUMP_GRADIENTS)
    assert reply["codes"] == [0], reply["output"]
    return folder


def assert_same_training(folder: Path, one: Path) -> None:
    ours, expected = (torch.load(run / "gradients.pt", weights_only=True) for run in (folder, one))
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5, name
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3, (
        "gradients large enough for the comparison"
    )
    ours, expected = (read_checkpoint(run / "latest.pth") for run in (folder, one))
    for record, wanted in zip(ours["history"], expected["history"], strict=True):
        assert record.keys() == wanted.keys()
        for name in record.keys() - set(MEASURED):
            # One place of a value map may be another, see below.
            allowed = 1e-2 if name.startswith("map_") else 1e-3
            assert record[name] == pytest.approx(wanted[name], rel=allowed, abs=allowed), name
    places, wanted = (content["extra"]["value_map"]["places"] for content in (ours, expected))
    assert places.keys() == wanted.keys() and len(places) > 0
    for key, points in wanted.items():
        # Rounding may exchange two detections of equal strength, and with it the one that is kept.
        assert abs(len(places[key]) - len(points)) <= 1, key
        gaps = torch.cdist(points, places[key], compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        assert (gaps < 1e-2).float().mean() > 0.9, key


def test_two_processes_train_as_one(arguments, forked_runs, one):
    new, folder = arguments("two")
    reply = forked_runs(*new, patch=DUMP_GRADIENTS, processes=2)
    assert reply["codes"] == [0, 0], reply["output"]
    assert_same_training(folder, one)
    # Every validation pair is counted once, and one process alone writes.
    logs = [(run / "validation_log.txt").read_text().splitlines() for run in (folder, one)]
    assert [line.split(":")[0] for line in logs[0]] == [line.split(":")[0] for line in logs[1]]
    assert len([line for line in logs[0] if line.startswith("cffa_")]) == 2 * 3


def test_accumulating_two_halves_trains_as_one_batch(arguments, forked_runs, one):
    new, folder = arguments("parts", "--accumulate", 2)
    reply = forked_runs(*new, patch=DUMP_GRADIENTS)
    assert reply["codes"] == [0], reply["output"]
    assert_same_training(folder, one)


def test_two_processes_with_accumulation_resume_as_one(arguments, forked_runs, one):
    """Accumulation over processes; the run is resumed with another number of processes."""
    new, folder = arguments("both", "--accumulate", 2)
    stop = """
from training.engine import Engine
import os, signal
update = Engine._update_weights
def stopping(self, batch, parts, epoch):
    if epoch == 2 and self.fabric.global_rank == 1:
        os.kill(os.getpid(), signal.SIGINT)
    return update(self, batch, parts, epoch)
Engine._update_weights = stopping
"""
    reply = forked_runs(*new, patch=DUMP_GRADIENTS + stop, processes=2)
    assert reply["codes"] == [130, 130], reply["output"]
    assert read_checkpoint(folder / "latest.pth")["progress"]["steps"] == 1, (
        "the current step is finished, and no other"
    )
    which = ["--save", folder.parents[1], "--name", "both", "--resume"]
    assert forked_runs(*which)["codes"] == [0]
    assert_same_training(folder, one)


def test_a_fault_of_one_process_stops_both(arguments, forked_runs):
    new, folder = arguments("nan")
    # The second process alone gets a NaN, in the third step: the first of epoch 2.
    patch = """
from loss.joint_objective import JointObjective
import os, torch
call = JointObjective.__call__
calls = 0
def poisoned(self, *arguments):
    global calls
    calls += 1
    result = call(self, *arguments)
    if calls == 3 and os.environ["RANK"] == "1":
        result.losses["geo"] = result.losses["geo"] * torch.nan
    return result
JointObjective.__call__ = poisoned
"""
    reply = forked_runs(*new, patch=patch, processes=2)
    assert reply["codes"] == [3, 3], reply["output"]
    errors = [line for line in reply["output"].splitlines() if line.startswith("error: ")]
    assert (
        len(errors) == 2
        and errors[0] == errors[1]
        and "loss term geo not finite at epoch 2, step 1" in errors[0]
    )
    failure = read_checkpoint(folder / "nonfinite.pth")["failure"]
    assert [part["broken"] for part in failure] == [[], ["loss term geo"]]
    assert all(key in errors[0] for key in failure[1]["samples"])


def test_torchrun_starts_the_script(arguments, one):
    """By the launcher itself; the comparison above starts the same processes faster."""
    new, folder = arguments("torchrun")
    command = [
        sys.executable,
        *(
            "-m torch.distributed.run --standalone --nproc_per_node=2 "
            "train_multimodal_e2e.py --device cpu"
        ).split(),
        *new,
    ]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, expected = (read_checkpoint(run / "latest.pth")["history"][-1] for run in (folder, one))
    assert ours["total"] == pytest.approx(expected["total"], rel=1e-3)
