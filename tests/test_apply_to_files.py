"""apply_transform on files as they come: stacks, resolution, DICOM, orientation, tables."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import tifffile
from dicom_cases import SECRETS, names_in, write_dicom
from helpers import blurred_noise
from PIL import Image
from test_apply_transform import FIXED_SIZE, MOVING_SIZE, H, apply, write_transform

from geometry.points import warp_points
from geometry.rasters import register_onto_fixed
from geometry.transform_files import read_transform
from geometry.warped_frames import warp_frame
from utils.image_decoding import read_stored

MOVING = (blurred_noise(MOVING_SIZE) * 255).astype(np.uint8)
FRAMES = np.stack([MOVING, MOVING[::-1], 255 - MOVING])
POINTS = np.array([[0.0, 0.0], [95.0, 79.0], [33.25, 17.5]])


@pytest.fixture
def transform(tmp_path):
    return write_transform(tmp_path / "transform.json")


def warped(image: np.ndarray) -> np.ndarray:
    return register_onto_fixed(image.astype(np.float32), H, FIXED_SIZE)


@pytest.mark.parametrize(
    "form",
    [{}, {"photometric": "minisblack"}, {"photometric": "minisblack", "planarconfig": "separate"},
     {"photometric": "rgb", "planarconfig": "separate"}, {"imagej": True}],
)  # fmt: skip
def test_a_stack_of_three_frames_is_a_stack(transform, monkeypatch, tmp_path, form):
    tifffile.imwrite(tmp_path / "s.tif", FRAMES, **form)
    given = ("--from", "moving", tmp_path / "s.tif", "--out", tmp_path / "out")
    assert apply(monkeypatch, transform, *given) == 0
    result = tifffile.imread(tmp_path / "out" / "s.tif")
    assert result.shape == (3, *FIXED_SIZE) and result.dtype == np.uint8
    for page, source in zip(result, FRAMES, strict=True):
        assert np.abs(page - warped(source)).max() <= 1


@pytest.mark.parametrize("resolution", [(300.0, 300.0, "INCH"), (1639.0, 1600.0, "CENTIMETER")])
def test_the_resolution_of_a_tiff_is_kept(transform, monkeypatch, tmp_path, resolution):
    x, y, unit = resolution
    tifffile.imwrite(tmp_path / "a.tif", MOVING, resolution=(x, y), resolutionunit=unit)
    given = ("--from", "moving", tmp_path / "a.tif", "--out", tmp_path / "out")
    assert apply(monkeypatch, transform, *given) == 0
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as file:
        page = file.pages.first
        assert page.resolution == (x, y) and page.resolutionunit.name == unit


def test_a_known_size_of_the_target_pixel_is_written(monkeypatch, tmp_path):
    transform = write_transform(tmp_path / "t.json", spacing_mm=(0.0061, 0.0125))
    tifffile.imwrite(tmp_path / "a.tif", MOVING, resolution=(300, 300), resolutionunit="INCH")
    given = ("--from", "moving", tmp_path / "a.tif", "--out", tmp_path / "out")
    assert apply(monkeypatch, transform, *given) == 0
    spacing = read_stored(tmp_path / "out" / "a.tif").spacing_mm
    assert spacing == pytest.approx((0.0061, 0.0125), rel=1e-5)


def test_dicom_becomes_a_stack_without_its_patient(transform, monkeypatch, tmp_path):
    path = write_dicom(tmp_path / "movie.dcm", FRAMES, frames=True)
    given = ("--from", "moving", path, f"{path}#3", "--out", tmp_path / "out")
    assert apply(monkeypatch, transform, *given) == 0
    stack = tifffile.imread(tmp_path / "out" / "movie.tif")
    assert stack.shape == (3, *FIXED_SIZE)
    third = tifffile.imread(tmp_path / "out" / "movie_3.tif")
    assert np.array_equal(third, stack[2]) and np.abs(third - warped(FRAMES[2])).max() <= 1
    assert set(names_in(path)) == set(SECRETS)
    assert [names_in(file) for file in (tmp_path / "out").iterdir()] == [[], []]


def test_a_turned_photograph_is_upright_first(transform, monkeypatch, tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # stored turned by 90 degrees
    Image.fromarray(np.rot90(MOVING)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_stored(tmp_path / "a.png").pixels, MOVING)
    given = ("--from", "moving", tmp_path / "a.png", "--out", tmp_path / "out")
    assert apply(monkeypatch, transform, *given) == 0
    assert np.abs(read_stored(tmp_path / "out" / "a.png").pixels - warped(MOVING)).max() <= 1


def test_palette_pages_keep_their_numbers(transform, monkeypatch, tmp_path):
    labels = (MOVING // 64).astype(np.uint8) * 5
    colors = np.random.default_rng(0).integers(0, 65535, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="palette", colormap=colors)
    given = ("--from", "moving", tmp_path / "a.tif", "--out", tmp_path / "out")
    assert apply(monkeypatch, transform, *given) == 0
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as file:
        assert np.array_equal(file.pages.first.colormap, colors)
        wanted = warp_frame(labels, read_transform(transform), nearest=True)
        assert np.array_equal(file.pages.first.asarray(), wanted)


def test_the_input_must_be_said_and_a_mistaken_one_is_named(
    transform, monkeypatch, tmp_path, capsys
):
    cv2.imwrite(str(tmp_path / "a.png"), MOVING)
    (tmp_path / "p.txt").write_text("1 2\n")
    for given in ((tmp_path / "a.png",), ("--points", tmp_path / "p.txt")):
        assert apply(monkeypatch, transform, *given, "--out", tmp_path / "out") == 2
        assert "--from moving or --from fixed" in capsys.readouterr().err
    assert apply(monkeypatch, transform, tmp_path / "a.png", "--inverse", "--out", "x") == 2
    assert "--inverse is now --from fixed" in capsys.readouterr().err
    given = ("--from", "fixed", tmp_path / "a.png", "--out", tmp_path / "out")
    assert apply(monkeypatch, transform, *given) == 2
    assert "is it --from moving?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, header",
    [
        ("x,y\n0,0\n95,79\n33.25,17.5\n", "x,y"),
        ("x y\n0 0\n95  79\n33.25 17.5\n", "x y"),
        ("X;Y\n0;0\n95;79\n33,25;17,5\n", "X;Y"),
        ("\ufeffX [px]\tY [px]\n0\t0\n95\t79\n33.25\t17.5\n", "X [px]\tY [px]"),
        ("id,x,y\np1,0,0\n7,95,79\n,33.25,17.5\n", "id,x,y"),
        ("y,x\n0,0\n79,95\n17.5,33.25\n", "y,x"),
        ("name,fixed_x,fixed_y\n\"a, b\",0,0\n2,95,79\n3,33.25,17.5\n", "name,moving_x,moving_y"),
        (
            "fixed_x,fixed_y,moving_x,moving_y,inlier\n0,0,1,1,1\n95,79,1,1,0\n33.25,17.5,1,1,1\n",
            "mapped_x,mapped_y,moving_x,moving_y,inlier",
        ),
    ],
)  # fmt: skip
def test_points_with_a_header_or_as_csv(transform, monkeypatch, tmp_path, text, header):
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    given = ("--from", "fixed", "--points", tmp_path / "p.csv", "--out", tmp_path / "q.csv")
    assert apply(monkeypatch, transform, *given) == 0
    lines = (tmp_path / "q.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == header and len(lines) == 4
    words = header.replace(";", ",").replace("\t", ",").replace(" [px]", "").replace(" ", ",")
    names = [name.casefold()[-1] for name in words.split(",")]
    first_x, first_y = names.index("x"), names.index("y")
    separator = next(mark for mark in "\t; ," if mark in header.replace(" [px]", ""))
    found = [line.rsplit(separator, len(names) - 1) for line in lines[1:]]
    values = [[float(row[place].replace(",", ".")) for place in (first_x, first_y)]
              for row in found]  # fmt: skip
    assert np.abs(np.array(values) - warp_points(POINTS, H)).max() < 1e-5
    if len(names) > 2:
        assert found[1][0] in ("7", "2") or names[0] != "d"


@pytest.mark.parametrize(
    "text, words",
    [
        ("a,b\n1,2\n", "no single column for x"),
        ("x,y\n1,two\n", "row 2"),
        ("x,y\n1\n", "row 2"),
        ("x,x,y\n1,2,3\n", "no single column for x"),
        ("x,y\n1,1e9\n", "row 2"),
    ],
)
def test_tables_without_points_are_named(transform, monkeypatch, tmp_path, capsys, text, words):
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    given = ("--from", "fixed", "--points", tmp_path / "p.csv", "--out", tmp_path / "q.csv")
    assert apply(monkeypatch, transform, *given) == 2
    error = capsys.readouterr().err
    assert "p.csv" in error and words in error and not (tmp_path / "q.csv").exists()
