"""Transforms through landmarks: known maps, choice of the kind, clicking errors, tolerance."""

from __future__ import annotations

import numpy as np
import pytest

from geometry.curved_transforms import QuadraticTransform
from geometry.landmark_fits import FITS, fit_landmarks
from geometry.matrices import affine_about, image_centre, resize_matrix
from geometry.points import warp_points
from geometry.transforms import Transform
from utils.errors import InputError

FIXED_SIZE, MOVING_SIZE = (400, 512), (512, 460)  # long side 512: moving px are px at 512
AFFINE = affine_about(12.0, 1.05, 0.03, image_centre(FIXED_SIZE), image_centre(MOVING_SIZE))
HOMOGRAPHY = AFFINE.copy()
HOMOGRAPHY[2, :2] = 2e-4, -1.5e-4
QUADRATIC = QuadraticTransform(
    np.array([[1 / 250, 0.0, -1.0], [0.0, 1 / 250, -0.8], [0.0, 0.0, 1.0]]),
    np.array([[230.0, 240.0, -30.0, 14.0, 5.0, -9.0], [250.0, 30.0, 240.0, 4.0, 12.0, 12.0]]),
)


def landmarks_in(rng: np.random.Generator, number: int) -> np.ndarray:
    """Random landmarks (number, 2) in the fixed image, 30 px from its border."""
    return rng.uniform(30.0, np.array(FIXED_SIZE[::-1]) - 30.0, (number, 2))


def clicked(rng: np.random.Generator, number: int, H: np.ndarray, noise_px: float) -> tuple:
    """Fixed and moving landmarks (number, 2) under a matrix, with noise in the moving image."""
    fixed = landmarks_in(rng, number)
    return fixed, warp_points(fixed, H) + rng.normal(0.0, noise_px, (number, 2))


def largest_error(transform: Transform, truth: np.ndarray) -> float:
    """Largest distance over the image between a transform and a matrix, moving pixels."""
    points = np.random.default_rng(99).uniform(0.0, FIXED_SIZE[::-1], (200, 2))
    return float(np.linalg.norm(transform.map(points) - warp_points(points, truth), axis=1).max())


def test_exact_affine():
    fit = fit_landmarks(
        *clicked(np.random.default_rng(0), 20, AFFINE, 0.0), FIXED_SIZE, MOVING_SIZE
    )
    assert fit.kind == fit.transform.kind == "affine"
    assert largest_error(fit.transform, AFFINE) < 1e-6
    assert fit.residual_px < 1e-6
    assert fit.tolerance_file_px == pytest.approx(1.0)


@pytest.mark.parametrize("noise_px", [0.0, 1.0])
def test_homography_is_chosen(noise_px):
    points = clicked(np.random.default_rng(1), 20, HOMOGRAPHY, noise_px)
    fit = fit_landmarks(*points, FIXED_SIZE, MOVING_SIZE)
    assert fit.kind == fit.transform.kind == "homography"
    assert largest_error(fit.transform, HOMOGRAPHY) < 1e-3 + 5.0 * noise_px
    assert 0.5 * noise_px <= fit.residual_px < 1e-3 + 2.5 * noise_px


def test_few_landmarks_give_an_affine_map():
    points = clicked(np.random.default_rng(1), 9, HOMOGRAPHY, 0.0)
    fit = fit_landmarks(*points, FIXED_SIZE, MOVING_SIZE)
    assert fit.kind == "affine"
    assert "a homography needs 10" in fit.reason


@pytest.mark.parametrize("noise_px", [0.0, 1.0])
def test_quadratic_is_chosen(noise_px):
    rng = np.random.default_rng(2)
    fixed = landmarks_in(rng, 24)
    moving = QUADRATIC.map(fixed) + rng.normal(0.0, noise_px, fixed.shape)
    fit = fit_landmarks(fixed, moving, FIXED_SIZE, MOVING_SIZE)
    assert fit.kind == fit.transform.kind == "quadratic"
    inner = fixed.mean(axis=0) + 0.5 * (fixed - fixed.mean(axis=0))
    error = np.linalg.norm(fit.transform.map(inner) - QUADRATIC.map(inner), axis=1)
    assert error.max() < 0.5 + 1.5 * noise_px
    assert fit.residual_px < 0.5 + 2.5 * noise_px


