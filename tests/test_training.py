"""train_multimodal_e2e.py: losses fall, pairs are registered, and all files are written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import train_multimodal_e2e
from dataset.aligned_pairs import AlignedPairs, ViewKey
from dataset.samples import discover_samples
from dataset.views import ViewGeometry
from geometry.accuracy import corner_error
from geometry.matrices import affine_about, image_centre, turn_about_centre
from geometry.points import warp_points
from geometry.rasters import register_onto_fixed
from registration.registrar import Registrar
from synthesis.generated_set import write_generated_set
from training.batches import ViewBatches
from training.loop_settings import TrainSettings
from utils.checkpoint import read_checkpoint
from utils.errors import InputError
from utils.image_files import read_gray, write_image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(
        sys, "argv", ["train_multimodal_e2e.py", "--device", "cpu", *map(str, arguments)]
    )
    train_multimodal_e2e.main()


def test_validation_takes_every_mode(monkeypatch, tmp_path, tiny_data, tiny_config):
    run_main(
        monkeypatch,
        *(
            f"--config {tiny_config} --data {tiny_data} --save {tmp_path} --epoch "
            "1 --name modes --mode cffa cfoct"
        ).split(),
    )
    log = (tmp_path / "cffa_cfoct" / "modes" / "validation_log.txt").read_text()
    assert "rate_cffa" in log and "rate_cfoct" in log


def test_validation_can_be_every_nth_epoch(monkeypatch, tmp_path, tiny_data, tiny_config):
    """The untrained network and the last epoch are validated in any case."""
    run_main(
        monkeypatch,
        *(
            f"--config {tiny_config} --data {tiny_data} --save {tmp_path} --epoch 3 --name rare "
            "--val_every 2"
        ).split(),
    )
    run = tmp_path / "cffa" / "rare"
    history = read_checkpoint(run / "latest.pth")["history"]
    assert [record["epoch"] for record in history if "val_AUC@10" in record] == [0, 2, 3]
    assert [record["epoch"] for record in history if "total" in record] == [1, 2, 3]
    log = (run / "validation_log.txt").read_text()
    assert re.findall(r"== epoch (\d+) ==", log) == ["0", "2", "3"]
    assert not (run / "epoch1").exists() and (run / "report.html").stat().st_size > 0


def test_run_writes_all_its_files(monkeypatch, tmp_path, tiny_data, tiny_config):
    run_main(
        monkeypatch,
        *(
            f"--config {tiny_config} --data {tiny_data} --save {tmp_path} --epoch 1 --name run"
        ).split(),
    )
    run = tmp_path / "cffa" / "run"
    for name in (
        "config.yaml",
        "split.yaml",
        "train_log.txt",
        "validation_log.txt",
        "curves.png",
        "latest.pth",
        "best.pth",
    ):
        assert (run / name).stat().st_size > 0, name
    assert any((run / "events").iterdir())
    for epoch in (0, 1):
        names = sorted(path.name for path in (run / f"epoch{epoch}").iterdir())
        sample = names[0].split("_fix_")[0]
        assert names == [
            f"{sample}_{kind}.png"
            for kind in ("fix_registered_checkerboard", "keypoints", "matches", "registered")
        ]
    train_log = (run / "train_log.txt").read_text()
    for term in (
        "det",
        "des",
        "geo",
        "pke",
        "total",
        "lr",
        "pairs_per_second",
        "map_places",
        "empty_pke",
        "geo_plan",
        "pke_repeated",
    ):
        assert re.search(rf"\b{term} [\d.e+-]+", train_log), term
    split = yaml.safe_load((run / "split.yaml").read_text())
    assert not set(split["train"]) & set(split["val"]) and not set(split["test"]) & (
        set(split["train"]) | set(split["val"])
    )
    content = read_checkpoint(run / "latest.pth")
    assert content["epoch"] == 1 and content["extra"]["value_map"].keys() == {
        "settings",
        "places",
        "values",
        "views",
    }


def test_overfit_trains_on_one_batch(monkeypatch, tmp_path, tiny_data, tiny_config):
    run_main(
        monkeypatch,
        *(
            f"--config {tiny_config} --data {tiny_data} --save {tmp_path} --epoch "
            "6 --name over --overfit --lr 0.005"
        ).split(),
    )
    history = read_checkpoint(tmp_path / "cffa" / "over" / "latest.pth")["history"]
    assert history[-1]["total"] < 0.97 * history[1]["total"]


def test_processes_share_every_batch():
    settings = TrainSettings(batch_size=4, views_per_sample=2)
    whole = ViewBatches(10, settings, seed=3)
    halves = [ViewBatches(10, settings, seed=3, rank=rank, world_size=2) for rank in (0, 1)]
    whole.epoch = halves[0].epoch = halves[1].epoch = 7
    for batch, first, second in zip(whole, *halves, strict=True):
        assert sorted(batch) == sorted(first + second) and len(first) == len(second)
    assert all(key.epoch == 7 for batch in whole for key in batch)
    with pytest.raises(InputError, match="shared evenly"):
        ViewBatches(10, TrainSettings(batch_size=3), seed=0, world_size=2)


# --- a model that really learnt -------------------------------------------------------------------

# Images and network of half the usual size, so that two minutes of training are enough.
LEARNER = {
    "model": {"widths": [16, 32, 64, 64], "descriptor_dim": 48, "ridge_sigmas": [0.8, 1.3, 2.2]},
    "view": {
        "img_size": 128,
        "long_side": 256,
        "rotation_deg": 38,
        "scale": [0.85, 1.18],
        "translation": 0.1,
        "zoom": [0.9, 1.1],
    },
    "match": {"long_side": 256, "nms_radius_px": 3, "field_margin_px": 3},
    "data": {"photometric": False},
    "train": {"batch_size": 6, "views_per_sample": 50, "workers": 2, "lr": 0.0015},
    "validation": {"pairs": 12, "pictures": 1},
}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A network trained by the script on synthesised eyes: folders of the run and the data."""
    folder = tmp_path_factory.mktemp("learnt")
    write_generated_set(folder / "generated", eyes=48, size=256, processes=2, progress=False)
    (folder / "learner.yaml").write_text(yaml.safe_dump(LEARNER))
    command = [
        sys.executable,
        "train_multimodal_e2e.py",
        *(
            f"--config {folder / 'learner.yaml'} --data {folder / 'generated'} "
            f"--save {folder / 'save'} --epoch 2 --device cpu --name learnt"
        ).split(),
    ]
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "save" / "cffa" / "learnt", folder / "generated"


