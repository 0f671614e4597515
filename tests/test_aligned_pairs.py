"""Views of generated pairs: known geometry for all rasters, and equal views for equal keys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import run_main
from torch.utils.data import DataLoader

import dataset.aligned_pairs
from dataset.aligned_pairs import AlignedPairs
from dataset.photometric import PhotometricRanges
from dataset.samples import Channel, discover_samples, load_sample
from dataset.stack_cache import StackCache
from dataset.views import ViewGeometry, ViewKey, draw_geometry, overlap_share
from geometry.matrices import compose, image_centre, translation_matrix
from geometry.points import inside, warp_points
from geometry.rasters import valid_overlap, warp_image
from registration.keypoints import extract_keypoints
from utils.image_files import read_gray, write_image

TRAINING = ViewGeometry(img_size=128, long_side=192, rotation_deg=180)
WHOLE = ViewGeometry(
    img_size=None, long_side=192, rotation_deg=30, scale=(0.85, 1.18), translation=0.1, mirror=False
)
EPOCH_KEYS = [ViewKey(1, index) for index in range(8)]


@pytest.fixture(scope="module")
def samples(generated_root):
    return discover_samples(generated_root, ["cffa"])[0]


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


# --- the geometry of a view -----------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [TRAINING, WHOLE], ids=["crops", "whole"])
def test_masks_fields_and_heatmaps_agree_under_the_known_matrix(samples, geometry):
    pairs = AlignedPairs(samples, geometry)
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
        # In the smaller image the peaks of two near junctions may merge.
        assert (distance < 1.0).float().mean() >= 0.85
    assert peaks > 40


def test_aligned_moving_is_the_moving_image_in_the_fixed_frame(samples):
    pairs = AlignedPairs(samples, WHOLE)
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
    view = AlignedPairs(samples, WHOLE)[ViewKey(3, 2)]
    assert np.abs(view["fixed_image"][0].numpy() - read_gray(samples[2].fixed)).max() < 0.01
    assert np.abs(view["aligned_moving"][0].numpy() - read_gray(samples[2].moving)).max() < 0.01
    assert torch.equal(view["H_fix_to_own"], torch.eye(3))


def test_images_that_are_not_square(tmp_path, generated_root):
    """The known matrix also holds for a wide image that is resized when it is read."""
    folder = tmp_path / "1_A"
    for old, new in (("cf", "cf"), ("fa_gen", "fa"), ("seg", "seg")):
        write_image(
            folder / f"1_A_{new}.png", read_gray(generated_root / "1_A" / f"1_A_{old}.png")[30:150]
        )
    samples, _ = discover_samples(tmp_path, ["cffa"])
    assert load_sample(samples[0], 144, 2.0).shape == (6, 90, 144)
    view = AlignedPairs(
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


def test_both_images_are_mirrored_together_or_not_at_all(samples):
    pairs = AlignedPairs(samples, TRAINING)
    own, between = [], []
    for epoch in range(4):
        for index in range(6):
            view = pairs[ViewKey(epoch, index)]
            own.append(float(torch.linalg.det(view["H_fix_to_own"])))
            between.append(float(torch.linalg.det(view["H_fix_to_mov"])))
    assert min(between) > 0
    assert min(own) < 0 < max(own), "some are mirrored, some are not"
    never = AlignedPairs(samples, ViewGeometry(img_size=128, long_side=192, mirror=False))
    assert all(torch.linalg.det(never[key]["H_fix_to_own"]) > 0 for key in EPOCH_KEYS)


def test_h_fix_to_own_maps_to_the_pixels_of_the_file(samples):
    """The mask of the file, warped by ``H_fix_to_own``, is that of a mirrored, zoomed crop."""
    pairs = AlignedPairs(samples, TRAINING)
    for key in EPOCH_KEYS:
        view = pairs[key]
        own_mask = load_sample(samples[key.index], 192, 2.0)[Channel.MASK].float()[None, None] / 255
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
    pairs = AlignedPairs(samples, geometry)
    for key in EPOCH_KEYS:
        view = pairs[key]
        in_fixed_pixels = view["moving_fov"].sum() / torch.linalg.det(view["H_fix_to_mov"])
        assert overlap_of(view).sum() > 0.33 * min(view["fixed_fov"].sum(), in_fixed_pixels)


def test_enlarged_views_overlap_by_what_they_show(samples):
    """At scale 2 the moving image shows at most a quarter of the fixed one: full overlap."""
    geometry = ViewGeometry(
        img_size=128,
        long_side=192,
        rotation_deg=180,
        scale=(1.9, 2.0),
        translation=0.1,
        min_overlap=0.8,
    )
    stack = load_sample(samples[0], 192, 2.0)
    stack[[Channel.FIXED_FIELD, Channel.MOVING_FIELD]] = 255
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


def test_ranges_grow_over_ramp_epochs(samples):
    geometry = ViewGeometry(img_size=128, long_side=192, rotation_deg=180, ramp_epochs=10)
    assert (
        geometry.difficulty(1) == 0.1 and geometry.difficulty(10) == geometry.difficulty(99) == 1.0
    )
    assert ViewGeometry().difficulty(0) == ViewGeometry().difficulty(1) == 1.0
    pairs = AlignedPairs(samples, geometry)
    turns = {
        epoch: [
            abs(np.degrees(np.arctan2(H[1, 0], H[0, 0])))
            for H in (pairs[ViewKey(epoch, index)]["H_fix_to_mov"].numpy() for index in range(8))
        ]
        for epoch in (1, 10)
    }
    assert max(turns[1]) <= 18 < max(turns[10])


def test_anchors_lie_on_vessels_that_both_images_show(samples):
    pairs = AlignedPairs(samples, TRAINING, n_anchors=100)
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


# --- equal keys, equal views ----------------------------------------------------------------------


def assert_equal_views(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert (
            torch.equal(value, second[name])
            if isinstance(value, torch.Tensor)
            else value == second[name]
        ), name


def test_equal_keys_give_equal_views_in_any_order(samples):
    def make() -> AlignedPairs:
        return AlignedPairs(
            samples, TRAINING, PhotometricRanges(), seed=3, cache=StackCache(memory_mb=0)
        )

    one, other = make(), make()
    for key in reversed(EPOCH_KEYS):
        other[key]
    for key in EPOCH_KEYS[:3]:
        assert_equal_views(one[key], other[key])
        assert not torch.equal(one[key]["fixed_image"], one[replace(key, epoch=2)]["fixed_image"])
        assert not torch.equal(
            one[key]["H_fix_to_mov"], one[ViewKey(1, key.index + len(samples))]["H_fix_to_mov"]
        )
    reseeded = AlignedPairs(samples, TRAINING, PhotometricRanges(), seed=4)
    assert not torch.equal(
        reseeded[EPOCH_KEYS[0]]["fixed_image"], one[EPOCH_KEYS[0]]["fixed_image"]
    )


def test_views_do_not_depend_on_the_number_of_workers(samples):
    pairs = AlignedPairs(samples, TRAINING, PhotometricRanges(), seed=3)
    batches = [EPOCH_KEYS[:3], EPOCH_KEYS[3:6]]
    alone = list(DataLoader(pairs, batch_sampler=batches))
    shared = list(DataLoader(pairs, batch_sampler=batches, num_workers=2))
    for first, second in zip(alone, shared, strict=True):
        assert_equal_views(first, second)


# --- the command line -----------------------------------------------------------------------------


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
    assert run_main(dataset.aligned_pairs, monkeypatch, *arguments) == 0
    assert read_gray(tmp_path / "views.png").shape[0] > 400
