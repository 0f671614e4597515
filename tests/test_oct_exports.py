"""Exports of OCT devices: photograph and en-face projection, with a patient in the file."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_cases import names_in, picture
from helpers import truncate

from utils.errors import InputError
from utils.image_decoding import read_stored
from utils.image_files import read_gray

eyepy = pytest.importorskip("eyepy", reason="requirements-oct.txt is not installed")
N_SCANS, DEPTH, WIDTH = 24, 32, 96
ACROSS_MM, BETWEEN_MM = 0.0117, 0.047
SCAN_HEADER = 256 + 12 * WIDTH + 64  # bytes before the pixels of a scan


def write_vol(path: Path, from_top: bool = False) -> tuple[Path, np.ndarray]:
    """A Heidelberg volume, by the device's specification; the brightness of its A-scans.

    Returns:
        The path, and (N_SCANS, WIDTH) in [0, 1], top row first.
    """
    rows = picture()[:N_SCANS, :WIDTH].astype(float) / 255.0
    slo = picture()
    header = struct.pack(
        "<12s3i3d2i2did4sQ2i16s16si24sdi24sd4i34s1790x",
        *(b"HSF-OCT-103", WIDTH, N_SCANS, DEPTH, ACROSS_MM, BETWEEN_MM, 0.0039),
        *(slo.shape[1], slo.shape[0], 0.0118, 0.0119, 30, 0.0, b"OS", 126_000_000_000_000_000, 3),
        *(SCAN_HEADER, b"2390", b"", 7734421, b"Doeworthy Janette", 22547.0, 1, b"#1", 40000.0),
        *(0, 0, 0, 0, b""),
    )
    assert len(header) == 2048
    places = range(N_SCANS) if from_top else range(N_SCANS - 1, -1, -1)
    scans = []
    for place in places:
        y = 0.1 + place * BETWEEN_MM
        start = (b"HSF-BS-103", SCAN_HEADER, 0.1, y, 1.2, y, 3, 256, 30.0, 0, *[0.0] * 6)
        values = np.tile((0.2 + 0.6 * rows[place]).astype("<f4") ** 4, (DEPTH, 1))
        layers = np.full((3, WIDTH), 8.0, "<f4")
        scans += [struct.pack("<12si4d2ifi6f168x", *start), layers.tobytes()]
        scans += [bytes(SCAN_HEADER - 256 - layers.nbytes), values.tobytes()]
    path.write_bytes(header + slo.tobytes() + b"".join(scans))
    return path, rows


def test_the_photograph_of_a_volume(tmp_path):
    path, _ = write_vol(tmp_path / "scan.vol")
    assert names_in(path), "the file names its patient"
    stored = read_stored(f"{path}#slo")
    assert np.array_equal(stored.pixels, picture())
    assert stored.spacing_mm == pytest.approx((0.0118, 0.0119)) and stored.laterality == "L"
    assert stored.provenance == {"format": "vol", "image": "slo"}


@pytest.mark.parametrize("from_top", [False, True])
def test_the_projection_has_square_pixels_and_is_not_mirrored(tmp_path, from_top):
    path, rows = write_vol(tmp_path / "scan.vol", from_top)
    stored = read_stored(f"{path}#enface")
    height = round(N_SCANS * BETWEEN_MM / ACROSS_MM)
    assert stored.pixels.shape == (height, WIDTH) and stored.pixels.dtype == np.uint8
    assert stored.spacing_mm == pytest.approx((ACROSS_MM, ACROSS_MM))
    nearest = np.minimum((np.arange(height) + 0.5) * N_SCANS / height, N_SCANS - 1).astype(int)
    assert np.corrcoef(stored.pixels.ravel(), rows[nearest].ravel())[0, 1] > 0.9


def test_the_image_must_be_chosen_and_damaged_files_are_named(tmp_path):
    path, _ = write_vol(tmp_path / "scan.vol")
    for wrong in (path, f"{path}#3"):
        with pytest.raises(InputError, match="scan.vol#slo or .*scan.vol#enface"):
            read_gray(wrong)
    truncate(path, 0.5)
    for name in ("scan.vol", "scan.e2e", "scan.fda"):
        (tmp_path / name).write_bytes(path.read_bytes())
        with pytest.raises(InputError, match=name) as caught:
            read_gray(f"{tmp_path / name}#slo")
        assert "Doeworthy" not in str(caught.value)


def test_without_the_reader_the_remedy_is_named(tmp_path, monkeypatch):
    path, _ = write_vol(tmp_path / "scan.vol")
    monkeypatch.setitem(sys.modules, "eyepy", None)
    with pytest.raises(InputError, match="requirements-oct.txt"):
        read_gray(f"{path}#slo")
