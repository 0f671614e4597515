"""Transforms beyond affine: found where the images bear them out, and nowhere else."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from helpers import run_main

import evaluate
import register
from benchmarks import transforms
from benchmarks.transforms import ORACLES, oracle_error
from dataset.real_pairs import RealPair
from geometry.curved_transforms import DeformableTransform
from geometry.estimation import fit_affine
from geometry.matrices import affine_about, compose, translation_matrix
from geometry.points import pixel_grid, warp_points
from geometry.rasters import register_onto_fixed
from geometry.transforms import MatrixTransform
from registration import affine_refinement as A
from registration.affine_refinement import refine_affine
from registration.curved_refinement import (
    LEAST_GAIN,
    LEAST_SIGNIFICANCE,
    _chosen,
    estimate_beyond_affine,
)
from registration.displacement_fits import (
    Basis,
    Lattice,
    affine_basis,
    blocks_across,
    fit_displacement,
    gain_of,
    held_out_residuals,
    quadratic_basis,
    robust_weights,
    unit_frame,
)
from registration.displacement_fits import bent as bent_of
from registration.patches import LocalMatches, find_peaks, strongest_in_cells
from registration.pipeline import choose_transform
from registration.ridges import RidgePair
from registration.working_frame import to_working_frame
from synthesis.camera_pairs import PairDraw, draw_pair, landmarks_of, write_pair
from utils.image_files import write_image

SIZE = (400, 440)


def gray(image):
    return (image if image.ndim == 2 else image[..., 1]).astype(np.float32)


@pytest.fixture(scope="module")
def curved():
    """A pair of two gazes with an overlap of a half to two thirds: pictures, landmarks, and the ridges of both."""
    pair = draw_pair("cffa", 7, PairDraw(seed=11, largest_overlap=0.66))
    fixed, moving = gray(pair.fixed), gray(pair.moving)
    return (
        fixed,
        moving,
        *landmarks_of(pair.moving_xy),
        RidgePair(*(to_working_frame(each, 512) for each in (fixed, moving))),
    )


@pytest.fixture(scope="module")
def flat(curved):
    """The same photograph twice, the second seen through a known affine matrix, and inverted."""
    H_fix_to_mov = affine_about(20.0, 1.05, 0.01, (255.5, 255.5), (262.0, 250.0))
    moving = register_onto_fixed(1.0 - curved[0], np.linalg.inv(H_fix_to_mov), (512, 512))
    seen = (
        register_onto_fixed(
            (curved[0] > 0.05).astype(np.float32), np.linalg.inv(H_fix_to_mov), (512, 512)
        )
        > 0.5
    )
    ridges = RidgePair(
        *(
            to_working_frame(each, 512)
            for each in (curved[0], np.where(seen, moving, 0.0).astype(np.float32))
        )
    )
    return ridges, H_fix_to_mov


def error(transform, fixed, moving):
    return float(np.linalg.norm(transform.map(fixed) - moving, axis=1).mean())


@pytest.mark.parametrize("asked", ["quadratic", "deformable", "auto"])
def test_two_gazes_are_laid_on_each_other_beyond_affine(curved, asked):
    _, _, fixed, moving, ridges = curved
    H = fit_affine(fixed, moving)
    choice = choose_transform(ridges, H, asked)
    assert choice.transform.kind in ("quadratic", "deformable") and "saves" in choice.reason
    assert error(choice.transform, fixed, moving) < 0.5 * error(MatrixTransform(H), fixed, moving)
    assert choice.transform.least_jacobian(curved[0].shape) > 0


@pytest.mark.parametrize("asked", ["quadratic", "deformable", "auto"])
def test_an_affine_pair_stays_affine(flat, asked):
    ridges, H = flat
    choice = choose_transform(ridges, H, asked)
    places = pixel_grid((512, 512)).double().numpy()[::501]
    assert np.linalg.norm(choice.transform.map(places) - warp_points(places, H), axis=1).max() < 0.1
    assert choice.transform.kind == "affine" and "too little" in choice.reason


@pytest.mark.parametrize("turn_deg, scale", [(1.2, 1.015), (3.0, 1.03)])
def test_affine_is_put_right_from_further_away_than_one_round_of_correlation_goes(
    flat, turn_deg, scale
):
    ridges, H = flat
    frames = [image.frame.H_image_to_working for image in ridges.images]
    rough = compose(
        np.linalg.inv(frames[0]),
        affine_about(turn_deg, scale, 0.01, (200, 300), (206.0, 296.0)) @ H,
        frames[1],
    )
    true = compose(np.linalg.inv(frames[0]), H, frames[1])
    corners = np.array([[60.0, 60], [450, 60], [450, 450], [60, 450]])

    def off(matrix):
        return np.linalg.norm(
            warp_points(corners, matrix) - warp_points(corners, true), axis=1
        ).max()

    assert off(ridges.refine(rough, "affine")) > 5 and off(refine_affine(ridges, rough)) < 0.3
    assert off(refine_affine(ridges, true)) < 0.2, "and what is right is left alone"


class ScriptedRidges:
    """Stands for a pair of ridge maps: correlation steps by ``step``, patches lead to ``by_patches``, and the agreement of a
    matrix is looked up by its shift along x."""

    def __init__(self, agreements, step=0.0):
        self.agreements, self.step, self.ridges = agreements, step, [np.zeros((100, 120))] * 2

    def refine(self, H, transform, blur_px=1, least_gain=0.0, farthest_px=0.0):
        return compose(
            H,
            translation_matrix((self.step if least_gain else 0.0 if blur_px == 1 else 30.0, 0.0)),
        )

    def agreement(self, H):
        return self.agreements[round(float(H[0, 2]), 1)]


@pytest.mark.parametrize(
    "agreements, step, expected",
    [
        ({0.0: 1.0, 10.0: 4.9}, 0.0, 0.0),  # what maps of different eyes reach too
        (
            {0.0: 1.0, 10.0: 5.0, 20.0: 5.04, 40.0: 5.0},
            0.0,
            10.0,
        ),  # and no rise to speak of after it
        (
            {0.0: 4.0, 10.0: 3.0, 30.0: 6.0, 40.0: 5.0, 60.0: 6.0},
            0.0,
            30.0,
        ),  # patches are wrong, blurred maps are right
        (
            {0.0: 6.0, 10.0: 5.0, 30.0: 5.0, 16.0: 5.8},
            2.0,
            16.0,
        ),  # correlation goes on until it stays or is stopped
        ({0.0: 6.0, 10.0: 5.0, 30.0: 5.0, 16.0: 5.7}, 2.0, 0.0),
    ],
)  # but not away from what agrees
def test_steps_count_where_the_ridges_agree_better(monkeypatch, agreements, step, expected):
    monkeypatch.setattr(
        A, "follow_patches", lambda ridges, H: compose(H, translation_matrix((10.0, 0.0)))
    )
    assert refine_affine(ScriptedRidges(agreements, step), np.eye(3))[0, 2] == pytest.approx(
        expected
    )


def test_images_without_a_common_vessel_are_left_alone():
    rng = np.random.default_rng(0)
    images = [
        np.clip(0.5 + 0.1 * rng.standard_normal((300, 300)), 0, 1).astype(np.float32)
        for _ in range(2)
    ]
    images.append(np.full((300, 300), 0.5, np.float32))
    for moving in images[1:]:
        ridges = RidgePair(*(to_working_frame(each, 256) for each in (images[0], moving)))
        H = affine_about(30.0, 1.0, 0.0, (128, 128), (128, 128))
        choice = estimate_beyond_affine(ridges, H, "auto")
        assert isinstance(choice.transform, MatrixTransform) and np.array_equal(
            choice.transform.H_fix_to_mov, H
        )
        assert "affine" in choice.reason and np.array_equal(
            refine_affine(ridges, H), ridges.refine(H, "affine")
        )


# --- parts -----------------------------------------------------------------------------------------------------------


def test_peaks_are_found_to_parts_of_a_pixel():
    y, x = np.mgrid[-5:6, -5:6].astype(float)
    places = np.array([[1.3, -2.2], [0.0, 0.4], [-3.1, 3.45]])
    surfaces = np.stack([0.9 - 0.02 * (x - px) ** 2 - 0.05 * (y - py) ** 2 for px, py in places])
    beside = np.stack(
        [
            0.9 - 0.01 * (x - 7) ** 2 - 0.01 * y**2,
            np.zeros_like(x),
            np.full_like(x, np.nan),
            0.2 - 0.02 * (x**2 + y**2),
        ]
    )
    kept, displacements, information = find_peaks(
        np.concatenate([surfaces, beside]).astype(np.float32)
    )
    assert kept.tolist() == [0, 1, 2] and np.abs(displacements - places).max() < 0.01
    assert np.allclose(information[:, 1, 1] / information[:, 0, 0], 2.5, rtol=0.02)
    assert np.allclose(information[:, 0, 1], 0, atol=0.01)


def test_one_strong_pixel_a_cell():
    strength = np.zeros((66, 77), np.float32)
    strength[30, 40], strength[31, 41], strength[50, 20], strength[2, 2] = 1.0, 0.9, 0.8, 5.0
    assert sorted(map(tuple, strongest_in_cells(strength, 5))) in (
        [(40, 30)],
        [(20, 50), (40, 30)],
    )
    assert len(strongest_in_cells(np.zeros((66, 77), np.float32), 5)) == 0


def scattered(n=300, wrong=0.3, seed=0):
    """Matches of a quadratic displacement with noise of 0.3 px, of which some are anything."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([0, 0], [SIZE[1], SIZE[0]], (n, 2))
    u, v = ((points - [220, 200]) / 200).T
    displacements = np.stack([1 + 3 * u * v - v**2, 2 * u**2 - 1.5 * v], axis=1) + rng.normal(
        0, 0.3, (n, 2)
    )
    bad = rng.random(n) < wrong
    displacements[bad] = rng.uniform(-12, 12, (int(bad.sum()), 2))
    return LocalMatches(points, displacements, np.tile(np.eye(2), (n, 1, 1))), bad


