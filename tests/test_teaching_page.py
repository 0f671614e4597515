"""The table and the page of the real pairs of a run."""

from __future__ import annotations

import re
import shutil
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import blurred_noise, read_table

from geometry.matrices import translation_matrix
from geometry.transforms import MatrixTransform
from training.teaching_evidence import Evidence
from training.teaching_page import COLUMNS, THUMBNAIL_PX, draw_pair, write_teaching_page
from training.teaching_set import ACCEPTED, LEFT, REFUSED, WAITING, TeachingRecord
from utils.image_files import write_image

SHIFT = MatrixTransform(translation_matrix((30.0, 0.0))).to_dict()
KEY = "<b>x</b>&1"


@pytest.fixture
def pair(tmp_path):
    """Files of a fixed and a moving image of unlike sizes."""
    paths = tmp_path / "fixed.png", tmp_path / "moving.png"
    for path, size in zip(paths, ((120, 160), (90, 100)), strict=True):
        write_image(path, blurred_noise(size))
    return paths


def records() -> list[TeachingRecord]:
    views = Evidence(views=20, matches=1000.0, right=102.0, by_chance=2.0)
    return [
        TeachingRecord("later", "registered", WAITING),
        TeachingRecord(
            KEY, "registered", REFUSED, "confidence <0.8", confidence=0.7, epoch=2, tries=1
        ),
        TeachingRecord(
            "good", "registered", ACCEPTED, "", SHIFT, 3.25, 0.95, 1.5, 3, 2, 24, evidence=views
        ),
        TeachingRecord("bad", "landmarks", LEFT, "disagree", SHIFT, 4.0, epoch=4, has_left=True),
    ]


def test_table_page_and_pictures(tmp_path, pair):
    write_teaching_page(tmp_path, records(), {each.key: pair for each in records()})
    rows = read_table(tmp_path / "teaching" / "pairs.csv")
    assert tuple(rows[0]) == COLUMNS and [row["status"] for row in rows] == [
        *("waiting", "refused", "accepted", "left")
    ]
    good = rows[2]
    assert (good["number"], good["kind"], good["tolerance_file_px"]) == ("3", "affine", "3.25")
    assert (good["views"], good["right_share"], good["epoch"]) == ("24", "0.1002", "3")
    assert rows[0]["confidence"] == rows[0]["right_share"] == rows[0]["kind"] == ""
    page = (tmp_path / "teaching" / "index.html").read_text(encoding="utf-8")
    assert page.index("Accepted (1)") < page.index("Refused (1)") < page.index("Left (1)")
    assert "<b>x" not in page and "&lt;b&gt;x&lt;/b&gt;&amp;1" in page and "&lt;0.8" in page
    links = re.findall(r'<img src="([^"]+)" loading="lazy"', page)
    assert len(links) == 3 and "10.0 % right" in page
    for link in links:
        assert link.startswith("pictures/") and (tmp_path / "teaching" / link).is_file()
    assert len(page) < 40_000, "no library for charts, which it has none of"


def test_only_pairs_with_a_new_decision_are_drawn_again(tmp_path, pair):
    images = {each.key: pair for each in records()}
    write_teaching_page(tmp_path, records(), images)
    pictures = tmp_path / "teaching" / "pictures"
    before = {path.name: path.stat().st_mtime_ns for path in pictures.iterdir()}
    changed = records()
    changed[1].status, changed[1].transform, changed[1].epoch = ACCEPTED, SHIFT, 7
    write_teaching_page(tmp_path, changed, images)
    after = {path.name: path.stat().st_mtime_ns for path in pictures.iterdir()}
    assert len(after) == 3 and len(before.items() & after.items()) == 2


def test_a_thousand_pairs_make_a_small_page_of_separate_pictures(tmp_path, pair):
    many = [
        TeachingRecord(f"pair_{i}", "registered", REFUSED, "turned image disagrees by 9.1 px")
        for i in range(1000)
    ]
    pictures = tmp_path / "teaching" / "pictures"
    write_teaching_page(tmp_path, many[:1], {"pair_0": pair})
    (picture,) = pictures.iterdir()
    for each in many[1:]:  # drawn before, as those of earlier epochs
        name = f"{each.key}_{zlib.crc32(each.key.encode()):08x}_refused_0.jpg"
        shutil.copy(picture, pictures / name)
    write_teaching_page(tmp_path, many, {each.key: pair for each in many})
    page = tmp_path / "teaching" / "index.html"
    assert page.stat().st_size < 500_000 and len(list(pictures.iterdir())) == 1000
    assert picture.stat().st_size < 20_000
    assert page.read_text(encoding="utf-8").count('loading="lazy"') == 1000
    assert len(read_table(tmp_path / "teaching" / "pairs.csv")) == 1000


def test_a_registered_pair_that_left_is_in_the_same_group_of_table_and_page(tmp_path, pair):
    gone = replace(records()[2], status=REFUSED, reason="its matches disagree", has_left=True)
    write_teaching_page(tmp_path, [gone], {"good": pair})
    (row,) = read_table(tmp_path / "teaching" / "pairs.csv")
    page = (tmp_path / "teaching" / "index.html").read_text(encoding="utf-8")
    assert row["status"] == LEFT and "Left (1)" in page and "Refused (" not in page


def test_an_unreadable_image_is_named_and_stops_nothing(tmp_path, pair):
    pair[1].write_bytes(b"not an image")
    write_teaching_page(tmp_path, records(), {each.key: pair for each in records()})
    page = (tmp_path / "teaching" / "index.html").read_text(encoding="utf-8")
    assert "moving.png" in page and "<img" not in page


def test_the_checkerboard_shows_the_overlap_only():
    fixed = blurred_noise((200, 300))
    moving = fixed[:, 150:]
    transform = MatrixTransform(translation_matrix((-150.0, 0.0)))
    picture = draw_pair(fixed, moving, transform)
    assert picture.dtype == np.uint8 and picture.shape == (THUMBNAIL_PX, 168)
    # A right transform leaves no edges: the picture is the cropped fixed image.
    crop = cv2.resize(moving, (168, THUMBNAIL_PX))
    assert np.corrcoef(picture.ravel(), crop.ravel())[0, 1] > 0.95
    wrong = draw_pair(fixed, moving, MatrixTransform(translation_matrix((-120.0, 0.0))))
    assert not np.array_equal(wrong, picture)


def test_both_images_side_by_side_without_a_transform():
    picture = draw_pair(blurred_noise((200, 300)), blurred_noise((300, 200)), None)
    assert picture.shape == (112, 224) and picture[80:, :112].max() == 0
