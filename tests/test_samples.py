"""Samples of the generated layout: found in any naming, split by eye, and their junctions."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
import yaml

from dataset.aligned_pairs import AlignedPairs
from dataset.junctions import find_junctions, gaussian_heatmap
from dataset.samples import MODE_FILES, discover_samples
from dataset.split import read_manifest, split_by_eye, write_manifest
from dataset.views import ViewGeometry, ViewKey
from utils.errors import InputError

ALL_MODES = list(MODE_FILES)
WHOLE = ViewGeometry(
    img_size=None, long_side=192, rotation_deg=30, scale=(0.85, 1.18), translation=0.1, mirror=False
)


@pytest.fixture(scope="module")
def samples(generated_root):
    return discover_samples(generated_root, ["cffa"])[0]


# --- finding samples ------------------------------------------------------------------------------


def test_all_modes_load_at_once_under_unique_keys(generated_root):
    samples, lacking = discover_samples(generated_root, ALL_MODES)
    assert (
        len(samples) == 4 * 12 and len({sample.key for sample in samples}) == 48 and lacking == []
    )
    assert {sample.eye for sample in samples} == {str(eye) for eye in range(1, 7)}
    pairs = AlignedPairs(samples, WHOLE)
    for index, mode in ((0, "cffa"), (12, "cfoct"), (24, "octfa"), (36, "cfocta")):
        view = pairs[ViewKey(0, index)]
        assert view["mode"] == mode and view["key"].startswith(f"{mode}_")
        assert view["fixed_image"].shape == view["moving_mask"].shape == (1, 192, 192)
        assert view["fixed_mask"].sum() > 0 and view["anchor_valid"].sum() > 50
    octfa = samples[24]
    assert octfa.fixed.name == "1_A_oct_gen.png" and octfa.moving.name == "1_A_fa_gen.png"
    assert samples[36].mask.name == "1_A_seg_clip.png"


def test_the_users_other_file_names_are_found_and_the_first_counts(generated_root, tmp_path):
    source = generated_root / "1_A"
    for name in ("7_A", "10_A", "9_N"):
        (tmp_path / name).mkdir()
        for role, old in (("cf", "cf"), ("fa", "fa_gen"), ("seg", "seg")):
            shutil.copy(source / f"1_A_{old}.png", tmp_path / name / f"{name}_{role}.png")
    shutil.copy(source / "1_A_cf.png", tmp_path / "7_A" / "7_A_cf_512.png")
    shutil.copy(source / "1_A_fa_gen.png", tmp_path / "7_A" / "7_A_fa_gen.png")
    (tmp_path / "notes.txt").write_text("not a sample", encoding="utf-8")
    (tmp_path / "11_A").mkdir()
    samples, lacking = discover_samples(tmp_path, ["cffa"])
    assert [sample.key for sample in samples] == ["cffa_7_A", "cffa_9_N", "cffa_10_A"], (
        "numbers in their order"
    )
    assert samples[0].fixed.name == "7_A_cf_512.png" and samples[0].moving.name == "7_A_fa_gen.png"
    assert samples[1].fixed.name == "9_N_cf.png" and samples[1].moving.name == "9_N_fa.png"
    assert len(lacking) == 1 and "11_A_cf_512.png or 11_A_cf.png" in lacking[0]
    with pytest.raises(InputError, match="cfoct"):
        discover_samples(tmp_path, ["cffa", "cfoct"])
    with pytest.raises(InputError, match="unknown"):
        discover_samples(tmp_path, ["cfct"])


# --- split and manifest ---------------------------------------------------------------------------


def test_split_keeps_eyes_together_and_is_repeatable(samples):
    eyes = [sample.eye for sample in samples]
    split = split_by_eye(eyes, (0.2, 0.2), seed=1)
    parts = [set(split[name]) for name in ("train", "val", "test")]
    assert set.union(*parts) == set(eyes) and sum(map(len, parts)) == 6, "disjoint and complete"
    assert all(parts) and split == split_by_eye(eyes[::-1], (0.2, 0.2), seed=1)
    assert any(split != split_by_eye(eyes, (0.2, 0.2), seed) for seed in range(2, 6))
    sizes = split_by_eye([str(i) for i in range(100)], (0.12, 0.2), 0)
    assert [len(sizes[name]) for name in ("train", "val", "test")] == [68, 12, 20]


def test_impossible_splits_are_refused():
    with pytest.raises(InputError, match="eyes"):
        split_by_eye(["1", "1", "2"], (0.1, 0.1), 0)
    with pytest.raises(InputError, match="val_test_share"):
        split_by_eye(["1", "2", "3"], (0.5, 0.5), 0)


def test_manifest_returns_what_was_written(tmp_path):
    split = {"train": ["1", "007"], "val": ["12"], "test": ["3e5"]}
    write_manifest(tmp_path / "split.yaml", "data/generated", 3, split)
    assert read_manifest(tmp_path / "split.yaml") == split
    assert yaml.safe_load((tmp_path / "split.yaml").read_text(encoding="utf-8"))["seed"] == 3
    (tmp_path / "other.yaml").write_text("train: [1]\n", encoding="utf-8")
    for name in ("other.yaml", "nowhere.yaml"):
        with pytest.raises(InputError, match=name):
            read_manifest(tmp_path / name)


# --- junctions ------------------------------------------------------------------------------------


def drawn(*lines: tuple[tuple[int, int], tuple[int, int]], width: int = 3) -> np.ndarray:
    mask = np.zeros((80, 120), np.uint8)
    for start, end in lines:
        cv2.line(mask, start, end, 1, width)
    return mask > 0


@pytest.mark.parametrize("width", [2, 3, 5])
def test_a_fork_and_a_crossing_are_one_junction_each(width):
    fork = find_junctions(
        drawn(((10, 40), (50, 40)), ((50, 40), (90, 15)), ((50, 40), (90, 65)), width=width)
    )
    assert len(fork) == 1 and np.abs(fork[0] - [50, 40]).max() < 5
    crossing = find_junctions(drawn(((30, 10), (90, 70)), ((30, 70), (90, 10)), width=width))
    assert len(crossing) == 1 and np.abs(crossing[0] - [60, 40]).max() < 2.5


def test_lines_and_empty_masks_have_no_junction():
    assert find_junctions(drawn(((5, 20), (110, 60)))).shape == (0, 2)
    assert find_junctions(np.zeros((40, 40), bool)).shape == (0, 2)
    arc = np.zeros((80, 120), np.uint8)
    cv2.ellipse(arc, (60, 70), (45, 50), 0, 180, 360, 1, 4)
    assert len(find_junctions(arc > 0)) == 0


def test_heatmap_has_a_spot_of_height_one_on_each_point():
    points = np.array([[20.0, 10.0], [70.0, 50.0], [119.0, 0.0], [400.0, 9.0]])
    heatmap = gaussian_heatmap(points, (60, 120), 2.0)
    assert heatmap.shape == (60, 120) and heatmap[10, 20] == heatmap[50, 70] == heatmap[0, 119] == 1
    assert (
        heatmap[10, 22] == pytest.approx(np.exp(-0.5), abs=1e-3)
        and heatmap.max() == 1
        and heatmap[30, 100] == 0
    )


def test_folders_are_listed_once_in_the_order_of_their_numbers(generated_root, tmp_path):
    for name in ("10_A", "9_B", "x_1", "9_A"):
        (tmp_path / name).mkdir()
        for old in (generated_root / "1_A").iterdir():
            (tmp_path / name / old.name.replace("1_A", name, 1)).symlink_to(old)
    (tmp_path / "8_A").mkdir()
    (tmp_path / "notes_of_mine.txt").touch()
    samples, lacking = discover_samples(tmp_path, ["cfoct", "cffa"])
    names = ["9_A", "9_B", "10_A", "x_1"]
    assert [s.key for s in samples] == [f"{m}_{n}" for m in ("cfoct", "cffa") for n in names]
    assert len(lacking) == 2 and all(str(tmp_path / "8_A") in line for line in lacking)
    sizes = [path.stat().st_size for path in (samples[0].fixed, samples[0].moving, samples[0].mask)]
    assert samples[0].n_bytes == sum(sizes)
