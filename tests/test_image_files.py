"""Unreadable, blank and tiny images: the error names the file and the remedy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from helpers import truncate

from utils.errors import InputError
from utils.image_files import read_color, read_gray, read_mask, write_image


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_truncated_images(tmp_path, suffix, share):
    path = tmp_path / f"photo{suffix}"
    write_image(path, np.random.default_rng(0).random((120, 160, 3)).astype(np.float32))
    assert read_gray(path).shape == (120, 160)
    truncate(path, share)
    for read in (read_gray, read_color, read_mask):
        with pytest.raises(InputError, match=f"photo{suffix}.*again"):
            read(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0 not really", b"<html></html>" * 30],
)
def test_files_that_are_no_images(tmp_path, content):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match="photo.png.*again"):
        read_gray(path)


def test_missing_folder_in_place_of_an_image_and_tiny_images(tmp_path):
    with pytest.raises(InputError, match="nowhere.png.*path"):
        read_gray(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=tmp_path.name):
        read_gray(tmp_path)
    write_image(tmp_path / "tiny.png", np.eye(8, dtype=np.float32))
    with pytest.raises(InputError, match="tiny.png.*8 x 8"):
        read_gray(tmp_path / "tiny.png")


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_blank_images(tmp_path, level, dtype):
    path = tmp_path / "blank.png"
    assert cv2.imwrite(str(path), np.full((64, 64), level, dtype))
    for read in (read_gray, read_color):
        with pytest.raises(InputError, match="blank.png.*black or blank"):
            read(path)


def test_images_whose_pixels_are_not_numbers(tmp_path):
    values = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    values[3, 4] = np.nan
    assert cv2.imwrite(str(tmp_path / "nan.tif"), values)
    with pytest.raises(InputError, match="nan.tif.*NaN"):
        read_gray(tmp_path / "nan.tif")
