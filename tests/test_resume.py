"""A run that is stopped at any point and resumed equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import shutil
import signal
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_equal_nested, run_main, without_measured
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_multimodal_e2e
from registration.registrar import Registrar
from training.progress import MEASURED
from training.run_folder import find_checkpoint
from utils.checkpoint import read_checkpoint
from utils.errors import InputError

pytestmark = pytest.mark.slow

MODES = ("cffa", "cfocta")
LOGS = ("validation_log.txt", "train_log.txt")
SEED = 6  # of the points at which runs are stopped; the tests must pass with any seed


@pytest.fixture(scope="module")
def begin(tiny_data, tiny_config, tmp_path_factory):
    """Arguments of a new run in a folder of its own, by name; and those that resume it."""
    save = tmp_path_factory.mktemp("runs")

    def arguments(name: str) -> tuple[list, list, Path]:
        which = ["--save", save, "--mode", *MODES, "--name", name]
        return (
            [*which, "--config", tiny_config, "--data", tiny_data, "--epoch", 2],
            [*which, "--resume"],
            save / "_".join(MODES) / name,
        )

    return arguments


@pytest.fixture(scope="module")
def whole(begin, forked_runs) -> tuple[Path, int]:
    """The uninterrupted run: its folder and how many events it took."""
    new, _, folder = begin("whole")
    reply = forked_runs(*new)
    assert reply["codes"] == [0], reply["output"]
    return folder, reply["events"]


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag not in MEASURED
    }


def log_lines(path: Path) -> list[str]:
    """A log without the figures of the machine."""
    return [
        " ".join(
            word
            for word, before in zip(words, ["", *words], strict=False)
            if word not in MEASURED and before not in MEASURED
        )
        for words in (line.split() for line in path.read_text().splitlines())
    ]


def assert_same_run(folder: Path, whole: Path) -> None:
    for name in ("latest.pth", "best.pth"):
        ours, theirs = (without_measured(read_checkpoint(run / name)) for run in (folder, whole))
        assert_equal_nested(ours, theirs, name)
    for name in LOGS:
        assert log_lines(folder / name) == log_lines(whole / name), name
    assert read_events(folder) == read_events(whole)
    pictures, expected = (
        {path.relative_to(run): path.read_bytes() for path in run.glob("epoch*/*.png")}
        for run in (folder, whole)
    )
    assert pictures == expected and len(pictures) == 3 * 4
    ours, theirs = ({path.name for path in run.iterdir()} for run in (folder, whole))
    assert ours == theirs, "temporary files are left behind"


def test_ten_kills_at_random_points_change_nothing(begin, forked_runs, whole):
    whole, n_events = whole
    new, resume, folder = begin("killed")
    rng = np.random.default_rng(SEED)
    arguments, n_killed = new, 0
    # The workers of a killed run end some seconds later and must not disturb the next run.
    with_workers = set(rng.choice(9, 2, replace=False))
    while n_killed < 10:
        options = ["--workers", "1"] if n_killed in with_workers else ["--workers", "0"]
        reply = forked_runs(
            *arguments, *options, signal=int(signal.SIGKILL), at=int(rng.integers(1, n_events // 6))
        )
        assert reply["codes"] == [-signal.SIGKILL], reply["output"]
        n_killed += 1
        if (folder / "latest.pth").exists():
            arguments = resume
    reply = forked_runs(*resume)
    assert reply["codes"] == [0], reply["output"]
    assert_same_run_but_for_workers(folder, whole)


def assert_same_run_but_for_workers(folder: Path, whole: Path) -> None:
    # The checkpoint holds the setting of the last resumed run; the rest is equal.
    assert read_checkpoint(folder / "latest.pth")["config"]["settings"]["train"]["workers"] == 0
    assert_same_run(folder, whole)


@pytest.mark.parametrize("share", [0.15, 0.5, 0.85])
def test_ctrl_c_finishes_the_step_saves_and_names_the_command_to_resume(
    begin, forked_runs, whole, share
):
    new, resume, folder = begin(f"interrupted{share}")
    reply = forked_runs(*new, signal=int(signal.SIGINT), at=int(share * whole[1]))
    assert reply["codes"] == [130], reply["output"]
    assert "Traceback" not in reply["output"]
    (line,) = (line for line in reply["output"].splitlines() if line.startswith("stopped: "))
    assert "of 2, after" in line and line.endswith(f"--name {folder.name} --resume")
    reply = forked_runs(*resume)
    assert reply["codes"] == [0], reply["output"]
    assert_same_run(folder, whole[0])


@pytest.mark.parametrize("function", ["os.replace", "os.fsync"])
def test_power_loss_while_a_checkpoint_is_written(begin, forked_runs, whole, function):
    """Killed while a checkpoint is written: at the last call of an epoch, and at the next one."""
    new, resume, folder = begin(f"lost_{function}")
    module, name = function.split(".")
    for number, arguments in ((15, new), (4, resume), (5, resume)):
        patch = f"""
