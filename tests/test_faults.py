"""What goes wrong around a training run: each fault ends in a message of ours, and nothing is lost."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers import TINY_RUN, run_main
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

import register
import train_multimodal_e2e
from dataset.generated_pairs import GeneratedPairs, ViewKey
from dataset.samples import discover_samples
from dataset.views import ViewGeometry
from registration.pair_table import PairToRegister
from training.batches import TolerantViews
from training.engine import Engine
from training.joint_step import JointConfig
from training.run_folder import run_folder
from training.settings import TrainSettings
from training.task import StepOutput, TrainingTask, ValidationReport
from utils import image_files
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.config import build, read_yaml
from utils.errors import InputError
from utils.image_files import read_gray, read_mask, write_image


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    """A writable copy of the tiny data set."""
    shutil.copytree(tiny_data, tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def new(tiny_config, tmp_path):
    """Arguments of a new run on some data, and its folder."""

    def arguments(data: Path, *more: object) -> tuple[list, Path]:
        return (
            [
                "--save",
                tmp_path / "save",
                "--config",
                tiny_config,
                "--data",
                data,
                "--epoch",
                1,
                "--name",
                "run",
                *more,
            ],
            tmp_path / "save" / "cffa" / "run",
        )

    return arguments


def train_eyes(folder: Path) -> list[str]:
    return yaml.safe_load((folder / "split.yaml").read_text())["train"]


def error_of(reply: dict, code: int = 2) -> str:
    assert reply["codes"] == [code] and "Traceback" not in reply["output"], reply["output"]
    return next(line for line in reply["output"].splitlines() if line.startswith("error: "))


# --- the data -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training_eyes(tiny_data, tiny_config, tmp_path_factory, forked_runs) -> list[str]:
    """The eyes that a run on the tiny data trains on."""
    save = tmp_path_factory.mktemp("split")
    reply = forked_runs(
        "--save",
        save,
        "--config",
        tiny_config,
        "--data",
        tiny_data,
        "--name",
        "run",
        "--epoch",
        1,
        signal=int(signal.SIGKILL),
        at=1,
    )
    assert reply["codes"] == [-signal.SIGKILL]
    return train_eyes(save / "cffa" / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_is_named_counted_and_skipped(
    data, new, forked_runs, training_eyes, workers
):
    bad = data / f"{training_eyes[0]}_A" / f"{training_eyes[0]}_A_fa_gen.png"
    bad.write_bytes(bad.read_bytes()[:500])
    arguments, folder = new(data, "--workers", workers)
    reply = forked_runs(*arguments)
    assert reply["codes"] == [0], reply["output"]
    assert (
        reply["output"].count(f"skipped, another sample stands in: {bad}: unreadable or truncated")
        == 1
    )
    log = (folder / "train_log.txt").read_text()
    assert f"skipped: {bad}" in log and "skipped_views 0.5" in log, (
        "one of two views in one of two steps"
    )


def test_too_many_unreadable_samples_stop_the_run(data, new, forked_runs, training_eyes):
    bad = [data / f"{eye}_A" / f"{eye}_A_cf_512.png" for eye in training_eyes[:2]]
    for path in bad:
        path.unlink(missing_ok=True)
        write_image(path, np.zeros((96, 96), np.uint8))
    arguments, folder = new(data)
    message = error_of(forked_runs(*arguments))
    assert (
        "2 of 4 training samples cannot be read, more than the 1 that train.max_bad_share 0.02 allows"
        in message
    )
    assert (
        all(str(path) in message for path in bad)
        and "dataset.check" in message
        and "--resume" in message
    )
    assert (folder / "latest.pth").exists()


def test_a_data_set_that_changes_under_a_run(data):
    samples, _ = discover_samples(data, ["cffa"])
    views = TolerantViews(GeneratedPairs(samples, ViewGeometry(img_size=64, long_side=96)), 0.2)
    changed, gone = samples[1], samples[2]
    write_image(changed.moving, 1.0 - read_gray(changed.moving))
    shutil.rmtree(gone.fixed.parent)
    view, skipped = views[ViewKey(1, 1)]
    assert view["key"] == samples[3].key and [number for number, _ in skipped] == [1, 2]
    assert "changed since the run began" in skipped[0][1] and "no such image" in skipped[1][1]
    again, _ = views[ViewKey(1, 1)]
    assert torch.equal(view["moving_image"], again["moving_image"]), (
        "the stand-in follows from the key"
    )


# --- numbers ------------------------------------------------------------------------------------------------------------


def test_a_non_finite_gradient_is_named_and_can_be_repeated(tiny_data, new, forked_runs):
    # A square root at zero: the loss is finite, its gradient is not.
    patch = """
