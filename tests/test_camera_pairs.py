"""The fundus camera model, and the pairs with exact correspondence drawn with it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from helpers import run_main

from dataset.real_pairs import load_real_pairs
from geometry.matrices import affine_about
from geometry.points import inside, warp_points
from model.ridge_stem import RidgeStem
from synthesis import camera_pairs
from synthesis.camera_pairs import (
    FIRST_STREAM,
    PairDraw,
    draw_pair,
    draw_swellings,
    landmarks_of,
    overlap_of,
)
from synthesis.eyes import ANATOMY
from synthesis.fundus_camera import aim

POLE = np.array([1.2, 0.1])
STRAIGHT = np.zeros(2)
GRID = np.stack(np.meshgrid(np.linspace(0, 399, 15), np.linspace(0, 399, 15)), axis=-1).reshape(
    -1, 2
)
SMALL = PairDraw(size=256, seed=3)


@pytest.mark.parametrize("bend", [0.0, 0.5, 1.0])
def test_camera_maps_to_the_retina_and_back(bend):
    camera = aim(POLE, np.array([2.0, 0.8]), 0.7, np.array([0.05, -0.03]), 8.5, bend, 400)
    assert np.abs(camera.to_pixels(camera.to_retina(GRID)) - GRID).max() < 1e-8
    assert np.allclose(camera.to_pixels(np.array([2.0, 0.8])), 199.5), (
        "the given retina point is in the middle"
    )
    assert camera.px_per_dd == pytest.approx(400 / 8.5, rel=0.02)


def test_one_direction_rotated_and_scaled_is_a_similarity():
    here, there = (
        aim(POLE, POLE + 0.5, roll, STRAIGHT, field, 0.0, 400)
        for roll, field in ((0.0, 8.0), (0.6, 6.0))
    )
    mapped = there.to_pixels(here.to_retina(GRID))
    H = affine_about(np.degrees(0.6), 8.0 / 6.0, 0.0, (199.5, 199.5), (199.5, 199.5))
    assert np.abs(mapped - warp_points(GRID, H)).max() < 1e-6


def test_two_directions_are_nearly_quadratic_not_affine():
    here, there = (
        aim(POLE, POLE + centre, 0.0, STRAIGHT, 8.5, 0.0, 400)
        for centre in ((-1.5, 0.3), (2.0, -0.4))
    )
    mapped = there.to_pixels(here.to_retina(GRID))
    seen = inside(mapped, (400, 400))
    fixed, moving = (GRID[seen] - 200) / 200, mapped[seen]
    x, y = fixed.T
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    left = [
        np.linalg.norm(use @ np.linalg.lstsq(use, moving, rcond=None)[0] - moving, axis=1).mean()
        for use in (terms[:, :3], terms)
    ]
    assert left[0] > 1.0 and left[1] < 0.15 * left[0]


def test_swelling_moves_the_tissue_around_it():
    swelling = np.array([[1.2, 0.1, 0.2, 0.0, 0.5]])
    plain, swollen = (
        aim(POLE, POLE, 0.0, STRAIGHT, 8.0, 0.0, 400, each) for each in (None, swelling)
    )
    near, far = np.array([[1.2, 0.1]]), np.array([[4.5, 0.1]])
    assert np.linalg.norm(swollen.to_pixels(near) - plain.to_pixels(near)) == pytest.approx(
        0.2 * 50, rel=0.05
    )
    assert np.linalg.norm(swollen.to_pixels(far) - plain.to_pixels(far)) < 1e-3
    with pytest.raises(ValueError, match="without swellings"):
        swollen.to_retina(GRID)


def test_eyes_are_not_those_of_the_training_set():
    """With equal seeds, both commands draw eyes and pairs from different random streams."""
    streams = [
        np.random.default_rng([0, 1, *tags]).random(4)
        for tags in (
            (),
            (ANATOMY,),
            (FIRST_STREAM,),
            (FIRST_STREAM + 1,),
        )
    ]
    assert np.array_equal(streams[0], streams[1]), "numpy pads seeds with zeros"
    assert not any(np.array_equal(streams[i], streams[j]) for i, j in ((0, 2), (0, 3), (2, 3)))


def test_swellings_add_up_to_the_given_displacement():
    for seed in range(20):
        swellings = draw_swellings(POLE, 50.0, 400, 5.0, np.random.default_rng(seed))
        plain, swollen = (
            aim(POLE, POLE, 0.0, STRAIGHT, 8.0, 0.0, 400, each) for each in (None, swellings)
        )
        points = plain.to_retina(GRID)
        moved = (
            np.linalg.norm(swollen.to_pixels(points) - plain.to_pixels(points), axis=1).max()
            * 512
            / 400
        )
        assert 1.0 < moved < 5.5


@pytest.fixture(scope="module")
def pair():
    return draw_pair("cffa", 2, SMALL)


def test_ridges_of_a_pair_correlate_under_its_map_only(pair):
    assert pair.fixed.shape[:2] == pair.moving.shape[:2] == pair.moving_xy.shape[:2] == (256, 256)
    fixed, moving = landmarks_of(pair.moving_xy)
    assert len(fixed) > 20 and inside(moving, (256, 256)).all()
    columns, rows = fixed.astype(int).T
    assert np.array_equal(pair.moving_xy[rows, columns], moving)
    # Ridge responses of photograph and angiogram correlate only where they are aligned.
    stem = RidgeStem((2.0,))
    ridges = [
        stem(torch.from_numpy(np.ascontiguousarray(image, np.float32))[None, None])[0]
        .mean(0)
        .numpy()
        for image in (pair.fixed[..., 1], pair.moving.reshape(256, 256, -1)[..., 0])
    ]
    places = np.nan_to_num(pair.moving_xy, nan=-9).astype(np.float32)
    seen = cv2.erode(np.isfinite(pair.moving_xy[..., 0]).astype(np.uint8), np.ones((21, 21))) > 0

    def agreement(shift):
        warped = cv2.remap(
            ridges[1], places[..., 0] + shift, places[..., 1] + shift, cv2.INTER_LINEAR
        )
        return np.corrcoef(ridges[0][seen], warped[seen])[0, 1]

    assert agreement(0.0) > 0.15 and agreement(0.0) > 2 * max(agreement(-6.0), agreement(6.0))


def test_pair_is_the_same_every_time_and_overlaps_enough(pair):
    again = draw_pair("cffa", 2, SMALL)
    assert np.array_equal(again.moving, pair.moving) and np.array_equal(
        again.moving_xy, pair.moving_xy, equal_nan=True
    )
    everything = np.ones((256, 256))
    assert overlap_of(pair.moving_xy, everything, everything) > 0.3
    assert (
        overlap_of(
            np.stack(np.meshgrid(np.arange(64.0), np.arange(64.0)), axis=-1),
            np.ones((64, 64)),
            np.ones((64, 64)),
        )
        == 1
    )


@pytest.mark.slow
def test_script_writes_real_pairs(tmp_path, monkeypatch, capsys):
    out = tmp_path / "camera"
    arguments = ["--out", out, "--eyes", 1, "--modes", "cfoct", "--size", 256, "--swelling", 2]
    assert run_main(camera_pairs, monkeypatch, *arguments) == 0
    (pair,) = load_real_pairs(out / "cfoct", "cfoct")
    assert len(pair.fixed_landmarks) > 10 and pair.images()[0].shape == (256, 256)
    dense = np.load(out / "cfoct" / "1_1" / "001_map.npz")["moving_xy"]
    capsys.readouterr()
    columns, rows = pair.fixed_landmarks.astype(int).T
    assert np.allclose(dense[rows, columns], pair.moving_landmarks, atol=1e-3)
    for wrong in (
        ["--out", out],
        ["--out", tmp_path / "x", "--modes", "cfxx"],
        ["--out", tmp_path / "x", "--overlap", 2],
        ["--out", tmp_path / "x", "--swelling", 99],
        [
            "--out",
            tmp_path / "x",
            "--size",
            64,
            "--modes",
            "cffa",
            "--overlap",
            0.05,
            "--largest_overlap",
            0.06,
        ],
    ):
        assert run_main(camera_pairs, monkeypatch, *wrong) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")
