"""Correlation and agreement of ridge maps; rotated copies of a working image."""

from __future__ import annotations

import numpy as np
import pytest

from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import affine_about, compose, image_centre, translation_matrix
from geometry.points import warp_points
from registration.ridges import RidgePair, ridge_agreement
from registration.working_frame import WorkingFrame, WorkingImage, to_working_frame
from synthesis.eyes import file_names
from synthesis.generated_set import write_generated_set
from tests.helpers import warp_picture
from utils.image_files import read_gray

SIZE = (380, 420)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """CF and FA of one eye, of unequal non-square sizes, and the true ``H_fix_to_mov`` (3, 3)."""
    root = tmp_path_factory.mktemp("eye") / "set"
    write_generated_set(root, 1, seed=2, size=400, progress=False)
    folder = root / "1_A"
    cf, fa = (read_gray(folder / file_names("1_A", 400)[role]) for role in ("cf", "fa"))
    H_own_to_mov = affine_about(12.0, 1.1, 0.01, image_centre(cf.shape), image_centre(SIZE))
    H_own_to_fix = translation_matrix((-3.0, 5.0))
    images = [warp_picture(cf, H_own_to_fix, (390, 370)), warp_picture(fa, H_own_to_mov, SIZE)]
    fixed, moving = (
        WorkingImage(image, estimate_field_of_view(image), WorkingFrame(np.eye(3), image.shape))
        for image in images
    )
    return fixed, moving, H_own_to_mov @ np.linalg.inv(H_own_to_fix)


def mean_error(H, H_true, size):
    points = np.stack(
        np.meshgrid(np.linspace(40, size[1] - 40, 5), np.linspace(40, size[0] - 40, 5)), -1
    ).reshape(-1, 2)
    return np.linalg.norm(warp_points(points, H) - warp_points(points, H_true), axis=1).mean()


@pytest.mark.parametrize("transform", ["affine", "homography"])
def test_ecc_converges_to_the_true_matrix(pair, transform):
    fixed, moving, H_true = pair
    for nudge in ((2.0, -1.5), (-1.5, 2.0)):
        rough = compose(
            H_true,
            translation_matrix(nudge),
            affine_about(0.6, 1.006, 0.0, (190, 190), (190, 190)),
        )
        before, after = (
            mean_error(H, H_true, fixed.image.shape)
            for H in (rough, RidgePair(fixed, moving).refine(rough, transform))
        )
        assert after < 0.6 < 2.0 < before


def test_ecc_keeps_a_matrix_that_it_cannot_improve(pair):
    fixed, moving, H_true = pair
    assert RidgePair(fixed, moving).refine(H_true, "similarity") is H_true
    blank = WorkingImage(np.zeros_like(moving.image), moving.field_of_view, moving.frame)
    assert np.allclose(RidgePair(fixed, blank).refine(H_true, "affine"), H_true, atol=1e-4)
    far = compose(H_true, translation_matrix((90.0, 60.0)))
    moved = np.linalg.norm(RidgePair(fixed, moving).refine(far, "affine")[:2, 2] - far[:2, 2])
    assert moved < 12.0, "the correction is bounded"


def test_agreement_is_high_under_the_true_matrix_only(pair):
    fixed, moving, H_true = pair
    ridges = RidgePair(fixed, moving)
    wrong = [
        ridges.agreement(compose(H_true, affine_about(turn, 1.0, 0.0, (190, 200), (190, 200))))
        for turn in (60.0, 120.0, 200.0, 280.0)
    ]
    assert ridges.agreement(H_true) > 8.0 > 4.0 > np.median(wrong)


def test_agreement_without_enough_overlap_or_ridges_is_zero():
    ridges = np.random.default_rng(0).random((120, 130), dtype=np.float32)
    assert ridge_agreement(ridges, ridges, np.zeros(ridges.shape, bool)) == 0.0
    assert (
        ridge_agreement(np.zeros_like(ridges), np.zeros_like(ridges), np.ones(ridges.shape, bool))
        == 0.0
    )
    assert ridge_agreement(ridges[:30, :30], ridges[:30, :30], np.ones((30, 30), bool)) == 0.0
    assert ridge_agreement(ridges, ridges, np.ones(ridges.shape, bool)) > 8.0


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_frames_of_rotated_copies_are_exact(quarter_turns):
    image = np.zeros((150, 170), np.float32)
    image[40:100, 30:130] = 0.3
    image[60:64, 90:96] = 1.0
    working = to_working_frame(image, 128)
    turned = working.turned(quarter_turns)
    assert turned.image.shape == turned.field_of_view.shape == turned.frame.size
    centre = np.array([[92.5, 61.5]])
    for copy in (turned, turned.mirrored()):
        x, y = warp_points(centre, copy.frame.H_image_to_working)[0]
        rows, columns = np.nonzero(copy.image > 0.65)
        assert abs(columns.mean() - x) < 0.7 and abs(rows.mean() - y) < 0.7
    assert (
        np.linalg.det(turned.frame.H_image_to_working)
        > 0
        > np.linalg.det(turned.mirrored().frame.H_image_to_working)
    )
