"""register.py on files as they come: depth, colour, spacing, sides, and no word of the patient."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from dicom_cases import SECRETS, SPACING, names_in, write_dicom
from register_runs import register_runner, write_table

from registration.registrar import Registrar
from utils.errors import InputError
from utils.image_decoding import read_stored
from utils.image_files import read_color, write_image


@pytest.fixture
def run_register(untrained_weights, monkeypatch, tmp_path):
    """Runs register.py into ``tmp_path / "out"``."""
    return register_runner(tmp_path / "out", untrained_weights, monkeypatch)


@pytest.fixture(scope="module")
def color(generated_root) -> np.ndarray:
    """A photograph (H, W, 3) uint8."""
    picture = read_color(generated_root / "1_A" / "1_A_cf.png")
    return (picture * 255.0 + 0.5).astype(np.uint8)


@pytest.fixture(scope="module")
def registrar(untrained_weights) -> Registrar:
    return Registrar(untrained_weights, device="cpu")


def content_of(folder: Path) -> dict:
    return json.loads((folder / "transform.json").read_text(encoding="utf-8"))


def test_no_word_of_the_patient_is_in_any_output(run_register, color, tmp_path, capfd):
    fixed = write_dicom(tmp_path / "cf.dcm", color, "RGB")
    moving = write_dicom(tmp_path / "fa.dcm", np.stack([color[..., 1]] * 2), frames=True)
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(fixed.read_bytes()[:-5000])
    rows = [
        {"id": "good", "fixed": fixed, "moving": f"{moving}#2"},
        {"id": "unchosen", "fixed": fixed, "moving": moving},
        {"id": "damaged", "fixed": broken, "moving": f"{moving}#1"},
    ]
    table = write_table(tmp_path / "pairs.csv", rows)
    _, results = run_register("--pairs", table, "--export", "csv", "numpy", "itk")
    assert [row["status"] for row in results] == ["ok", "failed", "failed"]
    assert "choose one" in results[1]["reason"] and "damaged" in results[2]["reason"]
    assert set(names_in(fixed)) == set(SECRETS), "the input names its patient"
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) >= 8
    assert {path.name: names_in(path) for path in written if names_in(path)} == {}
    output = "".join(capfd.readouterr())
    assert not [secret for secret in SECRETS if secret in output]
    content = content_of(tmp_path / "out" / "good")
    assert content["fixed"]["laterality"] == "R"
    assert content["moving"]["source"]["frame"] == "2"
    assert content["fixed"]["spacing_mm"] == pytest.approx(SPACING[::-1])


def test_results_in_mm_where_both_spacings_are_known(registrar, color, tmp_path):
    """The moving image is the fixed one at 1.5 times the size, with pixels as much smaller."""
    fine = cv2.resize(color, None, fx=1.5, fy=1.5, interpolation=cv2.INTER_LINEAR)
    fixed = write_dicom(tmp_path / "a.dcm", color, "RGB", PixelSpacing=[0.03, 0.03])
    moving = write_dicom(tmp_path / "b.dcm", fine, "RGB", PixelSpacing=[0.02, 0.02])
    registrar.register(fixed, moving).save(tmp_path / "pair")
    content = content_of(tmp_path / "pair")
    assert content["in_mm"]["scale"] == pytest.approx(1.0, abs=0.01)
    assert content["in_mm"]["rotation_deg"] == pytest.approx(0.0, abs=0.5)
    H, H_mm = np.array(content["H_affine"]), np.array(content["in_mm"]["H_fix_to_mov"])
    point = np.array([100.0, 80.0, 1.0])
    assert np.allclose(H_mm @ (point * [0.03, 0.03, 1.0]), (H @ point) * [0.02, 0.02, 1.0])
    registrar.register(color, moving).save(tmp_path / "half")
    assert content_of(tmp_path / "half")["in_mm"] is None


@pytest.mark.parametrize("kind", ["grey 8", "grey 16", "colour 16", "float"])
def test_the_registered_image_keeps_depth_and_colour(registrar, color, tmp_path, kind):
    moving: np.ndarray = color[..., 1]
    if kind.endswith("16"):
        moving = (color if "colour" in kind else moving).astype(np.uint16) * 16  # 12 bits
    elif kind == "float":
        moving = moving.astype(np.float32) * 3.5
    path = tmp_path / ("moving.tif" if kind == "float" else "moving.png")
    tifffile.imwrite(path, moving) if kind == "float" else write_image(path, moving)
    result = registrar.register(color, path)
    result.save(tmp_path / "pair")
    registered = read_stored(tmp_path / "pair" / "registered.png").pixels
    if kind == "float":
        assert registered.dtype == np.uint8
        registered = read_stored(tmp_path / "pair" / "registered.tif").pixels
    assert registered.dtype == moving.dtype and registered.shape == moving.shape
    inner = (slice(20, -20),) * 2
    error = np.abs(registered[inner].astype(float) - moving[inner]).mean()
    assert error < 0.02 * float(moving.max())
    assert (tmp_path / "pair" / "registered.tif").is_file() == (kind == "float")


@pytest.mark.parametrize("kind", ["dicom", "tiff"])
def test_the_registered_tiff_has_the_spacing_of_the_fixed_image(registrar, color, tmp_path, kind):
    if kind == "dicom":
        fixed = write_dicom(tmp_path / "cf.dcm", color, "RGB", PixelSpacing=[0.0125, 0.0061])
    else:
        fixed = tmp_path / "cf.tif"
        resolution = (10 / 0.0061, 10 / 0.0125)
        tifffile.imwrite(fixed, color, resolution=resolution, resolutionunit="CENTIMETER")
    registrar.register(fixed, color).save(tmp_path / "pair")
    stored = read_stored(tmp_path / "pair" / "registered.tif")
    assert stored.spacing_mm == pytest.approx((0.0061, 0.0125), rel=1e-5)
    assert stored.pixels.shape == color.shape and stored.pixels.dtype == np.uint8


def test_a_right_and_a_left_eye_are_refused(registrar, color, tmp_path):
    fixed = write_dicom(tmp_path / "r.dcm", color, "RGB")
    moving = write_dicom(tmp_path / "l.dcm", color, "RGB", ImageLaterality="L")
    with pytest.raises(InputError, match="right eye.*left eye"):
        registrar.register(fixed, moving)
    assert registrar.register(fixed, color).status == "ok", "nothing is known of the other"


def test_a_result_shows_its_attributes_and_saves_itself(registrar, color, tmp_path):
    result = registrar.register(color, color)
    names = {"status", "reason", "matrix", "confidence", "matches", "warp", "plot", "save"}
    assert names <= set(dir(result))
    result.save(tmp_path / "new" / "folder", exports=["csv"])
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "checkerboard.png",
        "matches.csv",
        "matches.png",
        "registered.png",
        "transform.json",
    ]
    content = content_of(tmp_path / "new" / "folder")
    assert np.array_equal(content["H_fix_to_mov"], result.matrix)
    assert content["fixed"]["path"] is None and content["asked_for"] == "affine"
    result.save(tmp_path / "new" / "folder")
    assert not (tmp_path / "new" / "folder" / "matches.csv").exists(), "of the earlier result"
    with pytest.raises(InputError, match="'pdf'.*itk"):
        result.save(tmp_path, exports=["pdf"])