import {module}, signal
calls, original = 0, {function}
def failing(*arguments, **options):
    global calls
    calls += 1
    if calls == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
import os
{function} = failing
"""
        reply = forked_runs(*arguments, patch=patch)
        assert reply["codes"] == [-signal.SIGKILL], reply["output"]
    assert forked_runs(*resume)["codes"] == [0]
    assert_same_run(folder, whole[0])


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "one bit":
        # In the largest tensor: a flip in the padding between records would change nothing.
        with zipfile.ZipFile(path) as archive:
            record = max(archive.infolist(), key=lambda record: record.file_size)
        start = (
            record.header_offset
            + 30
            + sum(struct.unpack_from("<HH", content, record.header_offset + 26))
        )
        content[start + record.file_size // 2] ^= 1
    path.write_bytes(
        content[: len(content) // 3] if kind == "truncated" else b"" if kind == "empty" else content
    )


def test_a_damaged_checkpoint_is_replaced_by_the_last_undamaged_one(begin, forked_runs, whole):
    new, resume, folder = begin("damaged")
    # In epoch 2, where latest, previous and best exist and differ.
    assert forked_runs(*new, signal=int(signal.SIGKILL), at=int(0.7 * whole[1]))["codes"] == [
        -signal.SIGKILL
    ]
    damage(folder / "latest.pth", "one bit")
    reply = forked_runs(*resume, signal=int(signal.SIGKILL), at=1)
    assert (
        "latest.pth: damaged" in reply["output"]
        and "continuing from previous.pth" in reply["output"]
    )
    damage(folder / "previous.pth", "truncated")
    reply = forked_runs(*resume)
    assert reply["codes"] == [0] and "continuing from best.pth" in reply["output"], reply["output"]
    assert_same_run(folder, whole[0])
    for name in ("latest.pth", "previous.pth", "best.pth"):
        damage(folder / name, "empty")
    with pytest.raises(
        InputError, match="every checkpoint is damaged.*latest.pth.*previous.pth.*best.pth"
    ):
        find_checkpoint(folder, "latest")


def test_what_a_resumed_run_refuses(
    begin, forked_runs, whole, monkeypatch, tmp_path, capsys, tiny_data
):
    new, resume, folder = begin("refusing")
    assert forked_runs(*new, signal=int(signal.SIGKILL), at=int(0.4 * whole[1]))["codes"] == [
        -signal.SIGKILL
    ]

    def refusal(*arguments: object) -> str:
        assert run_main(train_multimodal_e2e, monkeypatch, *arguments) == 2
        return capsys.readouterr().err

    assert "already holds a run" in refusal(*new)
    for other, named in (
        (["--seed", 9], "seed was 0 and is now 9"),
        (["--lr", 0.1], "train.lr"),
        (["--epoch", 9], "epochs"),
        (["--precision", "bf16"], "--precision was 32"),
        (["--overfit"], "--overfit was False"),
    ):
        assert named in refusal(*resume, *other)
    # The same eyes, but a file has changed.
    changed = shutil.copytree(tiny_data, tmp_path / "changed")
    for file in (changed / "2_A").iterdir():
        file.write_bytes(file.read_bytes() + b"more")
    assert "cffa_2_A" in refusal(*resume, "--data", changed)
    assert "is complete" in refusal(*begin("whole")[1])
    # The checkpoint of an unfinished run can be used.
    assert Registrar(folder / "latest.pth", device="cpu").matcher is not None
