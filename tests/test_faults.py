"""Faults of data and numbers in a training run: each ends in a message that names the remedy."""

from __future__ import annotations

import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from helpers import error_of, run_main
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

import train_multimodal_e2e
from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.samples import discover_samples
from dataset.views import ViewGeometry
from training.batches import TolerantViews, batches_of_epoch
from training.engine import Engine
from training.loop_settings import TrainSettings
from training.step_output import StepOutput
from training.task import TrainingTask, ValidationReport
from utils.checkpoint import read_checkpoint
from utils.errors import InputError
from utils.image_files import read_gray, write_image

pytestmark = pytest.mark.slow


# --- the data -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training_eyes(tiny_data, tiny_config, tmp_path_factory, forked_runs) -> list[str]:
    """The eyes that a run on the tiny data trains on."""
    save = tmp_path_factory.mktemp("split")
    reply = forked_runs(
        *(f"--save {save} --config {tiny_config} --data {tiny_data} --name run --epoch 1").split(),
        signal=int(signal.SIGKILL),
        at=1,
    )
    assert reply["codes"] == [-signal.SIGKILL]
    split = save / "cffa" / "run" / "split.yaml"
    return yaml.safe_load(split.read_text())["train"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_sample_is_named_counted_and_skipped(
    writable_data, new_run, forked_runs, training_eyes, workers
):
    bad = writable_data / f"{training_eyes[0]}_A" / f"{training_eyes[0]}_A_fa_gen.png"
    bad.write_bytes(bad.read_bytes()[:500])
    arguments, folder = new_run(writable_data, "--workers", workers)
    reply = forked_runs(*arguments)
    assert reply["codes"] == [0], reply["output"]
    assert (
        reply["output"].count(
            f"skipped, replaced by another sample: {bad}: unreadable or truncated"
        )
        == 1
    )
    log = (folder / "train_log.txt").read_text()
    assert f"skipped: {bad}" in log and "skipped_views 0.5" in log, (
        "one of two views in one of two steps"
    )


def test_too_many_unreadable_samples_stop_the_run(
    writable_data, new_run, forked_runs, training_eyes
):
    bad = [writable_data / f"{eye}_A" / f"{eye}_A_cf_512.png" for eye in training_eyes[:2]]
    for path in bad:
        path.unlink(missing_ok=True)
        write_image(path, np.zeros((96, 96), np.uint8))
    arguments, folder = new_run(writable_data)
    message = error_of(forked_runs(*arguments))
    assert (
        "2 of 4 training samples cannot be read, more than the 1 that train.max_bad_share 0.02 "
        "allows" in message
    )
    assert (
        all(str(path) in message for path in bad)
        and "dataset.check" in message
        and "--resume" in message
    )
    assert (folder / "latest.pth").exists()


def test_a_data_set_that_changes_under_a_run(writable_data):
    samples, _ = discover_samples(writable_data, ["cffa"])
    views = TolerantViews(AlignedPairs(samples, ViewGeometry(img_size=64, long_side=96)), 0.2)
    changed, gone = samples[1], samples[2]
    write_image(changed.moving, 1.0 - read_gray(changed.moving))
    shutil.rmtree(gone.fixed.parent)
    view, skipped = views[ViewKey(1, 1)]
    assert view["key"] == samples[3].key and [number for number, _ in skipped] == [1, 2]
    assert "changed since the run began" in skipped[0][1] and "no such image" in skipped[1][1]
    again, _ = views[ViewKey(1, 1)]
    assert torch.equal(view["moving_image"], again["moving_image"]), (
        "the replacement follows from the key"
    )


# --- numbers --------------------------------------------------------------------------------------


def test_a_non_finite_gradient_is_named_and_can_be_repeated(tiny_data, new_run, forked_runs):
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
    arguments, folder = new_run(tiny_data)
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
    # Resumed from the dump, the first step fails in the same way; without the fault the run
    # continues to its end.
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
            *f"--config {tiny_config} --data {tiny_data} --device cpu".split(),
        )
        assert run_main(train_multimodal_e2e, patch, *arguments) == 0
    yield caught[0]
    caught[0].folder.close()


@pytest.mark.parametrize("case", ["no vessel", "no junction", "no overlap", "no retina"])
def test_batches_without_vessels_or_overlap_give_finite_losses(training, case):
    training.batches.epoch, training.batches.first_step = 1, 0
    batch = next(batches_of_epoch(training.loader))
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
    """On a CPU, with the scaler passed in; --precision fp16 needs a GPU."""
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
        return StepOutput({"total": network(batch["rows"]).float().mean()}, {}, {})

    def make(name: str) -> Engine:
        report = ValidationReport(0.0, {}, "")
        checks = SimpleNamespace(score=lambda *_: [], report=lambda _: report)
        task = TrainingTask(model, Rows(), step, lambda _: None, checks, {}, {})
        settings = TrainSettings(epochs=1, batch_size=2, views_per_sample=20, workers=0)
        return Engine(fabric, task, settings, tmp_path / name, seed=0)

    first = make("fp16")
    first.fit()
    history = first.state.history[-1]
    assert 0.0 < history["overflows"] < 1.0 and np.isfinite(history["gradient_norm"])
    lowered = scaler.get_scale()
    assert lowered < 2.0**40
    assert read_checkpoint(tmp_path / "fp16" / "latest.pth")["scaler"]["scale"] == lowered
    scaler.update(7.0)
    second = make("fp16b")
    with pytest.raises(InputError, match="complete"):
        second.resume(tmp_path / "fp16" / "latest.pth")
    assert scaler.get_scale() == lowered


def test_two_runs_of_one_name_at_once(training, tiny_data, tiny_config, monkeypatch, capsys):
    monkeypatch.setattr("training.run_folder.LOCK_SECONDS", 0.1)
    arguments = (
        *(
            f"--save {training.folder.path.parents[1]} --config {tiny_config} "
            f"--data {tiny_data} --device cpu"
        ).split(),
    )
    assert run_main(train_multimodal_e2e, monkeypatch, *arguments) == 2
    assert "another process is training this run" in capsys.readouterr().err
