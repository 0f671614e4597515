"""Curved transforms in register.py, evaluate.py and benchmarks/transforms.py."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from curved_pairs import draw_gazes, make_curved_pair, mean_error
from helpers import run_main

import evaluate
import register
from benchmarks import transforms
from benchmarks.transforms import ORACLES, oracle_error
from dataset.real_pairs import RealPair
from geometry.matrices import affine_about
from geometry.points import warp_points
from geometry.rasters import register_onto_fixed
from geometry.transforms import MatrixTransform
from synthesis.camera_pairs import write_pair
from utils.image_files import write_image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def curved():
    """A pair whose transform is far from affine."""
    return make_curved_pair()


@pytest.mark.parametrize("requested", ["auto", "homography"])
def test_register_writes_the_transform_and_the_affine_matrix(
    curved, requested, tmp_path, monkeypatch
):
    write_image(tmp_path / "cf.png", curved.fixed)
    write_image(tmp_path / "fa.png", curved.moving)
    images = tmp_path / "cf.png", tmp_path / "fa.png"
    options = ("--out", tmp_path / "out", "--transform", requested, "--device", "cpu")
    assert run_main(register, monkeypatch, *images, *options) == 0
    folder = tmp_path / "out" / "cf_fa"
    content = json.loads((folder / "transform.json").read_text())
    assert (
        content["status"] == "ok"
        and content["asked_for"] == requested
        and content["least_jacobian"] > 0
    )
    H_affine = np.array(content["H_affine"])
    assert (
        np.array_equal(H_affine[2], [0, 0, 1])
        and mean_error(MatrixTransform(H_affine), curved.fixed_points, curved.moving_points) < 12
    )
    if requested == "homography":
        assert content["transform"] == "homography" and not (folder / "displacement.png").exists()
        return
    assert content["transform"] in ("quadratic", "deformable") and content["transform_reason"]
    assert content["H_fix_to_mov"] == content["H_affine"]
    for name in (
        "displacement.png",
        "checkerboard_affine.png",
        "checkerboard.png",
        "registered.png",
    ):
        assert (folder / name).stat().st_size > 1000, name
    result = register.Registrar(transform=requested, device="cpu").register(
        curved.fixed, curved.moving
    )
    assert mean_error(
        result.transform, curved.fixed_points, curved.moving_points
    ) < 0.6 * mean_error(MatrixTransform(result.matrix), curved.fixed_points, curved.moving_points)
    assert (
        np.abs(
            result.warp() - register_onto_fixed(curved.moving, result.transform, (512, 512))
        ).max()
        < 0.02
    )


@pytest.fixture(scope="module")
def camera_root(tmp_path_factory):
    """The curved pair as a folder of real pairs."""
    root = tmp_path_factory.mktemp("camera") / "cffa"
    write_pair(root / "7_1", draw_gazes())
    return root


def test_evaluation_scores_the_whole_transform(camera_root, tmp_path, monkeypatch):
    assert (
        run_main(
            evaluate,
            monkeypatch,
            "--real",
            camera_root,
            "--transform",
            "auto",
            "--compare",
            "superretina",
            "oracle",
            "--rotations",
            0,
            "--out",
            tmp_path,
            "--device",
            "cpu",
        )
        == 0
    )
    with open(tmp_path / "pairs.csv", encoding="utf-8", newline="") as handle:
        means = {row["method"]: float(row["mean"]) for row in csv.DictReader(handle)}
    assert means["superretina"] < 0.5 * means["oracle"], "the oracle is the best affine matrix"


def test_benchmark_compares_transforms_and_counts_folds(camera_root, monkeypatch, capsys):
    assert (
        run_main(
            transforms, monkeypatch, "--data", camera_root, "--transforms", "affine", "quadratic"
        )
        == 0
    )
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if "|" in line
    ]
    affine, quadratic = table[2:]
    assert (
        affine[0] == "affine"
        and affine[4:6] == ["1.00", "+0.00"]
        and quadratic[1] == "0/1"
        and "1 quadratic" in quadratic[7]
    )
    assert float(quadratic[4]) < 0.6 and float(quadratic[6]) < 0.3 * float(affine[6])
    assert run_main(transforms, monkeypatch, "--data", camera_root, "--fold", 2) == 0
    assert capsys.readouterr().out.startswith("0 of 2 fold")
    assert (
        run_main(transforms, monkeypatch, "--data", camera_root, "--transforms", "quadratic") == 2
    )


@pytest.mark.parametrize("model", list(ORACLES))
def test_oracles_are_exact_on_pairs_of_their_model(model):
    rng = np.random.default_rng(0)
    fixed = rng.uniform(0, 500, (30, 2))
    H = affine_about(30, 1.1, 0.0 if model == "similarity" else 0.1, (250, 250), (260, 240))
    if model == "homography":
        H[2, :2] = 2e-4, -1e-4
    moving = warp_points(fixed, H)
    if model == "quadratic":
        moving = moving + 1e-4 * np.stack([fixed[:, 0] * fixed[:, 1], fixed[:, 1] ** 2], axis=1)
    pair = RealPair("p", "1", None, None, fixed, moving, np.eye(3), 0.0)
    assert oracle_error(pair, model, (512, 512)) < 1e-6
    if model != "similarity":
        assert oracle_error(pair, "similarity", (512, 512)) > 0.5