def test_quadratic_needs_fifteen_landmarks():
    fixed = landmarks_in(np.random.default_rng(2), 14)
    fit = fit_landmarks(fixed, QUADRATIC.map(fixed), FIXED_SIZE, MOVING_SIZE)
    assert fit.kind != "quadratic"
    assert "a quadratic needs 15" in fit.reason


def test_noisy_affine_stays_affine():
    kinds = [
        fit_landmarks(
            *clicked(np.random.default_rng(seed), 20, AFFINE, 2.0), FIXED_SIZE, MOVING_SIZE
        ).kind
        for seed in range(20)
    ]
    assert kinds == ["affine"] * 20


def test_residual_is_that_of_the_noise():
    residuals = [
        fit_landmarks(
            *clicked(np.random.default_rng(seed), 20, AFFINE, 2.0), FIXED_SIZE, MOVING_SIZE
        ).residual_px
        for seed in range(20)
    ]
    # 2 px per coordinate have a median distance of 2.35 px; leaving out adds about 10 %.
    assert 2.2 < np.median(residuals) < 3.0


def test_three_landmarks_have_a_default_residual():
    fixed, moving = clicked(np.random.default_rng(3), 3, AFFINE, 0.0)
    fit = fit_landmarks(fixed, moving, FIXED_SIZE, MOVING_SIZE)
    assert fit.kind == "affine"
    assert largest_error(fit.transform, AFFINE) < 1e-6
    assert fit.residual_px == FITS.unknown_residual_px == 5.0
    assert fit.tolerance_file_px == pytest.approx(5.0 / 1.05, rel=1e-6)
    assert "residual unknown" in fit.reason


@pytest.mark.parametrize("number", [0, 2])
def test_fewer_than_three_landmarks_are_an_error(number):
    with pytest.raises(InputError, match="needs at least 3"):
        fit_landmarks(*clicked(np.random.default_rng(3), number, AFFINE, 0.0), (9, 9), (9, 9))


def test_collinear_landmarks_are_an_error():
    line = np.linspace(0, 100, 12)[:, None] * [1.0, 0.5]
    with pytest.raises(InputError, match="one line"):
        fit_landmarks(line, line, FIXED_SIZE, MOVING_SIZE)


def test_gross_clicking_errors_do_not_drag_the_fit():
    ratios, left_out = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        fixed, moving = clicked(rng, 20, AFFINE, 1.0)
        clean = fit_landmarks(fixed, moving, FIXED_SIZE, MOVING_SIZE)
        angle = rng.uniform(0, 2 * np.pi, 3)
        length = rng.uniform(10.0, 15.0, 3)
        moving[:3] += length[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        fit = fit_landmarks(fixed, moving, FIXED_SIZE, MOVING_SIZE)
        assert fit.kind == "affine"
        assert largest_error(fit.transform, AFFINE) < 5.0
        ratios.append(fit.residual_px / clean.residual_px)
        left_out.append("3 of 20 landmarks left out" in fit.reason)
    assert np.median(ratios) < 1.3
    assert np.mean(left_out) >= 0.8


def test_tolerance_is_in_pixels_of_the_fixed_file():
    fixed, moving = clicked(np.random.default_rng(4), 20, AFFINE, 2.0)
    small = fit_landmarks(fixed, moving, FIXED_SIZE, MOVING_SIZE)
    assert small.tolerance_file_px == pytest.approx(small.residual_px / 1.05, rel=0.02)
    # The same pair with the fixed file at 4 and the moving file at 3 times the size.
    fixed_file, moving_file = (1600, 2048), (1536, 1380)
    large = fit_landmarks(
        warp_points(fixed, resize_matrix(FIXED_SIZE, fixed_file)),
        warp_points(moving, resize_matrix(MOVING_SIZE, moving_file)),
        fixed_file,
        moving_file,
    )
    assert large.residual_px == pytest.approx(small.residual_px, rel=1e-6)
    assert large.tolerance_file_px == pytest.approx(4.0 * small.tolerance_file_px, rel=1e-6)


def test_tolerance_is_at_least_one_pixel_at_512():
    fixed, moving = clicked(np.random.default_rng(5), 20, AFFINE, 0.0)
    assert fit_landmarks(fixed, moving, (1600, 2048), MOVING_SIZE).tolerance_file_px == 4.0
