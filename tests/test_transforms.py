"""Transforms from matrix to displacement field: inversion, JSON, rescaling, warping."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import run_main

from geometry import apply_transform
from geometry.curved_transforms import DeformableTransform, QuadraticTransform
from geometry.matrices import affine_about, resize_matrix
from geometry.point_files import read_points, write_points
from geometry.points import pixel_grid, warp_points
from geometry.rasters import register_onto_fixed, warp_image
from geometry.transform_dicts import transform_from_dict
from geometry.transforms import MatrixTransform, affine_of, displacement_after_affine
from utils.errors import InputError
from utils.image_files import read_gray, write_image

SIZE = (90, 130)
H_AFFINE = affine_about(25.0, 1.2, 0.03, (64.5, 44.5), (70.0, 60.0))
H_UNIT = np.array([[1 / 50, 0.002, -1.2], [0.001, 1 / 42, -1.0], [0.0, 0.0, 1.0]])
LANDMARKS = np.array([[45.0, 30.0], [64.0, 45.0], [85.0, 60.0]])  # fixed pixels
COEFFICIENTS = np.array([[72.0, 55.0, -20.0, 2.0, -1.5, 1.0], [61.0, 24.0, 45.0, -1.0, 2.0, 1.5]])


def deformable(base, largest_px=2.0, seed=0):
    """A displacement field with random control points on top of ``base``."""
    controls = np.zeros((11, 12, 2))
    controls[2:-2, 2:-2] = np.random.default_rng(seed).uniform(-largest_px, largest_px, (7, 8, 2))
    H = np.diag([1 / 20, 1 / 20, 1.0])
    H[:2, 2] = 2.0
    return DeformableTransform(base, H, controls)


QUADRATIC = QuadraticTransform(H_UNIT, COEFFICIENTS)
ALL = {
    "similarity": MatrixTransform(affine_about(40.0, 0.8, 0.0, (64, 44), (50, 50)), "similarity"),
    "affine": MatrixTransform(H_AFFINE),
    "homography": MatrixTransform(
        H_AFFINE + np.array([[0, 0, 0], [0, 0, 0], [2e-4, -1e-4, 0.0]]), "homography"
    ),
    "quadratic": QUADRATIC,
    "deformable": deformable(MatrixTransform(H_AFFINE)),
    "deformable on quadratic": deformable(QUADRATIC),
}


def apply(monkeypatch, transform, *arguments) -> int:
    """Run the command that applies a transform; returns its exit code."""
    return run_main(apply_transform, monkeypatch, "--transform", transform, *arguments)


def pixels(size=SIZE):
    """Pixel centres (height * width, 2) float64."""
    return pixel_grid(size).double().numpy()


@pytest.mark.parametrize("name", ALL)
def test_inverse_restores_the_points(name):
    transform = ALL[name]
    there = transform.map(pixels())
    assert np.abs(transform.map_back(there) - pixels()).max() < 1e-3
    assert np.abs(transform.inverse().map(there) - pixels()).max() < 1e-3
    assert np.abs(transform.inverse().inverse().map(pixels()) - there).max() < 1e-9


@pytest.mark.parametrize("name", ALL)
def test_json_restores_the_transform(name):
    again = transform_from_dict(json.loads(json.dumps(ALL[name].to_dict())))
    assert again.kind == ALL[name].kind
    assert np.array_equal(again.map(pixels()), ALL[name].map(pixels()))


@pytest.mark.parametrize("name", ALL)
def test_rescaled_is_the_same_transform_in_other_frames(name):
    transform = ALL[name]
    H_new_to_fixed = np.array([[2.0, 0.1, 5.0], [-0.1, 1.8, 3.0], [0.0, 0.0, 1.0]])
    H_moving_to_new = np.array([[1.5, 0.2, -7.0], [-0.1, 1.4, 3.0], [0.0, 0.0, 1.0]])
    points = pixels()[::97] / 2
    expected = warp_points(transform.map(warp_points(points, H_new_to_fixed)), H_moving_to_new)
    assert np.allclose(
        transform.rescaled(H_new_to_fixed, H_moving_to_new).map(points), expected, atol=1e-8
    )


@pytest.mark.parametrize("name", ALL)
def test_dense_map_is_the_map_of_every_pixel(name):
    for transform, size in ((ALL[name], SIZE), (ALL[name].inverse(), (61, 83))):
        dense = transform.dense_map(size)
        assert dense.shape == (*size, 2)
        assert np.nanmax(np.abs(dense.reshape(-1, 2) - transform.map(pixels(size)))) < 0.02


def test_quadratic_is_linear_outside_of_the_unit_circle():
    along = np.array([[0.6, 0.8]])
    units = np.linspace(0.0, 3.0, 61)[:, None] * along
    places = QUADRATIC.map(warp_points(units, np.linalg.inv(H_UNIT)))
    curvatures = np.linalg.norm(np.diff(places, n=2, axis=0), axis=1)
    assert curvatures[:18].min() > 1e-3, "curved inside the circle"
    assert curvatures[22:].max() < 1e-9, "linear outside"
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert np.abs(np.diff(steps)).max() < 0.05, (
        "the map is continuously differentiable at the circle"
    )


def test_displacement_is_zero_outside_of_its_lattice():
    transform = ALL["deformable"]
    far = np.array([[-500.0, 40.0], [60.0, 900.0]])
    assert np.array_equal(transform.displacement(far), np.zeros((2, 2)))
    assert np.abs(transform.displacement(pixels())).max() > 0.5


def test_least_jacobian_is_negative_where_a_map_folds():
    identity, doubling, mirror = (
        MatrixTransform(np.diag(each)) for each in ([1.0, 1.0, 1.0], [2.0, 2.0, 1.0], [-1.0, 1, 1])
    )
    assert identity.least_jacobian(SIZE) == pytest.approx(1.0)
    assert doubling.least_jacobian(SIZE) == pytest.approx(4.0)
    assert mirror.least_jacobian(SIZE) < 0
    assert deformable(MatrixTransform(np.eye(3)), 1.0).least_jacobian(SIZE, 2) > 0
    assert deformable(MatrixTransform(np.eye(3)), 60.0).least_jacobian(SIZE, 2) < 0


def test_quadratic_without_curvature_warps_like_its_matrix():
    source = np.random.default_rng(1).random((1, 1, 12, 16), dtype=np.float32)
    H_out_to_source = torch.from_numpy(resize_matrix(SIZE, (12, 16))[None]).float()
    moving = warp_image(torch.from_numpy(source), H_out_to_source, SIZE)[0, 0].numpy()
    straight = QuadraticTransform(H_UNIT, COEFFICIENTS * np.array([1, 1, 1, 0, 0, 0]))
    by_map, by_matrix = (
        register_onto_fixed(moving, each, SIZE)
        for each in (straight, straight.approximate_matrix())
    )
    assert np.abs(by_map - by_matrix).max() < 2e-3 and by_map.max() > 0.3


def test_affine_of_a_transform_is_the_least_squares_solution():
    assert np.allclose(affine_of(ALL["affine"], pixels()), H_AFFINE)
    H = affine_of(QUADRATIC, pixels())
    shifted = H.copy()
    shifted[0, 2] += 0.5
    least, larger = (
        np.linalg.norm(warp_points(pixels(), each) - QUADRATIC.map(pixels()), axis=1)
        for each in (H, shifted)
    )
    assert (least**2).mean() < (larger**2).mean()
    shift = np.array([[1.0, 0, 3], [0, 1, -2], [0, 0, 1]])
    displaced = displacement_after_affine(MatrixTransform(shift), np.eye(3), SIZE)
    assert displaced.shape == (*SIZE, 2) and np.allclose(displaced, [3.0, -2.0], atol=1e-4)


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "cubic"},
        {},
        {"kind": "affine", "H_fix_to_mov": np.zeros((3, 3)).tolist()},
        {"kind": "affine", "H_fix_to_mov": "x"},
        {"kind": "quadratic", "H_fixed_to_unit": H_UNIT.tolist(), "coefficients": [[1.0] * 5] * 2},
        {
            "kind": "quadratic",
            "H_fixed_to_unit": H_UNIT.tolist(),
            "coefficients": [[float("nan")] * 6] * 2,
        },
        ALL["deformable"].to_dict() | {"controls": [[[0.0, 0.0]]]},
        ALL["deformable"].to_dict() | {"base": 3},
        ALL["deformable"].to_dict() | {"base": ALL["deformable"].to_dict()},
        3,
        None,
        ALL["deformable"].to_dict() | {"controls": np.ones((6, 6, 2)).tolist()},
        {"kind": "affine", "H_fix_to_mov": [[10**400] * 3] * 3},
        {
            "kind": "quadratic",
            "H_fixed_to_unit": H_UNIT.tolist(),
            "coefficients": np.zeros((2, 6)).tolist(),
        },
        {"kind": "affine", "H_fix_to_mov": (np.eye(3) + [[0], [0], [1e-3]]).tolist()},
    ],
)
def test_impossible_descriptions_are_refused(content):
    with pytest.raises(InputError):
        transform_from_dict(content)


@pytest.fixture
def saved(tmp_path):
    """A transform.json with a curved transform."""
    content = {
        "status": "ok",
        "reason": "",
        "fix_to_mov": ALL["deformable on quadratic"].to_dict(),
        "fixed": {"height": SIZE[0], "width": SIZE[1]},
        "moving": {"height": 120, "width": 150},
    }
    (tmp_path / "transform.json").write_text(json.dumps(content))
    return tmp_path / "transform.json"


@pytest.mark.parametrize(
    "change",
    [
        {"fixed": {"height": 0, "width": 9}},
        {"moving": {"height": 1e999, "width": 9}},
        {"fix_to_mov": {"kind": "cubic"}},
        {"fix_to_mov": None},
    ],
)
def test_impossible_files_give_a_message_of_one_line(saved, change, tmp_path, monkeypatch, capsys):
    saved.write_text(json.dumps(json.loads(saved.read_text()) | change))
    given = ("--from", "moving", tmp_path / "a.png", "--out", tmp_path / "out")
    assert apply(monkeypatch, saved, *given) == 2
    error = capsys.readouterr().err
    assert "transform.json" in error and len(error.strip().splitlines()) == 1
    saved.write_text("[" * 100_000)
    assert apply(monkeypatch, saved, *given) == 2


def test_images_of_one_pixel_are_mapped():
    for transform in ALL.values():
        assert transform.dense_map((1, 7)).shape == (1, 7, 2)


def test_points_are_mapped_by_curved_transforms(saved, tmp_path, monkeypatch):
    fixed, moving, back = (tmp_path / name for name in ("fixed.txt", "moving.txt", "back.txt"))
    write_points(fixed, LANDMARKS)
    assert apply(monkeypatch, saved, "--from", "fixed", "--points", fixed, "--out", moving) == 0
    mapped = ALL["deformable on quadratic"].map(LANDMARKS)
    assert np.allclose(read_points(moving, 2), mapped, atol=1e-5)
    assert apply(monkeypatch, saved, "--from", "moving", "--points", moving, "--out", back) == 0
    assert np.allclose(read_points(back, 2), LANDMARKS, atol=1e-3)


def test_images_are_warped_by_curved_transforms(saved, tmp_path, monkeypatch):
    spots, warped, back = tmp_path / "spots.png", tmp_path / "warped", tmp_path / "back"
    mapped = ALL["deformable on quadratic"].map(LANDMARKS)
    ys, xs = np.mgrid[:120, :150]
    image = sum(np.exp(-0.5 * ((xs - x) ** 2 + (ys - y) ** 2) / 3.0**2) for x, y in mapped)
    write_image(spots, np.clip(image, 0, 1).astype(np.float32))
    for extra in ([], ["--nearest"]):
        assert apply(monkeypatch, saved, "--from", "moving", spots, "--out", warped, *extra) == 0
        result = read_gray(warped / "spots.png")
        assert result.shape == SIZE
        for x, y in LANDMARKS.astype(int):
            window = result[y - 4 : y + 5, x - 4 : x + 5]
            row, column = np.unravel_index(window.argmax(), window.shape)
            assert window.max() > 0.9 and abs(row - 4) <= 1 and abs(column - 4) <= 1
    given = ("--from", "fixed", warped / "spots.png", "--out", back)
    assert apply(monkeypatch, saved, *given) == 0
    assert read_gray(back / "spots.png").shape == (120, 150)
    for x, y in mapped:
        assert read_gray(back / "spots.png")[round(y), round(x)] > 0.8
