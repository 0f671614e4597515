"""Generated pairs: everything of a view moves together, and equal keys give equal views."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers import run_main
from torch.utils.data import DataLoader

import dataset.generated_pairs
from dataset.generated_pairs import GeneratedPairs, ViewKey
from dataset.junctions import find_junctions, gaussian_heatmap
from dataset.photometric import PhotometricRanges, randomise
from dataset.samples import MODE_FILES, discover_samples, load_sample
from dataset.split import read_manifest, split_by_eye, write_manifest
from dataset.views import ViewGeometry, draw_geometry, overlap_share
from geometry.matrices import compose, image_centre, translation_matrix
from geometry.points import inside, warp_points
from geometry.rasters import valid_overlap, warp_image
from registration.keypoints import extract_keypoints
from utils.errors import InputError
from utils.image_files import read_gray, write_image

ALL_MODES = list(MODE_FILES)
TRAINING = ViewGeometry(img_size=128, long_side=192, rotation_deg=180)
WHOLE = ViewGeometry(
    img_size=None, long_side=192, rotation_deg=30, scale=(0.85, 1.18), translation=0.1, mirror=False
)
EPOCH_KEYS = [ViewKey(1, index) for index in range(8)]


@pytest.fixture(scope="module")
def samples(generated_root):
    return discover_samples(generated_root, ["cffa"])[0]


def rasters(view: dict) -> dict[str, torch.Tensor]:
    return {name: value for name, value in view.items() if isinstance(value, torch.Tensor)}


def overlap_of(view: dict) -> torch.Tensor:
    return (
        valid_overlap(
            view["H_fix_to_mov"][None], view["fixed_fov"][None], view["moving_fov"][None]
        )[0]
        > 0.5
    )


def into_fixed(raster: torch.Tensor, view: dict) -> torch.Tensor:
    return warp_image(
        raster[None], view["H_fix_to_mov"][None], tuple(view["fixed_image"].shape[-2:])
    )[0]


def iou(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first & second).sum() / (first | second).sum().clamp(min=1))


# --- finding samples --------------------------------------------------------------------------------------------------


def test_all_modes_load_at_once_under_unique_keys(generated_root):
    samples, lacking = discover_samples(generated_root, ALL_MODES)
    assert (
        len(samples) == 4 * 12 and len({sample.key for sample in samples}) == 48 and lacking == []
    )
    assert {sample.eye for sample in samples} == {str(eye) for eye in range(1, 7)}
    pairs = GeneratedPairs(samples, WHOLE)
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


# --- the geometry of a view -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [TRAINING, WHOLE], ids=["crops", "whole"])
def test_masks_fields_and_heatmaps_agree_under_the_known_matrix(samples, geometry):
    pairs = GeneratedPairs(samples, geometry)
    peaks = 0
    for key in EPOCH_KEYS:
        view = pairs[key]
        overlap = overlap_of(view)
        assert overlap.float().mean() > 0.2
        back = into_fixed(view["moving_mask"], view) > 0.5
        assert iou(back & overlap, (view["fixed_mask"] > 0.5) & overlap) > 0.6
        wrong = torch.roll(back, (9, 9), (1, 2))
        assert iou(wrong & overlap, (view["fixed_mask"] > 0.5) & overlap) < 0.35
        heat_back = into_fixed(view["moving_heatmap"], view)
        assert ((heat_back - view["fixed_heatmap"]).abs() * overlap).max() < 0.6
        mapped, found = (
            extract_keypoints(view[f"{role}_heatmap"][None], 0.4, 3, 500)[0][0]
            for role in ("fixed", "moving")
        )
        mapped = warp_points(mapped, view["H_fix_to_mov"])
        seen = inside(mapped, tuple(view["moving_image"].shape[-2:]), 8)
        x, y = mapped[seen].round().long().T
        deep = torch.nn.functional.avg_pool2d(view["moving_fov"][None], 9, 1, 4)[0, 0, y, x] > 0.99
        distance = torch.cdist(mapped[seen][deep], found).amin(1)
        peaks += len(distance)
        # Two junctions may melt into one in the smaller of both images.
        assert (distance < 1.0).float().mean() >= 0.85
    assert peaks > 40


def test_aligned_moving_is_the_moving_image_in_the_fixed_frame(samples):
    pairs = GeneratedPairs(samples, WHOLE)
    for key in EPOCH_KEYS[:4]:
        view = pairs[key]
        inner = torch.nn.functional.avg_pool2d(overlap_of(view).float()[None], 9, 1, 4)[0] > 0.99
        back, truth = (
            torch.nn.functional.avg_pool2d(image[None], 5, 1, 2)[0]  # without the pixel noise
            for image in (into_fixed(view["moving_image"], view), view["aligned_moving"])
        )
        right, shifted = (
            (torch.roll(back, shift, 2) - truth)[inner].abs().mean() for shift in (0, 3)
        )
        assert inner.float().mean() > 0.3 and right < 0.02 and right < 0.3 * shifted


def test_whole_unmirrored_views_show_the_file_itself(samples):
    view = GeneratedPairs(samples, WHOLE)[ViewKey(3, 2)]
    assert np.abs(view["fixed_image"][0].numpy() - read_gray(samples[2].fixed)).max() < 0.01
    assert np.abs(view["aligned_moving"][0].numpy() - read_gray(samples[2].moving)).max() < 0.01
    assert torch.equal(view["H_fix_to_own"], torch.eye(3))


def test_images_that_are_not_square(tmp_path, generated_root):
    """The known matrix holds on a wide image too, brought to another size on the way."""
    folder = tmp_path / "1_A"
    for old, new in (("cf", "cf"), ("fa_gen", "fa"), ("seg", "seg")):
        write_image(
            folder / f"1_A_{new}.png", read_gray(generated_root / "1_A" / f"1_A_{old}.png")[30:150]
        )
    samples, _ = discover_samples(tmp_path, ["cffa"])
    assert load_sample(samples[0], 144, 2.0).shape == (6, 90, 144)
    view = GeneratedPairs(
        samples, ViewGeometry(img_size=None, long_side=144, rotation_deg=20, mirror=False)
    )[ViewKey(0, 0)]
    assert view["moving_image"].shape == (1, 90, 144)
    overlap = overlap_of(view)
    assert (
        iou(
            (into_fixed(view["moving_mask"], view) > 0.5) & overlap,
            (view["fixed_mask"] > 0.5) & overlap,
        )
        > 0.6
    )


def test_only_both_images_together_are_mirrored(samples):
    pairs = GeneratedPairs(samples, TRAINING)
    own, between = [], []
    for epoch in range(4):
        for index in range(6):
            view = pairs[ViewKey(epoch, index)]
            own.append(float(torch.linalg.det(view["H_fix_to_own"])))
            between.append(float(torch.linalg.det(view["H_fix_to_mov"])))
    assert min(between) > 0
    assert min(own) < 0 < max(own), "some are mirrored, some are not"
    never = GeneratedPairs(samples, ViewGeometry(img_size=128, long_side=192, mirror=False))
    assert all(torch.linalg.det(never[key]["H_fix_to_own"]) > 0 for key in EPOCH_KEYS)


def test_the_own_frame_is_where_the_file_shows_it(samples):
    """``H_fix_to_own`` of a mirrored, zoomed crop leads back to the vessels of the file."""
    pairs = GeneratedPairs(samples, TRAINING)
    for key in EPOCH_KEYS:
        view = pairs[key]
        own_mask = load_sample(samples[key.index], 192, 2.0)[2].float()[None, None] / 255
        seen = warp_image(own_mask, view["H_fix_to_own"][None], (128, 128))[0] > 0.5
        field = view["fixed_fov"] > 0.5
        assert iou(seen & field, (view["fixed_mask"] > 0.5) & field) > 0.8


@pytest.mark.parametrize("limit", [0.0, 30.0, 180.0])
def test_ranges_are_honoured(samples, limit):
    stack = load_sample(samples[0], 192, 2.0)
    geometry = ViewGeometry(
        img_size=None,
        long_side=192,
        rotation_deg=limit,
        scale=(0.8, 1.25),
        translation=0.15,
        shear=0.0,
        mirror=False,
    )
    rng, angles, scales, shifts = np.random.default_rng(0), [], [], []
    for _ in range(150):
        _, H, size = draw_geometry(stack, geometry, rng)
        angles.append(np.degrees(np.arctan2(H[1, 0], H[0, 0])))
        scales.append(np.sqrt(np.linalg.det(H[:2, :2])))
        centre = image_centre(size)
        shifts.append((warp_points(centre[None], H)[0] - centre) / 192)
    assert np.abs(angles).max() <= limit + 1e-6 and np.abs(angles).max() >= 0.9 * limit
    assert (
        min(angles) <= -0.9 * limit
        and 0.8 - 1e-6 <= min(scales) < 0.85
        and 1.18 < max(scales) <= 1.25 + 1e-6
    )
    assert 0.1 < np.abs(shifts).max() <= 0.15 + 1e-6


def test_views_overlap(samples):
    geometry = ViewGeometry(
        img_size=128, long_side=192, rotation_deg=180, translation=0.5, min_overlap=0.4
    )
    pairs = GeneratedPairs(samples, geometry)
    for key in EPOCH_KEYS:
        view = pairs[key]
        in_fixed_pixels = view["moving_fov"].sum() / torch.linalg.det(view["H_fix_to_mov"])
        assert overlap_of(view).sum() > 0.33 * min(view["fixed_fov"].sum(), in_fixed_pixels)


def test_enlarged_views_overlap_by_what_they_show(samples):
    """A moving view enlarged twice shows a quarter of the fixed one: that is all it can, and must not be refused."""
    geometry = ViewGeometry(
        img_size=128,
        long_side=192,
        rotation_deg=180,
        scale=(1.9, 2.0),
        translation=0.1,
        min_overlap=0.8,
    )
    stack = load_sample(samples[0], 192, 2.0)
    stack[4:] = 255
    for seed in range(5):
        H_fix_to_own, H_fix_to_mov, size = draw_geometry(
            stack, geometry, np.random.default_rng(seed)
        )
        assert overlap_share(stack, H_fix_to_own, H_fix_to_mov, size) >= 0.8
        assert (
            overlap_share(
                stack,
                H_fix_to_own,
                compose(H_fix_to_mov, translation_matrix((400.0, 0.0))),
                size,
            )
            == 0
        )


def test_views_start_easy_and_grow(samples):
    geometry = ViewGeometry(img_size=128, long_side=192, rotation_deg=180, ramp_epochs=10)
    assert (
        geometry.difficulty(1) == 0.1 and geometry.difficulty(10) == geometry.difficulty(99) == 1.0
    )
    assert ViewGeometry().difficulty(0) == ViewGeometry().difficulty(1) == 1.0
    pairs = GeneratedPairs(samples, geometry)
    turns = {
        epoch: [
            abs(np.degrees(np.arctan2(H[1, 0], H[0, 0])))
            for H in (pairs[ViewKey(epoch, index)]["H_fix_to_mov"].numpy() for index in range(8))
        ]
        for epoch in (1, 10)
    }
    assert max(turns[1]) <= 18 < max(turns[10])


def test_anchors_lie_on_vessels_that_both_images_show(samples):
    pairs = GeneratedPairs(samples, TRAINING, n_anchors=100)
    for key in EPOCH_KEYS:
        view = pairs[key]
        anchors = view["anchors"][view["anchor_valid"]]
        assert view["anchors"].shape == (100, 2) and len(anchors) > 20
        assert (view["anchors"][~view["anchor_valid"]] == 0).all()
        x, y = anchors.round().long().clamp(0, 127).T
        assert view["fixed_mask"][0, y, x].min() > 0.5
        mapped = warp_points(anchors, view["H_fix_to_mov"])
        assert inside(mapped, (128, 128), -1).all()
        x, y = mapped.round().long().clamp(0, 127).T
        near = torch.nn.functional.max_pool2d(
            torch.stack([view["moving_mask"], view["moving_fov"]]), 5, 1, 2
        )[:, 0, y, x]
        assert near[1].min() > 0.5 and near[0].mean() > 0.9


# --- equal keys, equal views ------------------------------------------------------------------------------------------


def assert_equal_views(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert (
            torch.equal(value, second[name])
            if isinstance(value, torch.Tensor)
            else value == second[name]
        ), name


def test_equal_keys_give_equal_views_in_any_order(samples):
    def make() -> GeneratedPairs:
        return GeneratedPairs(samples, TRAINING, PhotometricRanges(), seed=3, cache_mb=0)

    one, other = make(), make()
    for key in reversed(EPOCH_KEYS):
        other[key]
    for key in EPOCH_KEYS[:3]:
        assert_equal_views(one[key], other[key])
        assert not torch.equal(one[key]["fixed_image"], one[key._replace(epoch=2)]["fixed_image"])
        assert not torch.equal(
            one[key]["H_fix_to_mov"], one[ViewKey(1, key.index + len(samples))]["H_fix_to_mov"]
        )
    reseeded = GeneratedPairs(samples, TRAINING, PhotometricRanges(), seed=4)
    assert not torch.equal(
        reseeded[EPOCH_KEYS[0]]["fixed_image"], one[EPOCH_KEYS[0]]["fixed_image"]
    )


def test_views_do_not_depend_on_the_number_of_workers(samples):
    pairs = GeneratedPairs(samples, TRAINING, PhotometricRanges(), seed=3)
    batches = [EPOCH_KEYS[:3], EPOCH_KEYS[3:6]]
    alone = list(DataLoader(pairs, batch_sampler=batches))
    shared = list(DataLoader(pairs, batch_sampler=batches, num_workers=2))
    for first, second in zip(alone, shared, strict=True):
        assert_equal_views(first, second)


# --- photometric randomisation ----------------------------------------------------------------------------------------


def test_photometric_changes_the_look_and_not_the_geometry(samples):
    plain, looks = (
        GeneratedPairs(samples, TRAINING, ranges)
        for ranges in (None, PhotometricRanges(p_apply=1.0))
    )
    for key in EPOCH_KEYS:
        before, after = plain[key], looks[key]
        for name in ("H_fix_to_mov", "H_fix_to_own"):
            assert torch.equal(before[name], after[name])
        for role in ("fixed", "moving"):
            assert (before[f"{role}_image"] - after[f"{role}_image"]).abs().mean() > 1e-3
            assert after[f"{role}_image"].min() >= 0 and after[f"{role}_image"].max() <= 1
            kept = after[f"{role}_fov"] > 0.5
            assert (kept <= (before[f"{role}_fov"] > 0.5)).all(), "the field only shrinks"
            assert torch.equal(before[f"{role}_mask"][kept], after[f"{role}_mask"][kept])
            assert after[f"{role}_mask"][~kept].max() == 0 if (~kept).any() else True


def test_the_two_images_are_randomised_independently(generated_root):
    """A pair of one picture with itself, not warped, comes out as two different pictures."""
    samples, _ = discover_samples(generated_root, ["cffa"])
    same = [
        sample.__class__(
            sample.key, sample.eye, sample.mode, sample.fixed, sample.fixed, sample.mask
        )
        for sample in samples[:1]
    ]
    still = ViewGeometry(
        img_size=None,
        long_side=192,
        rotation_deg=0,
        scale=(1, 1),
        translation=0,
        shear=0,
        mirror=False,
    )
    view = GeneratedPairs(same, still)[ViewKey(0, 0)]
    assert (view["fixed_image"] - view["moving_image"]).abs().max() < 1e-3
    view = GeneratedPairs(same, still, PhotometricRanges(p_apply=1.0))[ViewKey(0, 0)]
    assert (view["fixed_image"] - view["moving_image"]).abs().mean() > 0.01
    plain, sometimes = (
        GeneratedPairs(same, still),
        GeneratedPairs(same, still, PhotometricRanges(p_apply=0.5)),
    )
    keys = [ViewKey(0, index) for index in range(24)]
    changed = [
        [not torch.equal(plain[key][name], sometimes[key][name]) for key in keys]
        for name in ("fixed_image", "moving_image")
    ]
    assert all(4 <= sum(part) <= 20 for part in changed) and changed[0] != changed[1]


# --- split and manifest -----------------------------------------------------------------------------------------------


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


# --- junctions --------------------------------------------------------------------------------------------------------


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


# --- the command line -------------------------------------------------------------------------------------------------


def test_contact_sheet(generated_root, tmp_path, monkeypatch):
    arguments = (
        "--data",
        generated_root,
        "--mode",
        "cffa",
        "cfocta",
        "--show",
        tmp_path / "views.png",
        "--rows",
        2,
    )
    assert run_main(dataset.generated_pairs, monkeypatch, *arguments) == 0
    assert read_gray(tmp_path / "views.png").shape[0] > 400


def test_rounding_beyond_the_range_of_an_image_makes_no_nan():
    image = np.full((40, 50), 0.5, np.float32)
    image[:10], image[10:20] = 1.0 + 2e-7, -2e-7
    seen = np.ones(image.shape, bool)
    ranges = PhotometricRanges(p_apply=1.0, p_invert=0.5, p_patches=0.0, p_new_field=0.0)
    for seed in range(20):
        result, _ = randomise(image, seen, ranges, np.random.default_rng(seed))
        assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1
