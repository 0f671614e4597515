"""Exports of a registration: ITK transforms and displacement fields, matches as CSV and NumPy."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import blurred_noise, run_main

import register
from geometry.curved_transforms import QuadraticTransform
from geometry.matrices import affine_about
from geometry.points import inside as inside_of
from geometry.points import warp_points
from geometry.rasters import register_onto_fixed, warp_image
from geometry.transform_files import export_files, itk_transform
from geometry.transforms import MatrixTransform
from utils.errors import InputError

H = affine_about(25.0, 1.3, 0.08, [40, 30], [70.3, 55.8])
FIXED_SIZE, MOVING_SIZE = (80, 96), (130, 120)


@pytest.fixture(scope="module")
def moving() -> np.ndarray:
    """Blurred noise, float32 in [0, 1]."""
    return blurred_noise(MOVING_SIZE)


def test_itk_resamples_like_this_project(moving, tmp_path):
    (tmp_path / "transform.tfm").write_text(itk_transform(H), encoding="utf-8")
    transform = sitk.ReadTransform(str(tmp_path / "transform.tfm"))
    for point in ([0.0, 0.0], [95.0, 79.0], [33.25, 17.5]):
        assert np.allclose(
            transform.TransformPoint(point), warp_points(np.array([point]), H)[0], atol=1e-9
        )
    frame = sitk.GetImageFromArray(np.zeros(FIXED_SIZE, np.float32))
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(sitk.GetImageFromArray(moving), frame, transform, sitk.sitkLinear)
    )
    # warp_image does not smooth against aliasing; neither does ITK.
    ours = warp_image(
        torch.from_numpy(moving)[None, None], torch.from_numpy(H).float()[None], FIXED_SIZE
    )[0, 0].numpy()
    ys, xs = np.indices(FIXED_SIZE)
    mapped = warp_points(np.stack([xs, ys], -1).reshape(-1, 2).astype(float), H)
    inside = inside_of(mapped, MOVING_SIZE, 1.5).reshape(FIXED_SIZE)
    assert inside.mean() > 0.4 and np.abs(theirs - ours)[inside].max() < 1e-3


def test_a_homography_is_not_written_for_itk():
    projective = H.copy()
    projective[2, 0] = 1e-4
    with pytest.raises(InputError, match="homography"):
        itk_transform(projective)
    assert itk_transform(2.0 * H).splitlines()[3:] == itk_transform(H).splitlines()[3:], (
        "matrices are homogeneous: a factor does not matter"
    )


def test_register_exports_matches_and_transform(
    generated_root, untrained_weights, monkeypatch, tmp_path
):
    cf = generated_root / "1_A" / "1_A_cf.png"
    given = ("--weights", untrained_weights, "--device", "cpu", "--export", "itk", "csv", "numpy")
    assert run_main(register, monkeypatch, cf, cf, "--out", tmp_path, *given) == 0
    folder = tmp_path / "1_A_cf_1_A_cf"
    content = json.loads((folder / "transform.json").read_text(encoding="utf-8"))
    arrays = np.load(folder / "matches.npz")
    assert np.array_equal(arrays["H_fix_to_mov"], content["H_fix_to_mov"])
    assert len(arrays["fixed_points"]) == content["n_matches"]
    assert arrays["inliers"].sum() == content["n_inliers"]
    with open(folder / "matches.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    columns = ("fixed_x", "fixed_y", "moving_x", "moving_y", "inlier")
    table = np.array([[float(row[name]) for name in columns] for row in rows])
    expected = [arrays["fixed_points"], arrays["moving_points"], arrays["inliers"]]
    assert np.abs(table - np.column_stack(expected)).max() < 1e-4
    point = (50.0, 60.0)
    assert np.allclose(
        sitk.ReadTransform(str(folder / "transform.tfm")).TransformPoint(point),
        warp_points(np.array([point]), np.array(content["H_fix_to_mov"]))[0],
    )


@pytest.mark.parametrize("curvature", [0.0, 6.0])
def test_itk_resamples_by_a_displacement_field_like_this_project(moving, tmp_path, curvature):
    H = np.eye(3)
    H[2, 0] = 3e-4
    transform = MatrixTransform(H, "homography")
    if curvature:
        frame = np.array([[1 / 60, 0, -1.0], [0, 1 / 60, -1.0], [0, 0, 1]])
        transform = QuadraticTransform(
            frame, np.array([[60.0, 55, 4, curvature, 0, 2], [62.0, -3, 57, 1, -curvature, 0]])
        )
    export_files(
        folder=tmp_path,
        kinds=["itk"],
        transform=transform,
        H_fix_to_mov=transform.approximate_matrix(),
        fixed_size=FIXED_SIZE,
        fixed_points=np.zeros((0, 2)),
        moving_points=np.zeros((0, 2)),
        inliers=np.zeros(0, bool),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["displacement_field.mha"]
    field = sitk.DisplacementFieldTransform(
        sitk.ReadImage(str(tmp_path / "displacement_field.mha"), sitk.sitkVectorFloat64)
    )
    frame = sitk.GetImageFromArray(np.zeros(FIXED_SIZE, np.float32))
    theirs = sitk.GetArrayFromImage(
        sitk.Resample(sitk.GetImageFromArray(moving), frame, field, sitk.sitkLinear)
    )
    ours = register_onto_fixed(moving, transform, FIXED_SIZE)
    inner = ours > 0
    inner[:3], inner[-3:], inner[:, :3], inner[:, -3:] = False, False, False, False
    inner &= theirs > 0
    assert inner.mean() > 0.3 and np.abs(theirs - ours)[inner].max() < 0.02