from loss.joint_objective import JointObjective
call = JointObjective.__call__
calls = 0
def poisoned(self, fixed, *arguments):
    global calls
    calls += 1
    result = call(self, fixed, *arguments)
    if calls == POISONED:
        result.losses["total"] = result.losses["total"] + (fixed.detector * 0).sum().sqrt()
    return result
JointObjective.__call__ = poisoned
"""
    arguments, folder = new(tiny_data)
    message = error_of(forked_runs(*arguments, patch=f"POISONED = 2{patch}"), code=3)
    assert (
        "gradient of " in message
        and "epoch 1, step 2" in message
        and f"--resume {folder / 'nonfinite.pth'}" in message
    )
    dump = read_checkpoint(folder / "nonfinite.pth")
    (failure,) = dump["failure"]
    assert (
        all(key in message for key in failure["samples"])
        and failure["batch"]["fixed_image"].shape[0] == 2
    )
    assert all(tensor.isfinite().all() for tensor in dump["model"].values()), (
        "the state before the step"
    )
    # Resumed from the dump, the first step is the same one; mended, the run goes on to its end.
    which = ["--save", folder.parents[1], "--name", "run", "--resume"]
    again = error_of(
        forked_runs(*which, folder / "nonfinite.pth", patch=f"POISONED = 1{patch}"), code=3
    )
    assert again == message
    assert forked_runs(*which)["codes"] == [0]


@pytest.fixture(scope="module")
def training(tiny_data, tiny_config, tmp_path_factory):
    """An engine of the training script in this process, before its first step."""
    with pytest.MonkeyPatch.context() as patch:
        caught = []
        patch.setattr(Engine, "fit", lambda self: caught.append(self))
        arguments = (
            "--save",
            tmp_path_factory.mktemp("engine"),
            "--config",
            tiny_config,
            "--data",
            tiny_data,
            "--device",
            "cpu",
        )
        assert run_main(train_multimodal_e2e, patch, *arguments) == 0
    yield caught[0]
    caught[0].folder.close()


@pytest.mark.parametrize("case", ["no vessel", "no junction", "no overlap", "no retina"])
def test_batches_with_nothing_in_them_are_ordinary(training, case):
    training.batches.epoch, training.batches.first_step = 1, 0
    batch = next(iter(training.loader))
    batch.pop("skipped")
    if case == "no vessel":
        batch["anchor_valid"][:] = False
    for name in {
        "no vessel": ("mask", "heatmap"),
        "no junction": ("heatmap",),
        "no retina": ("fov", "image"),
        "no overlap": (),
    }[case]:
        for role in ("fixed", "moving"):
            batch[f"{role}_{name}"][:] = 0.0
    if case == "no overlap":
        batch["H_fix_to_mov"][:, 0, 2] += 500.0
    training.optimizer.zero_grad()
    output = training.task.step(training.model, batch)
    training.fabric.backward(output.losses["total"])
    assert all(loss.isfinite() for loss in output.losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in training.task.model.parameters())
    assert output.n_valid["geo"] == (0 if case in ("no overlap", "no retina") else 2)


def test_fp16_skips_overflows_and_keeps_its_scale(training, monkeypatch, tmp_path):
    """On a CPU, by handing the scaler in: the script itself asks for a GPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    fabric = Fabric(
        accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]
    )
    model = torch.nn.Linear(4, 1)

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, key: ViewKey) -> dict:
            return {"rows": torch.full((4,), 1.0 + key.index), "key": str(key.index)}

    def step(network: torch.nn.Module, batch: dict) -> StepOutput:
        return StepOutput({"total": network(batch["rows"]).float().mean()}, {}, {}, [])

    def make(name: str) -> Engine:
        report = ValidationReport(0.0, {}, "")
        task = TrainingTask(model, Rows(), step, lambda _: None, lambda *_: report, {}, {})
        settings = TrainSettings(epochs=1, batch_size=2, views_per_sample=20, workers=0)
        return Engine(fabric, task, settings, tmp_path / name, seed=0)

    first = make("fp16")
    first.fit()
    history = first.history[-1]
    assert 0.0 < history["overflows"] < 1.0 and np.isfinite(history["gradient_norm"])
    lowered = scaler.get_scale()
    assert lowered < 2.0**40
    assert read_checkpoint(tmp_path / "fp16" / "latest.pth")["scaler"]["scale"] == lowered
    scaler.update(7.0)
    second = make("fp16b")
    with pytest.raises(InputError, match="complete"):
        second.resume(tmp_path / "fp16" / "latest.pth")
    assert scaler.get_scale() == lowered