def test_robust_fit_sees_past_wrong_matches():
    matches, bad = scattered()
    H = unit_frame(matches.points)
    basis = quadratic_basis(matches.points, H)
    weights = robust_weights(basis, matches)
    coefficients = fit_displacement(basis, matches, weights)
    left = np.linalg.norm(basis.design @ coefficients - matches.displacements, axis=1)
    assert left[~bad].mean() < 0.5 and weights[bad].mean() < 0.1 < 0.8 < weights[~bad].mean()
    bent = bent_of(np.eye(3), H, coefficients)
    assert np.allclose(
        bent.map(matches.points[:9]),
        matches.points[:9] + (basis.design @ coefficients)[:9],
        atol=1e-8,
    )


def test_held_out_blocks_tell_curvature_from_noise():
    matches, _ = scattered(wrong=0.1)
    noise = np.random.default_rng(1).normal(0, 0.7, matches.displacements.shape)
    blocks = blocks_across(matches.points)
    quadratic = quadratic_basis(matches.points, unit_frame(matches.points))
    for displacements, real in ((matches.displacements, True), (noise, False)):
        current = matches._replace(displacements=displacements)
        held_out = [
            held_out_residuals(each, current, robust_weights(each, current), blocks)
            for each in (affine_basis(matches.points), quadratic)
        ]
        share, sure = gain_of(*held_out, blocks)
        assert (
            (share > 0.3 and sure > 3)
            if real
            else (share < LEAST_GAIN or sure < LEAST_SIGNIFICANCE)
        )


