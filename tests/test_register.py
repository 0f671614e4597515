"""register.py around an untrained network: files, tables, failures; an image registered onto itself."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import read_table, run_main

import register
from geometry.estimation import MATRIX_KINDS
from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import resize_matrix, turn_about_centre
from geometry.points import warp_points
from registration.pair_table import RESULT_COLUMNS
from registration.registrar import Registrar
from registration.working_frame import to_working_frame
from utils.errors import InputError
from utils.image_files import read_color, read_gray, write_image

COLUMNS = (
    "id,status,reason,confidence,n_matches,n_inliers,seconds,h00,h01,h02,h10,h11,h12,h20,h21,h22"
).split(",")
MATRIX = [f"h{row}{column}" for row in range(3) for column in range(3)]


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def cf(generated_root) -> Path:
    return generated_root / "1_A" / "1_A_cf.png"


@pytest.fixture
def run_register(untrained_weights, monkeypatch, tmp_path):
    """Runs register.py into ``tmp_path / "out"``; returns (exit code, rows of results.csv)."""

    def run(*arguments: object) -> tuple[int, list[dict[str, str]]]:
        out = tmp_path / "out"
        code = run_main(
            register,
            monkeypatch,
            *arguments,
            "--out",
            out,
            "--weights",
            untrained_weights,
            "--device",
            "cpu",
        )
        return code, read_table(out / "results.csv") if (out / "results.csv").is_file() else []

    return run


# --- one pair ---------------------------------------------------------------------------------------------------------


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


def test_transform_json_says_what_the_table_says(run_register, cf, tmp_path):
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
    """The moving image is the fixed one, cropped in its dark surround and enlarged: no network is needed to see that."""
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


def test_arrays_are_as_good_as_paths(untrained_weights, cf):
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
    """As files they are refused; as arrays they must not come back with a matrix either."""
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
    assert code == 0 and row["status"] == "failed" and row["reason"]
    assert all(row[name] == "" for name in MATRIX)
    folder = tmp_path / "out" / row["id"]
    content = json.loads((folder / "transform.json").read_text(encoding="utf-8"))
    assert content["H_fix_to_mov"] is None and content["reason"] == row["reason"]
    assert not (folder / "registered.png").exists() and (folder / "matches.png").is_file()


# --- the working frame ------------------------------------------------------------------------------------------------


def test_working_frame_says_where_pixels_went():
    image = np.zeros((300, 420), np.float32)
    cv2.circle(image, (230, 160), 110, 0.4, -1)
    spots = np.array([[200.0, 130.0], [270.0, 170.0], [225.0, 215.0]])
    ys, xs = np.indices(image.shape)
    for x, y in spots:
        image += 0.6 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 18).astype(np.float32)
    working, seen, frame = to_working_frame(image, 192)
    assert working.shape == seen.shape == frame.size
    ys, xs = np.indices(working.shape)
    for x, y in warp_points(spots, frame.H_image_to_working):
        weight = np.clip(working - 0.42, 0, None) * (np.maximum(abs(xs - x), abs(ys - y)) < 12)
        assert (
            abs((xs * weight).sum() / weight.sum() - x) < 0.25
            and abs((ys * weight).sum() / weight.sum() - y) < 0.25
        )


@pytest.mark.parametrize("angle", [30, 45, 90, 180])
def test_working_scale_does_not_depend_on_the_canvas(cf, angle):
    """Turned on a larger canvas, or with more black around it, a retina comes out at the same size."""
    image = np.where(estimate_field_of_view(read_gray(cf)), read_gray(cf), 0)
    H, canvas = turn_about_centre(image.shape, angle)
    turned = cv2.warpAffine(image, H[:2], canvas[::-1], flags=cv2.INTER_LINEAR)
    scales = [
        math.sqrt(np.linalg.det(to_working_frame(picture, 192)[2].H_image_to_working[:2, :2]))
        for picture in (image, turned, np.pad(image, 60))
    ]
    assert max(scales) < 1.05 * min(scales)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_bad_rows_are_failed_rows_and_the_others_go_on(run_register, cf, tmp_path):
    (tmp_path / "cut.png").write_bytes(cf.read_bytes()[:3000])
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((64, 64), np.uint8))
    cases = [
        ("first", cf, cf, ""),
        ("cut", cf, tmp_path / "cut.png", "cut.png"),
        ("gone", tmp_path / "gone.png", cf, "gone.png"),
        ("../x", cf, cf, "plain name"),
        ("first", cf, cf, "twice"),
        ("", cf, cf, "plain name"),
        ("a/b", cf, cf, "plain name"),
        (".hidden", cf, cf, "plain name"),
        ("folder", cf.parent, cf, str(cf.parent.name)),
        ("black", tmp_path / "black.png", cf, "black"),
        ("empty", "", cf, "image"),
        ("last", cf, cf, ""),
    ]
    table = write_table(
        tmp_path / "pairs.csv", [{"id": a, "fixed": b, "moving": c} for a, b, c, _ in cases]
    )
    code, rows = run_register("--pairs", table)
    assert code == 0 and [row["id"] for row in rows] == [case[0] for case in cases]
    for row, (_, _, _, reason) in zip(rows, cases, strict=True):
        assert row["status"] == ("failed" if reason else "ok"), row
        assert reason in row["reason"]
        assert all((row[name] == "") == bool(reason) for name in MATRIX)
    assert (
        not (tmp_path / "x").exists() and (tmp_path / "out" / "last" / "registered.png").is_file()
    )


@pytest.mark.parametrize(
    "name", ["results.csv", "name with blanks", "眼底_1", "x" * 150, "眼" * 140]
)
def test_unusual_ids_do_not_stop_the_batch(run_register, cf, tmp_path, name):
    table = write_table(
        tmp_path / "pairs.csv",
        [{"id": name, "fixed": cf, "moving": cf}, {"id": "b", "fixed": cf, "moving": cf}],
    )
    code, rows = run_register("--pairs", table)
    assert code == 0 and [row["id"] for row in rows] == [name, "b"] and rows[1]["status"] == "ok"
    assert rows[0]["status"] == "ok" or rows[0]["reason"]


def test_files_in_the_way_and_impossible_paths_do_not_stop_the_batch(run_register, cf, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "taken").write_text("a file where the folder should be", encoding="utf-8")
    table = write_table(
        tmp_path / "pairs.csv",
        [
            {"id": "taken", "fixed": cf, "moving": cf},
            {"id": "long", "fixed": "x" * 5000, "moving": cf},
            {"id": "good", "fixed": cf, "moving": cf},
        ],
    )
    code, rows = run_register("--pairs", table)
    assert code == 0 and [row["status"] for row in rows] == ["failed", "failed", "ok"]
    assert (
        "taken" in rows[0]["reason"]
        and rows[1]["reason"]
        and all(rows[0][name] == "" for name in MATRIX)
    )


def test_an_output_folder_that_is_a_file_is_refused(
    cf, untrained_weights, tmp_path, monkeypatch, capsys
):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    arguments = ("--out", tmp_path / "out", "--weights", untrained_weights, "--device", "cpu")
    assert run_main(register, monkeypatch, cf, cf, *arguments) == 2
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


def test_further_columns_are_kept_and_paths_may_lie_beside_the_table(
    run_register, generated_root, tmp_path
):
    write_image(
        tmp_path / "tables" / "fixed.png", read_color(generated_root / "2_A" / "2_A_cf.png")
    )
    table = write_table(
        tmp_path / "tables" / "pairs.csv",
        [
            {
                "eye": "OD, right",
                "id": "one",
                "fixed": "fixed.png",
                "note": "",
                "moving": "fixed.png",
            },
            {
                "eye": "OS",
                "id": "two",
                "fixed": "nowhere.png",
                "note": "lost",
                "moving": "fixed.png",
            },
        ],
    )
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    code, rows = run_register("--pairs", table)
    assert code == 0 and list(rows[0]) == [*COLUMNS, "eye", "note"]
    assert [row["eye"] for row in rows] == ["OD, right", "OS"] and rows[1]["note"] == "lost"
    assert [row["status"] for row in rows] == ["ok", "failed"]


def test_a_table_without_rows(run_register, tmp_path):
    (tmp_path / "pairs.csv").write_text("id,fixed,moving\n", encoding="utf-8")
    code, rows = run_register("--pairs", tmp_path / "pairs.csv")
    assert code == 0 and rows == []
    assert (tmp_path / "out" / "results.csv").read_text(encoding="utf-8").strip().split(
        ","
    ) == COLUMNS


def test_wrong_usage_is_exit_code_2(run_register, cf, tmp_path):
    (tmp_path / "pairs.csv").write_text("name,fixed,moving\na,b,c\n", encoding="utf-8")
    for arguments in (
        (),
        (cf,),
        (cf, cf, "--pairs", "a.csv"),
        ("--pairs", tmp_path / "nowhere.csv"),
        ("--pairs", tmp_path / "pairs.csv"),
        (cf, cf, "--transform", "cubic"),
        (cf, cf, "--img_size", "9"),
    ):
        assert run_register(*arguments) == (2, []), arguments


def test_a_second_attempt_leaves_no_pictures_of_the_first(run_register, cf, tmp_path):
    """A row that cannot be read any more must not keep the registered image of an earlier run beside its failure."""
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


def test_images_of_every_kind_give_the_same_matrix(run_register, cf, tmp_path):
    """16-bit TIFF with a 12-bit range, grey PNG, colour JPEG, RGBA PNG: each onto the photograph it came from."""
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


def test_from_the_shell(cf, untrained_weights, tmp_path):
    project = Path(register.__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            str(project / "register.py"),
            str(cf),
            str(cf),
            "--out",
            "out",
            "--weights",
            str(untrained_weights),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "1 of 1 pairs registered" in done.stdout
    assert read_table(tmp_path / "out" / "results.csv")[0]["status"] == "ok"