# --- around the run -------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_checkpoint(tiny_data, new, forked_runs):
    arguments, folder = new(tiny_data)
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
def test_a_file_system_that_is_really_full(tmp_path):
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
            "--save",
            where,
            "--config",
            tiny_config,
            "--data",
            tiny_data,
            "--device",
            "cpu",
        )
        assert run_main(train_multimodal_e2e, monkeypatch, *arguments) == 2
        assert "cannot be written to" in capsys.readouterr().err
        assert (
            run_main(
                register,
                monkeypatch,
                "a.png",
                "b.png",
                "--out",
                where,
                "--weights",
                untrained_weights,
            )
            == 2
        )
        assert "cannot be written to" in capsys.readouterr().err


def test_a_killed_data_worker(tiny_data, new, forked_runs):
    patch = """
import os, signal
from dataset.generated_pairs import GeneratedPairs
from torch.utils.data import get_worker_info
get = GeneratedPairs.__getitem__
def killed(self, key):
    if get_worker_info() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return get(self, key)
GeneratedPairs.__getitem__ = killed
"""
    arguments, folder = new(tiny_data, "--workers", 1)
    message = error_of(forked_runs(*arguments, patch=patch))
    assert (
        "a data worker was killed by the system" in message
        and "--workers" in message
        and "--resume" in message
    )
    assert forked_runs("--save", folder.parents[1], "--name", "run", "--workers", 0, "--resume")[
        "codes"
    ] == [0]


def test_two_runs_of_one_name_at_once(training, tiny_data, tiny_config, monkeypatch, capsys):
    monkeypatch.setattr("training.run_folder.LOCK_SECONDS", 0.1)
    arguments = (
        "--save",
        training.folder.path.parents[1],
        "--config",
        tiny_config,
        "--data",
        tiny_data,
        "--device",
        "cpu",
    )
    assert run_main(train_multimodal_e2e, monkeypatch, *arguments) == 2
    assert "another process is training this run" in capsys.readouterr().err


