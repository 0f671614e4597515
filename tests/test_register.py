"""register.py with an untrained network: results, files and failures of one pair."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from register_runs import COLUMNS, MATRIX, RunRegister, register_runner, write_table

from geometry.estimation import MATRIX_KINDS
from geometry.matrices import resize_matrix
from geometry.points import warp_points
from registration.pair_tables import RESULT_COLUMNS
from registration.registrar import Registrar
from utils.errors import InputError
from utils.image_files import read_color, read_gray, write_image


@pytest.fixture
def cf(generated_root) -> Path:
    return generated_root / "1_A" / "1_A_cf.png"


@pytest.fixture
def run_register(untrained_weights, monkeypatch, tmp_path) -> RunRegister:
    """Runs register.py into ``tmp_path / "out"``."""
    return register_runner(tmp_path / "out", untrained_weights, monkeypatch)


def test_an_image_is_registered_onto_itself_by_the_identity(run_register, cf, tmp_path):
    code, (row,) = run_register(cf, cf)
    assert code == 0 and list(row) == COLUMNS == RESULT_COLUMNS
    assert row["status"] == "ok" and row["reason"] == "" and row["id"] == "1_A_cf_1_A_cf"
    H = np.array([float(row[name]) for name in MATRIX]).reshape(3, 3)
    corners = np.array([[0.0, 0.0], [191, 0], [191, 191], [0, 191]])
    assert np.abs(warp_points(corners, H) - corners).max() < 0.1
    assert int(row["n_inliers"]) == int(row["n_matches"]) > 10 and float(row["seconds"]) > 0
    folder = tmp_path / "out" / row["id"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkerboard.png",
        "matches.png",
        "registered.png",
        "transform.json",
    ]
    assert np.abs(read_color(folder / "registered.png") - read_color(cf)).mean() < 0.02
    assert read_color(folder / "checkerboard.png").shape == (192, 192, 3)


def test_transform_json_and_results_csv_are_consistent(run_register, cf, tmp_path):
    _, (row,) = run_register(cf, cf, "--transform", "similarity", "--img_size", "160")
    content = json.loads(
        (tmp_path / "out" / row["id"] / "transform.json").read_text(encoding="utf-8")
    )
    assert content["status"] == "ok" and content["transform"] == "similarity"
    assert np.array(content["H_fix_to_mov"]).ravel().tolist() == [
        float(row[name]) for name in MATRIX
    ]
    assert (
        content["fixed"] == {"path": str(cf), "height": 192, "width": 192}
        and "fixed" in content["convention"]
    )
    assert content["n_matches"] == int(row["n_matches"]) and content["weights"].endswith(
        "untrained.pth"
    )


@pytest.mark.parametrize("transform", MATRIX_KINDS)
def test_the_matrix_is_in_pixels_of_images_of_different_size(untrained_weights, cf, transform):
    """The moving image is the fixed one with another dark border, enlarged by 2."""
    registrar = Registrar(untrained_weights, transform, device="cpu")
    fixed = np.pad(read_gray(cf), ((20, 4), (0, 30)))
    moving = cv2.resize(fixed, None, fx=2.0, fy=2.0, interpolation=cv2.INTER_LINEAR)
    result = registrar.register(fixed, moving)
    assert result.status == "ok", result.reason
    points = np.array([[40.0, 60.0], [150.0, 70.0], [90.0, 170.0]])
    wanted = warp_points(points, resize_matrix(fixed.shape, moving.shape))
    assert np.abs(warp_points(points, result.H_fix_to_mov) - wanted).max() < 3.0
    error = np.linalg.norm(
        warp_points(result.fixed_points, result.H_fix_to_mov) - result.moving_points, axis=1
    )
    assert result.inliers.sum() == result.n_inliers and np.median(error[result.inliers]) < 6.0


def test_equal_input_gives_an_equal_result(untrained_weights, cf, generated_root):
    registrar = Registrar(untrained_weights, device="cpu")
    fa = generated_root / "1_A" / "1_A_fa_gen.png"
    first, second = registrar.register(cf, fa), registrar.register(cf, fa)
    assert (
        first.status == second.status
        and first.reason == second.reason
        and first.n_matches == second.n_matches
    )
    assert np.array_equal(first.fixed_points, second.fixed_points) and np.array_equal(
        first.inliers, second.inliers
    )


def test_arrays_give_the_same_matrix_as_paths(untrained_weights, cf):
    registrar = Registrar(untrained_weights, device="cpu")
    by_path = registrar.register(cf, cf)
    for image in (read_gray(cf), read_color(cf), (read_color(cf) * 255 + 0.5).astype(np.uint8)):
        by_array = registrar.register(image, image)
        assert by_array.status == "ok" and np.allclose(
            by_array.H_fix_to_mov, by_path.H_fix_to_mov, atol=1e-3
        )
    for shape in ((4, 4), (64, 64, 1), (64,), (2, 64, 64, 3)):
        with pytest.raises(InputError, match="shape"):
            registrar.register(np.zeros(shape, np.float32), cf)


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_blank_arrays_are_never_registered(untrained_weights, level):
    """As files they are refused; as arrays they must not give a matrix either."""
    blank = np.full((160, 192), level, np.float32)
    try:
        result = Registrar(untrained_weights, device="cpu").register(blank, blank)
    except InputError as error:
        assert "blank" in str(error)
    else:
        assert result.status == "failed" and result.reason


def test_a_featureless_pair_fails_with_a_reason(run_register, tmp_path, cf):
    ramp = np.tile(np.linspace(0.2, 0.8, 96, dtype=np.float32), (80, 1))
    write_image(tmp_path / "ramp.png", ramp)
    code, (row,) = run_register(cf, tmp_path / "ramp.png")
    assert code == 1 and row["status"] == "failed" and row["reason"]
    assert all(row[name] == "" for name in MATRIX)
    folder = tmp_path / "out" / row["id"]
    content = json.loads((folder / "transform.json").read_text(encoding="utf-8"))
    assert content["H_fix_to_mov"] is None and content["reason"] == row["reason"]
    assert not (folder / "registered.png").exists() and (folder / "matches.png").is_file()


def test_a_failed_second_run_removes_the_files_of_the_first(run_register, cf, tmp_path):
    """A failed row must not keep the registered image of an earlier run."""
    write_image(tmp_path / "moving.png", read_gray(cf))
    _, (row,) = run_register(cf, tmp_path / "moving.png")
    folder = tmp_path / "out" / row["id"]
    assert (folder / "registered.png").is_file()
    (tmp_path / "moving.png").write_bytes(b"")
    _, (row,) = run_register(cf, tmp_path / "moving.png")
    assert row["status"] == "failed" and not (folder / "registered.png").exists()
    assert (
        not (folder / "transform.json").exists()
        or json.loads((folder / "transform.json").read_text(encoding="utf-8"))["status"] == "failed"
    )


def test_images_of_every_format_give_the_same_matrix(run_register, cf, tmp_path):
    """12 of 16 bits in a TIFF, grey PNG, colour JPEG, RGBA PNG: each onto its own photograph."""
    color = cv2.imread(str(cf))
    green = color[..., 1]
    images = {
        "deep.tif": green.astype(np.uint16) * 16,
        "gray.png": green,
        "color.jpg": color,
        "alpha.png": cv2.cvtColor(color, cv2.COLOR_BGR2BGRA),
        "wide.tiff": color.astype(np.uint16) * 256,
    }
    for name, image in images.items():
        assert cv2.imwrite(str(tmp_path / name), image, [cv2.IMWRITE_JPEG_QUALITY, 98])
    table = write_table(
        tmp_path / "pairs.csv",
        [{"id": Path(name).stem, "fixed": cf, "moving": name} for name in images],
    )
    code, rows = run_register("--pairs", table)
    corners = np.array([[0.0, 0.0], [191, 0], [191, 191], [0, 191]])
    for row in rows:
        assert row["status"] == "ok", row
        H = np.array([float(row[name]) for name in MATRIX]).reshape(3, 3)
        assert np.abs(warp_points(corners, H) - corners).max() < 0.5, row["id"]


@pytest.mark.parametrize(
    ("pictures", "names"),
    [("none", ["transform.json"]), ("registered", ["registered.png", "transform.json"])],
)
def test_fewer_pictures_on_request(run_register, cf, tmp_path, pictures, names):
    code, (row,) = run_register(cf, cf, "--pictures", pictures)
    assert code == 0 and row["status"] == "ok"
    assert sorted(path.name for path in (tmp_path / "out" / row["id"]).iterdir()) == names
