"""Apply saved transforms: images keep their format, points are mapped, errors name the file."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from helpers import blurred_noise, run_main

from geometry import apply_transform
from geometry.matrices import affine_about
from geometry.points import warp_points
from geometry.rasters import register_onto_fixed
from geometry.transform_files import SavedTransform, read_transform
from geometry.transforms import MatrixTransform
from geometry.warped_frames import warp_frame
from utils.errors import InputError
from utils.image_files import read_color

H = affine_about(25.0, 1.3, 0.08, [40, 30], [70.3, 55.8])
FIXED_SIZE, MOVING_SIZE = (80, 96), (130, 120)


@pytest.fixture(scope="module")
def moving() -> np.ndarray:
    """Blurred noise, float32 in [0, 1]."""
    return blurred_noise(MOVING_SIZE)


def write_transform(
    path: Path,
    matrix: np.ndarray | None = H,
    status: str = "ok",
    reason: str = "",
    spacing_mm: tuple[float, float] | None = None,
) -> Path:
    """Write a transform.json with the matrix ``H_fix_to_mov``; returns its path.

    ``spacing_mm`` is that of the fixed image.
    """
    path.write_text(
        json.dumps(
            {
                "status": status,
                "reason": reason,
                "H_fix_to_mov": None if matrix is None else matrix.tolist(),
                "fixed": {
                    "height": FIXED_SIZE[0],
                    "width": FIXED_SIZE[1],
                    "spacing_mm": spacing_mm,
                },
                "moving": {"height": MOVING_SIZE[0], "width": MOVING_SIZE[1]},
            }
        ),
        encoding="utf-8",
    )
    return path


def apply(monkeypatch: pytest.MonkeyPatch, transform: Path, *arguments: object) -> int:
    """Run the command; returns its exit code."""
    return run_main(apply_transform, monkeypatch, "--transform", transform, *arguments)


def transform_of(matrix: np.ndarray) -> SavedTransform:
    """The content of a transform.json with the matrix ``H_fix_to_mov``."""
    return SavedTransform(MatrixTransform(matrix), FIXED_SIZE, MOVING_SIZE)


def test_frames_keep_depth_channels_and_pages(moving, monkeypatch, tmp_path):
    deep = (moving * 60000).astype(np.uint16)
    color = np.stack([moving, 0.5 * moving, 1 - moving], -1)
    stack = np.stack([deep, deep[::-1], deep // 2])
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    cv2.imwrite(str(tmp_path / "color.png"), (color[..., ::-1] * 255 + 0.5).astype(np.uint8))
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack", compression="lzw")
    tifffile.imwrite(
        tmp_path / "colors.tiff", np.stack([(color * 255).astype(np.uint8)] * 2), photometric="rgb"
    )
    transform = write_transform(tmp_path / "transform.json")
    images = [tmp_path / name for name in ("deep.png", "color.png", "stack.tif", "colors.tiff")]
    given = ("--from", "moving", "--out", tmp_path / "out", *images)
    assert apply(monkeypatch, transform, *given) == 0
    wanted = register_onto_fixed(moving, H, FIXED_SIZE)
    deep_out = cv2.imread(str(tmp_path / "out" / "deep.png"), cv2.IMREAD_UNCHANGED)
    assert deep_out.dtype == np.uint16 and np.abs(deep_out / 60000 - wanted).max() < 1e-4
    assert np.abs(read_color(tmp_path / "out" / "color.png")[..., 0] - wanted).max() < 0.01
    pages = tifffile.imread(tmp_path / "out" / "stack.tif")
    assert pages.shape == (3, *FIXED_SIZE) and pages.dtype == np.uint16
    for page, source in zip(pages, stack, strict=True):
        expected = register_onto_fixed(source.astype(np.float32), H, FIXED_SIZE)
        assert np.abs(page - expected).max() <= 1
    assert tifffile.imread(tmp_path / "out" / "colors.tiff").shape == (2, *FIXED_SIZE, 3)


def test_the_inverse_warp_restores_the_image(moving):
    shift = MatrixTransform(np.array([[1.0, 0, 5], [0, 1, 3], [0, 0, 1]]))
    transform = SavedTransform(shift, (100, 90), MOVING_SIZE)
    there = warp_frame(moving, transform)
    back = warp_frame(there, transform, "fixed")
    assert there.shape == (100, 90) and back.shape == MOVING_SIZE
    assert np.abs(back - moving)[5:100, 7:90].max() < 1e-5
    labels = (moving > 0.5).astype(np.uint8) * 7
    assert set(np.unique(warp_frame(labels, transform_of(H), nearest=True))) <= {0, 7}


def test_points_go_from_fixed_to_moving_and_back(monkeypatch, tmp_path):
    transform = write_transform(tmp_path / "transform.json")
    there, back = tmp_path / "there.txt", tmp_path / "back.txt"
    points = np.array([[0.0, 0.0], [95.0, 79.0], [33.25, 17.5]])
    (tmp_path / "points.txt").write_text("0 0\n95, 79\n\n33.25 17.5\n", encoding="utf-8")
    given = ("--from", "fixed", "--points", tmp_path / "points.txt", "--out", there)
    assert apply(monkeypatch, transform, *given) == 0
    assert np.abs(np.loadtxt(there) - warp_points(points, H)).max() < 1e-5
    given = ("--from", "moving", "--points", there, "--out", back)
    assert apply(monkeypatch, transform, *given) == 0
    assert np.abs(np.loadtxt(back) - points).max() < 1e-5


def test_unusable_point_files_are_named(monkeypatch, tmp_path, capsys):
    transform = write_transform(tmp_path / "transform.json")
    (tmp_path / "points.txt").write_text("0 0\n95, 79\n", encoding="utf-8")
    (tmp_path / "broken.txt").write_text("1 2 3\n", encoding="utf-8")
    for name, out, words in (
        ("broken.txt", "out.txt", "line 1"),
        ("points.txt", "points.txt", "overwrite"),
    ):
        given = ("--from", "fixed", "--points", tmp_path / name, "--out", tmp_path / out)
        assert apply(monkeypatch, transform, *given) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out.txt").exists()


def test_unusable_images_and_transforms_are_named(moving, monkeypatch, tmp_path, capsys):
    good = write_transform(tmp_path / "transform.json")
    image, other = tmp_path / "image.png", tmp_path / "other.tif"
    cv2.imwrite(str(image), (moving * 255).astype(np.uint8))
    tifffile.imwrite(other, np.zeros((2, 50, 60), np.uint8), photometric="minisblack")
    (tmp_path / "broken.tif").write_bytes(b"II*\0 no")
    failed = write_transform(tmp_path / "failed.json", None, "failed", "too dark")
    (tmp_path / "foreign.json").write_text("{}", encoding="utf-8")
    for transform, path, words in (
        (good, other, ["other.tif", "120 x 130"]),
        (good, tmp_path / "broken.tif", ["broken.tif"]),
        (good, tmp_path / "gone.png", ["gone.png"]),
        (failed, image, ["failed.json", "too dark"]),
        (tmp_path / "foreign.json", image, ["foreign.json"]),
        (tmp_path / "gone.json", image, ["gone.json"]),
    ):
        given = ("--from", "moving", "--out", tmp_path / "out", path)
        assert apply(monkeypatch, transform, *given) == 2
        message = capsys.readouterr().err
        assert all(word in message for word in words), message
    assert not list((tmp_path / "out").glob("*")), "no partial results"
    assert apply(monkeypatch, good, "--from", "moving", "--out", tmp_path, image) == 2
    assert "overwrite itself" in capsys.readouterr().err


def test_a_singular_matrix_is_refused(tmp_path):
    with pytest.raises(InputError, match="invertible"):
        read_transform(write_transform(tmp_path / "t.json", np.zeros((3, 3))))