def test_lattice_carries_a_displacement_and_stiffness_flattens_it():
    rng = np.random.default_rng(2)
    points = rng.uniform([0, 0], [SIZE[1], SIZE[0]], (500, 2))
    true = np.stack([2 * np.sin(points[:, 0] / 60), 2 * np.cos(points[:, 1] / 70)], axis=1)
    matches = LocalMatches(points, true, np.tile(np.eye(2), (500, 1, 1)))
    lattice, left = Lattice.over(SIZE), []
    for stiffness in (0.01, 1e4):
        basis = Basis(lattice.design(points), stiffness * lattice.bending())
        controls = lattice.controls(fit_displacement(basis, matches, np.ones(500)))
        transform = DeformableTransform(
            MatrixTransform(np.eye(3)), lattice.H_fixed_to_lattice, controls
        )
        assert np.allclose(
            transform.displacement(points),
            basis.design @ controls[2:-2, 2:-2].reshape(-1, 2),
            atol=1e-9,
        )
        left.append(np.abs(transform.displacement(points) - true).max())
    assert left[0] < 0.2 and left[1] > 1.0


def test_nothing_that_folds_is_chosen():
    gain = (0.9, 10.0)
    lattice = Lattice.over(SIZE)
    controls = np.zeros((*lattice.shape, 2))
    for size, kept in ((1.0, "deformable"), (80.0, "affine")):
        controls[2:-2, 2:-2] = size * np.random.default_rng(0).standard_normal(
            (lattice.shape[0] - 4, lattice.shape[1] - 4, 2)
        )
        rich = DeformableTransform(MatrixTransform(np.eye(3)), lattice.H_fixed_to_lattice, controls)
        choice = _chosen(MatrixTransform(np.eye(3)), rich, gain, SIZE)
        assert choice.transform.kind == kept and ("folding" in choice.reason) == (kept == "affine")


# --- the scripts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["auto", "homography"])
def test_register_writes_the_transform_and_the_affine_matrix(curved, asked, tmp_path, monkeypatch):
    write_image(tmp_path / "cf.png", curved[0])
    write_image(tmp_path / "fa.png", curved[1])
    assert (
        run_main(
            register,
            monkeypatch,
            tmp_path / "cf.png",
            tmp_path / "fa.png",
            "--out",
            tmp_path / "out",
            "--transform",
            asked,
            "--device",
            "cpu",
        )
        == 0
    )
    folder = tmp_path / "out" / "cf_fa"
    content = json.loads((folder / "transform.json").read_text())
    assert (
        content["status"] == "ok"
        and content["asked_for"] == asked
        and content["least_jacobian"] > 0
    )
    H_affine = np.array(content["H_affine"])
    assert (
        np.array_equal(H_affine[2], [0, 0, 1])
        and error(MatrixTransform(H_affine), *curved[2:4]) < 12
    )
    if asked == "homography":
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
    result = register.Registrar(transform=asked, device="cpu").register(curved[0], curved[1])
    assert error(result.transform, *curved[2:4]) < 0.6 * error(
        MatrixTransform(result.matrix), *curved[2:4]
    )
    assert (
        np.abs(result.warp() - register_onto_fixed(curved[1], result.transform, (512, 512))).max()
        < 0.02
    )


@pytest.fixture(scope="module")
def camera_root(tmp_path_factory):
    """The curved pair as a folder of real pairs."""
    root = tmp_path_factory.mktemp("camera") / "cffa"
    write_pair(root / "7_1", draw_pair("cffa", 7, PairDraw(seed=11, largest_overlap=0.66)))
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
    assert means["superretina"] < 0.5 * means["oracle"], (
        "the oracle is the best affine, which is not enough here"
    )


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