def test_losses_and_validation_mse_fall(learnt):
    history = read_checkpoint(learnt[0] / "latest.pth")["history"]
    for term in ("total", "det", "des", "geo"):
        assert history[-1][term] < history[1][term], term
    assert history[-1]["geo_plan"] > 0, "logged, although its weight is 0"
    for figure in ("val_AUC@10", "val_MMA@3", "val_repeatability"):
        assert history[-1][figure] > history[0][figure], figure
    assert history[-1]["val_mse"] < history[0]["val_mse"]
    assert history[-1]["map_places"] > 0


def test_pair_turned_by_30_degrees_is_recovered(learnt):
    run, data = learnt
    split = yaml.safe_load((run / "split.yaml").read_text())
    registrar = Registrar(run / "best.pth", device="cpu")
    errors = []
    for eye in split["test"] + split["val"]:
        fixed, moving = (
            read_gray(data / f"{eye}_A" / f"{eye}_A_{name}.png") for name in ("cf", "fa_gen")
        )
        H_true = affine_about(
            30.0, 1.0, 0.0, image_centre(fixed.shape), image_centre(fixed.shape) + [8, -6]
        )
        turned = register_onto_fixed(moving, np.linalg.inv(H_true), moving.shape)
        errors.append(
            corner_error(
                registrar.register(fixed, turned).H_fix_to_mov, H_true, fixed.shape, turned.shape
            )
        )
    assert np.mean(np.array(errors) < 8.0) >= 0.5, errors


def test_same_image_twice_gives_the_identity(learnt):
    run, data = learnt
    image = read_gray(data / "1_A" / "1_A_cf.png")
    result = Registrar(run / "best.pth", device="cpu").register(image, image)
    assert result.status == "ok" and np.abs(result.H_fix_to_mov - np.eye(3)).max() < 0.05


def test_images_of_different_eyes_fail(learnt):
    run, data = learnt
    registrar = Registrar(run / "best.pth", device="cpu")
    pairs = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]
    results = [
        registrar.register(data / f"{a}_A" / f"{a}_A_cf.png", data / f"{b}_A" / f"{b}_A_fa_gen.png")
        for a, b in pairs
    ]
    assert all(
        result.status == "failed" and result.reason and result.H_fix_to_mov is None
        for result in results
    )


def test_matrix_is_in_original_pixels_of_both_images(learnt, tmp_path):
    """Register files of other sizes than the working size through the script."""
    run, data = learnt
    fixed = read_gray(data / "2_A" / "2_A_cf.png")
    H_turn, canvas = turn_about_centre(fixed.shape, 12.0, 1.7)
    moving = register_onto_fixed(fixed, np.linalg.inv(H_turn), canvas)
    write_image(tmp_path / "fixed.png", fixed)
    write_image(tmp_path / "moving.tif", moving)
    command = [
        sys.executable,
        "register.py",
        tmp_path / "fixed.png",
        tmp_path / "moving.tif",
        *f"--out {tmp_path / 'out'} --weights {run / 'best.pth'} --device cpu".split(),
    ]
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True)
    found = json.loads((tmp_path / "out" / "fixed_moving" / "transform.json").read_text())
    assert found["status"] == "ok", found
    points = np.array([[60.0, 80.0], [200.0, 70.0], [128.0, 200.0]])
    assert (
        np.abs(
            warp_points(points, np.array(found["H_fix_to_mov"])) - warp_points(points, H_turn)
        ).max()
        < 3.0
    )
    for name in ("registered.png", "checkerboard.png", "matches.png"):
        assert (tmp_path / "out" / "fixed_moving" / name).is_file()


def test_generated_views_do_not_depend_on_workers(tiny_data):
    samples, _ = discover_samples(tiny_data, ["cffa"])
    views = AlignedPairs(samples, ViewGeometry(img_size=64, long_side=96))
    keys = [[ViewKey(2, 0), ViewKey(2, 1)], [ViewKey(2, 2), ViewKey(2, 3)]]
    alone, in_workers = (
        list(torch.utils.data.DataLoader(views, batch_sampler=keys, num_workers=n)) for n in (0, 2)
    )
    for a, b in zip(alone, in_workers, strict=True):
        assert torch.equal(a["moving_image"], b["moving_image"]) and torch.equal(
            a["H_fix_to_mov"], b["H_fix_to_mov"]
        )
