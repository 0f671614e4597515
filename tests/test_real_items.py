"""What --real finds, and the samples that are made of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from dataset.aligned_pairs import AlignedPairs
from dataset.photometric import PhotometricRanges
from dataset.real_items import find_real_items
from dataset.samples import Channel, discover_samples
from dataset.teaching_samples import (
    TeachingSample,
    landmark_sample,
    registered_sample,
    self_samples,
)
from dataset.views import ViewGeometry, ViewKey
from geometry.curved_transforms import QuadraticTransform
from geometry.matrices import size_of_image
from geometry.rasters import register_onto_fixed
from geometry.transforms import MatrixTransform
from utils.errors import InputError
from utils.image_files import read_gray, write_image


@pytest.fixture
def marked(numbered_root, tmp_path) -> Path:
    """A writable copy of three landmark pairs of two eyes."""
    return shutil.copytree(numbered_root[0], tmp_path / "marked")


def test_pairs_may_lack_their_landmarks(marked):
    for text in (marked / "1_2").glob("*.txt"):
        text.unlink()
    items = {item.key: item for item in find_real_items(marked)}
    assert set(items) == {"marked_1_1_001", "marked_1_2_002", "marked_2_1_003"}
    assert items["marked_1_1_001"].landmarks is not None
    assert items["marked_1_2_002"].landmarks is None and items["marked_1_2_002"].is_pair
    assert {item.eye for item in items.values()} == {"marked/1", "marked/2"}


def test_single_images_and_tables(marked, tmp_path):
    singles = tmp_path / "singles"
    (singles / "early").mkdir(parents=True)
    image = next(marked.glob("1_1/*_01.png"))
    for target in (singles / "a.png", singles / "early" / "a.png"):
        shutil.copy(image, target)
    assert [item.key for item in find_real_items(singles)] == ["singles_a", "singles_early_a"]
    table = tmp_path / "table.csv"
    table.write_text(
        "fixed,moving,eye,id,fixed_landmarks,moving_landmarks\n"
        "marked/1_1/001_01.png,marked/1_1/001_02.png,left,,,\n"
        "marked/1_1/001_01.png,,left,one image,,\n"
        "marked/2_1/003_01.png,marked/2_1/003_02.png,,,"
        "marked/2_1/003_01.txt,marked/2_1/003_02.txt\n"
    )
    pair, single, with_points = find_real_items(table)
    assert pair.eye == single.eye == "table/left" and pair.is_pair and not single.is_pair
    assert single.key == "table_one_image"
    assert with_points.landmarks is not None
    assert landmark_sample(with_points)[1].residual_px < 0.1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("fixed\na.png\n", "column moving is missing"),
        ("fixed,moving\n", "has no rows"),
        ("fixed,moving\nnone.png,none2.png\n", "none.png: no such file"),
        (
            "fixed,moving,fixed_landmarks\n{a},{b},{t}\n",
            "line 2: give a fixed image",
        ),
        ("fixed,moving\n,{b}\n", "line 2: give a fixed image"),
        ("fixed,moving,id\n{a},{b},x\n{a},{b},x\n", "the name x occurs twice"),
        ("fixed,moving,id\n{a},{b},x\n{a},,y\n", "belongs to the eyes t/x and t/y"),
    ],
)
def test_bad_tables_name_the_row_and_the_remedy(table, words, marked, tmp_path):
    names = {"a": "001_01.png", "b": "001_02.png", "t": "001_01.txt"}
    path = tmp_path / "t.csv"
    path.write_text(table.format(**{key: marked / "1_1" / name for key, name in names.items()}))
    with pytest.raises(InputError, match=words):
        find_real_items(path)


def test_bad_folders(marked, generated_root, tmp_path):
    (marked / "1_1" / "001_02.txt").unlink()
    with pytest.raises(InputError, match=r"001_02.txt: missing, but 001_01.txt is there"):
        find_real_items(marked)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        find_real_items(tmp_path / "empty")
    with pytest.raises(InputError, match="no such folder, and no CSV table"):
        find_real_items(tmp_path / "nothing")
    with pytest.raises(InputError, match="is generated data with vessel masks; give it to --data"):
        find_real_items(generated_root)


def test_all_forms_and_generated_samples_are_in_one_batch(marked, generated_root):
    """Real pairs of unlike sizes, without masks, one with three landmarks, and single images."""
    for text in (marked / "2_1").glob("*.txt"):
        text.write_text("".join(text.read_text().splitlines(keepends=True)[:3]))
    items = find_real_items(marked)
    fits = [landmark_sample(item) for item in items]
    assert fits[2][0].tolerance_file_px > fits[0][0].tolerance_file_px > 0, "three are not exact"
    samples = [sample for sample, _ in fits] + self_samples(items[0])
    samples += discover_samples(generated_root, ["cffa"])[0][:1]
    pairs = AlignedPairs(samples, ViewGeometry(img_size=64, long_side=128), n_anchors=32)
    batch = default_collate([pairs[ViewKey(1, index)] for index in range(len(samples))])
    assert batch["form"] == ["landmarks"] * 3 + ["self"] * 2 + ["generated"]
    assert batch["has_junctions"].tolist() == [0, 0, 0, 0, 0, 1]
    assert (batch["tolerance_px"][:3] > 0).all() and (batch["tolerance_px"][3:] == 0).all()
    assert (batch["fixed_heatmap"][:5] == 0).all() and batch["fixed_heatmap"][5].max() > 0.5
    again = pairs[ViewKey(1, 0)]
    assert torch.equal(again["fixed_image"], batch["fixed_image"][0]), "a function of its key"


def test_the_images_of_a_sample_are_aligned_through_a_curved_transform(generated_root, tmp_path):
    fixed = read_gray(generated_root / "1_A" / "1_A_cf.png")
    size = size_of_image(fixed)
    # Shifted by 6 px, and bent by up to 8 px towards the border.
    half = 0.5 * max(size)
    unit = np.array([[1 / half, 0, -1], [0, 1 / half, -1], [0, 0, 1]])
    transform = QuadraticTransform(
        unit, np.array([[half + 6, half, 0, 8, 0, 0], [half, 0, half, 0, 5, -6]], dtype=float)
    )
    moving = register_onto_fixed(fixed, transform.inverse(), (size[0] + 20, size[1] + 8))
    paths = [tmp_path / "fixed.png", tmp_path / "moving.png"]
    for path, image in zip(paths, (fixed, moving), strict=True):
        write_image(path, image)
    sample = TeachingSample("k", "e", "m", "registered", *paths, transform=transform)
    stack = sample.load(size[0], 2.0).float()
    seen = (stack[Channel.MOVING_FIELD] > 127) & (stack[Channel.FIXED_FIELD] > 127)
    assert seen.float().mean() > 0.4
    error = (stack[Channel.FIXED] - stack[Channel.MOVING]).abs()[seen].mean()
    plain = TeachingSample(
        "k", "e", "m", "registered", *paths, MatrixTransform(np.eye(3), "affine")
    )
    unaligned = plain.load(size[0], 2.0).float()
    wrong = (unaligned[Channel.FIXED] - unaligned[Channel.MOVING]).abs()[seen].mean()
    assert error < 3.0 and error < 0.5 * wrong, "grey levels of 255"


def test_a_pair_without_transform_does_not_teach_and_changed_files_are_refused(marked):
    item = find_real_items(marked)[0]
    with pytest.raises(InputError, match="not registered yet"):
        registered_sample(item).load(128, 2.0)
    sample, _ = landmark_sample(item)
    sample.moving.write_bytes(sample.moving.read_bytes() + b"\0")
    with pytest.raises(InputError, match="changed since the run began"):
        sample.load(128, 2.0)


def test_two_views_of_one_image_differ_in_appearance(marked):
    (sample, _) = self_samples(find_real_items(marked)[0])
    geometry = ViewGeometry(img_size=64, long_side=128, rotation_deg=0, scale=(1, 1), shear=0)
    ranges = PhotometricRanges(p_apply=1.0, p_invert=0.5)
    pairs = AlignedPairs([sample], geometry, None, self_ranges=ranges)
    views = [pairs[ViewKey(1, index)] for index in range(12)]
    signs = []
    for view in views:
        fixed, aligned = view["fixed_image"][0].numpy(), view["moving_image"][0].numpy()
        signs.append(view["fixed_image"].mean() > view["moving_image"].mean())
        assert not np.array_equal(fixed, aligned)
    assert 0 < sum(signs) < 12, "either may be the brighter one"


def test_landmarks_that_cannot_be_used_name_their_file(marked, numbered_root):
    item = find_real_items(marked)[0]
    fixed, moving = item.landmarks.landmark_files
    before = fixed.read_text(), moving.read_text()
    for texts, words in (
        (("1 1\n2 2\n", "1 1\n2 2\n"), "at least"),
        ((before[0], before[1] + "900 5\n"), "001_0[12].txt"),
        (("5 5\n900 900\n9 90\n", "5 5\n9 9\n9 90\n"), "landmarks outside of 001_01.png"),
        (("5 5\n90 5\n5 90\n90 90\n60 9\n", "90 90\n5 90\n7 6\n90 5\n60 99\n"), "must be the same"),
    ):
        fixed.write_text(texts[0])
        moving.write_text(texts[1])
        with pytest.raises(InputError, match=words) as error:
            landmark_sample(find_real_items(marked)[0])
        assert "001_0" in str(error.value)
