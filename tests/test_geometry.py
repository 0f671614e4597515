"""The convention of geometry/__init__.py, on non-square images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geometry.estimation import MATRIX_KINDS, estimate_transform, fit_affine
from geometry.matrices import (
    affine_about,
    compose,
    image_centre,
    resize_matrix,
    resize_transform,
    translation_matrix,
    turn_about_centre,
)
from geometry.points import cells_to_pixels, inside, on_mask, pixel_grid, sample_map, warp_points
from geometry.rasters import valid_overlap, valid_overlaps, warp_image
from utils.errors import InputError

FIXED_SIZE, MOVING_SIZE = (90, 130), (150, 110)


def spots(points: np.ndarray, size, sigma=2.0) -> torch.Tensor:
    """An image with a Gaussian spot at each point, drawn analytically."""
    grid = pixel_grid(size).numpy()
    image = np.exp(-((grid[:, None] - points[None]) ** 2).sum(-1) / (2 * sigma**2)).sum(1)
    return torch.tensor(image, dtype=torch.float32).reshape(1, 1, *size)


def centroid(image: torch.Tensor, near: np.ndarray, radius: int = 6) -> np.ndarray:
    grid = pixel_grid(tuple(image.shape[-2:])).numpy()
    weight = image.reshape(-1).numpy() * (np.abs(grid - near).max(1) <= radius)
    return (grid * weight[:, None]).sum(0) / weight.sum()


@pytest.mark.parametrize("angle, scale", [(0, 1.0), (30, 1.0), (-75, 1.2), (180, 0.9)])
def test_warped_image_agrees_with_warped_points(angle, scale):
    points = np.array([[45.0, 40.0], [80.0, 30.0], [64.5, 60.25]])
    H_fix_to_mov = affine_about(angle, scale, 0.05, image_centre(FIXED_SIZE), [52.0, 77.0])
    fixed = spots(points, FIXED_SIZE)
    moving = warp_image(fixed, torch.tensor(np.linalg.inv(H_fix_to_mov))[None], MOVING_SIZE)
    assert moving.shape[-2:] == MOVING_SIZE
    for mapped in warp_points(points, H_fix_to_mov):
        assert np.abs(centroid(moving, mapped) - mapped).max() < 0.1
    back = warp_image(moving, torch.tensor(H_fix_to_mov)[None], FIXED_SIZE)
    for point in points:
        assert np.abs(centroid(back, point) - point).max() < 0.1


def test_numpy_and_torch_points_agree_and_batch():
    rng = np.random.default_rng(0)
    H = np.stack([affine_about(a, 1.3, 0.1, [3, 4], [5, 6]) for a in (10, 70)])
    points = rng.uniform(0, 100, (2, 7, 2))
    ours = warp_points(torch.tensor(points), torch.tensor(H))
    assert np.allclose(ours.numpy(), warp_points(points, H))
    assert np.allclose(warp_points(points[1], H[1]), ours[1].numpy())


def test_resize_matrix_agrees_with_opencv_resize():
    import cv2

    points = np.array([[40.0, 30.0], [90.5, 60.0]])
    image = spots(points, FIXED_SIZE, sigma=3.0)[0, 0].numpy()
    target = (135, 260)
    resized = torch.tensor(cv2.resize(image, target[::-1], interpolation=cv2.INTER_LINEAR))[
        None, None
    ]
    for mapped in warp_points(points, resize_matrix(FIXED_SIZE, target)):
        assert np.abs(centroid(resized, mapped, 14) - mapped).max() < 0.1


def test_resize_transform_keeps_the_correspondence():
    H = affine_about(25, 1.1, 0.0, [60, 40], [50, 70])
    small_fixed, small_moving = (45, 65), (300, 220)
    H_small = resize_transform(H, FIXED_SIZE, small_fixed, MOVING_SIZE, small_moving)
    points = np.array([[10.0, 20.0], [100.0, 80.0]])
    via_small = warp_points(warp_points(points, resize_matrix(FIXED_SIZE, small_fixed)), H_small)
    assert np.allclose(
        via_small,
        warp_points(warp_points(points, H), resize_matrix(MOVING_SIZE, small_moving)),
    )


def test_compose_acts_from_left_to_right():
    a, b = translation_matrix([1, 2]), affine_about(90, 1.0, 0.0, [0, 0], [0, 0])
    assert np.allclose(warp_points(np.array([[0.0, 0.0]]), compose(a, b)), [[-2.0, 1.0]])


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_sample_map_reads_the_pixel_position_at_any_stride(stride):
    size = (64, 96)
    grid = pixel_grid((size[0] // stride, size[1] // stride))
    coordinates = cells_to_pixels(grid, stride).T.reshape(
        1, 2, size[0] // stride, size[1] // stride
    )
    points = torch.tensor([[[20.25, 31.5], [70.0, 40.0]]])
    assert torch.allclose(sample_map(coordinates, points, stride), points, atol=1e-4)


def test_turning_loses_no_pixel():
    for angle in (0, 15, 45, 90, 180, 231):
        H, canvas = turn_about_centre(FIXED_SIZE, angle)
        corners = np.array([[-0.5, -0.5], [129.5, -0.5], [129.5, 89.5], [-0.5, 89.5]])
        assert inside(warp_points(corners, H), canvas, margin_px=-0.01).all()
    assert turn_about_centre(FIXED_SIZE, 90)[1] == FIXED_SIZE[::-1]


@pytest.mark.parametrize("moving_size", [(40, 60), (50, 44)])
def test_the_overlap_of_both_frames(moving_size):
    """Of images of one size in one warp, of others in two."""
    H = affine_about(20.0, 1.1, 0.0, [30, 20], [28, 24])
    to_moving, to_fixed = (torch.tensor(each)[None] for each in (H, np.linalg.inv(H)))
    fields = torch.zeros(1, 1, 40, 60), torch.zeros(1, 1, *moving_size)
    fields[0][..., 5:, 3:50] = fields[1][..., :30, 8:] = 1.0
    both = valid_overlaps(to_moving, to_fixed, *fields)
    assert torch.equal(both[0], valid_overlap(to_moving, *fields)) and both[0].any()
    assert torch.equal(both[1], valid_overlap(to_fixed, *fields[::-1])) and both[1].any()


def test_valid_overlap_counts_both_fields():
    fixed_fov, moving_fov = torch.ones(1, 1, *FIXED_SIZE), torch.ones(1, 1, *FIXED_SIZE)
    fixed_fov[..., :10] = 0
    overlap = valid_overlap(torch.tensor(translation_matrix([30, 0]))[None], fixed_fov, moving_fov)
    assert (
        overlap[..., :10].sum() == 0
        and overlap[..., 100:].sum() == 0
        and overlap[..., 10:100].min() == 1
    )


def test_fit_affine_recovers_and_refuses():
    points = np.array([[0.0, 0], [50, 3], [9, 60], [44, 41]])
    H = affine_about(33, 0.8, 0.1, [1, 2], [30, 40])
    assert np.allclose(fit_affine(points, warp_points(points, H)), H)
    with pytest.raises(InputError, match="at least 3"):
        fit_affine(points[:2], points[:2])
    with pytest.raises(InputError, match="equal"):
        fit_affine(points, points[:3])
    with pytest.raises(InputError, match="one line"):
        fit_affine(np.array([[0, 0], [1, 1], [2, 2.0]]), np.array([[0, 0], [1, 1], [2, 2.0]]))


@pytest.mark.parametrize("model", MATRIX_KINDS)
def test_robust_fit_survives_outliers(model):
    rng = np.random.default_rng(1)
    H = affine_about(140, 1.2, 0.0, [250, 200], [300, 240])
    fixed = rng.uniform([0, 0], [500, 400], (200, 2))
    moving = warp_points(fixed, H) + rng.normal(0, 0.5, (200, 2))
    moving[:120] = rng.uniform(0, 500, (120, 2))
    estimate = estimate_transform(fixed, moving, (400, 500), model)
    assert estimate.status == "ok" and 70 <= estimate.n_inliers <= 90
    assert np.abs(warp_points(fixed, estimate.H_fix_to_mov) - warp_points(fixed, H)).max() < 2.0


def _estimate_of(H, fixed):
    return estimate_transform(fixed, warp_points(fixed, H), (400, 500))


def test_implausible_matrices_are_refused_with_a_reason():
    fixed = np.random.default_rng(2).uniform([0, 0], [500, 400], (60, 2))
    centre = [250, 200]
    assert (
        "mirror" in _estimate_of(affine_about(0, 1, 0, centre, centre, mirror=True), fixed).reason
    )
    assert "scale" in _estimate_of(affine_about(0, 5, 0, centre, centre), fixed).reason
    assert "stretches" in _estimate_of(affine_about(0, 1, 1.0, centre, centre), fixed).reason
    assert "spot" in _estimate_of(np.eye(3), fixed * 0.02).reason
    assert "spot" in _estimate_of(np.eye(3), fixed * [1.0, 0.01]).reason
    few = _estimate_of(np.eye(3), fixed[:5])
    assert few.status == "failed" and few.H_fix_to_mov is None and "5 matches" in few.reason
    noise = np.random.default_rng(3).uniform(0, 500, (300, 2))
    assert (
        estimate_transform(noise, noise[::-1] * [0.7, 1.3] + noise % 37 * 9, (400, 500)).status
        == "failed"
    )
    with pytest.raises(InputError, match="unknown transform"):
        estimate_transform(fixed, fixed, (400, 500), "quadratic")


def test_points_on_a_mask_that_is_not_square():
    """x counts columns; points outside of the image and halfway weights are not on the mask."""
    mask = np.zeros((3, 5), np.float32)
    mask[1, 4], mask[2, 0] = 1.0, 0.5
    points = np.array([[4.4, 0.6], [1.0, 2.0], [0.0, 2.0], [5.0, 1.0], [-1.0, 1.0]])
    assert on_mask(points, mask).tolist() == [True, False, False, False, False]
    assert on_mask(np.zeros((0, 2)), mask).shape == (0,)