# --- security -------------------------------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_checkpoint_cannot_execute_anything(
    tmp_path, monkeypatch, capsys, kind, tiny_data, tiny_config, untrained_weights
):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = torch.load(untrained_weights, weights_only=True) | {
        "config": Malicious(marker),
        "extra": {},
    }
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    for script, arguments in (
        (register, ("a.png", "b.png", "--out", tmp_path / "out", "--weights", path)),
        (
            train_multimodal_e2e,
            (
                "--config",
                tiny_config,
                "--data",
                tiny_data,
                "--save",
                tmp_path / "s",
                "--resume",
                path,
            ),
        ),
        (
            train_multimodal_e2e,
            (
                "--config",
                tiny_config,
                "--data",
                tiny_data,
                "--save",
                tmp_path / "s",
                "--pretrained",
                path,
            ),
        ),
    ):
        assert run_main(script, monkeypatch, *arguments) == 2
        message = capsys.readouterr().err
        assert "evil.pth: damaged, or holds more than tensors and plain values" in message
    assert not marker.exists()
    # The same file would have done it with an ordinary load.
    if kind == "pickle":
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_a_checkpoint_that_unpacks_to_more_than_it_is(tmp_path, untrained_weights):
    bomb = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(untrained_weights) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(InputError, match="bomb.pth.*compressed"):
        read_checkpoint(bomb)
    content = torch.load(untrained_weights, weights_only=True)
    content["model_settings"]["widths"] = [8, 8, 2**30]
    save_checkpoint(bomb, content)
    with pytest.raises(InputError, match="none above 1024"):
        register.Registrar(bomb, device="cpu")


def test_yaml_is_loaded_safely(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "evil.yaml"
    path.write_text(
        f"model: !!python/object/apply:os.system ['touch {marker}']\n", encoding="utf-8"
    )
    with pytest.raises(InputError, match="evil.yaml.*YAML"):
        read_yaml(path)
    assert not marker.exists()
    # Ten aliases of ten aliases ...: small to read, gigabytes to print.
    laughs = "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10) if n else 'ha'}]\n" for n in range(12)
    )
    path.write_text(laughs + "train: {lr: *a11}\n", encoding="utf-8")
    content = read_yaml(path)
    with pytest.raises(InputError, match="train: lr") as caught:
        build(JointConfig, {"train": content["train"]}, str(path))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "..", "a/b", "a\\b", "", ".hidden", "x\x00y"]
)
def test_names_cannot_lead_out_of_the_output_folder(
    tmp_path, name, untrained_weights, monkeypatch, capsys, numbered_root
):
    with pytest.raises(InputError, match="plain name"):
        run_folder(tmp_path, "cffa", name)
    row = PairToRegister(name, "a.png", "b.png", {})
    before = sorted(tmp_path.rglob("*"))
    record = register.process_row(row, None, tmp_path / "out", set(), [])
    assert (
        record["status"] == "failed"
        and "plain name" in record["reason"]
        and sorted(tmp_path.rglob("*")) == before
    )
    import evaluate

    arguments = (
        "--real",
        numbered_root[0],
        "--mode",
        name,
        "--weights",
        untrained_weights,
        "--out",
        tmp_path / "out",
    )
    assert (
        run_main(evaluate, monkeypatch, *arguments) == 2 and "plain name" in capsys.readouterr().err
    )


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".bmp"])
def test_images_of_absurd_size_are_refused_before_they_are_unpacked(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"bomb{suffix}"
    assert cv2.imwrite(str(path), np.zeros((400, 500), np.uint8))
    monkeypatch.setattr(image_files, "MAX_PIXELS", 150_000)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("unpacked"))
    for read in (read_gray, read_mask):
        with pytest.raises(InputError, match=f"bomb{suffix}: 500 x 400 px.*smaller"):
            read(path)


def test_a_real_image_bomb(tmp_path):
    """200 kB that say they are 60000 x 60000 pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(200 * 2**20), 9)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="bomb.png.*smaller"):
        read_gray(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"


# --- memory and time ------------------------------------------------------------------------------------------------------


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
        "--save",
        tmp_path,
        "--config",
        tmp_path / "long.yaml",
        "--data",
        tiny_data,
        "--epoch",
        1,
        "--profile",
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
    # --profile prints where the time went, and the operators.
    assert (
        "200 steps in" in reply["output"]
        and "forward and loss" in reply["output"]
        and "aten::" in reply["output"]
    )
