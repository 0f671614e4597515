"""Photometric randomisation: changes grey values and field of view, never the geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dataset.aligned_pairs import AlignedPairs
from dataset.photometric import (
    PhotometricRanges,
    _draw_shade,
    apply_look,
    draw_look,
    randomise,
    run_of,
)
from dataset.samples import discover_samples
from dataset.views import ViewGeometry, ViewKey

TRAINING = ViewGeometry(img_size=128, long_side=192, rotation_deg=180)
EPOCH_KEYS = [ViewKey(1, index) for index in range(8)]


@pytest.fixture(scope="module")
def samples(generated_root):
    return discover_samples(generated_root, ["cffa"])[0]


def test_photometric_changes_the_look_and_not_the_geometry(samples):
    plain, looks = (
        AlignedPairs(samples, TRAINING, ranges) for ranges in (None, PhotometricRanges(p_apply=1.0))
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
    """An image paired with itself under the identity gives two different images."""
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
    view = AlignedPairs(same, still)[ViewKey(0, 0)]
    assert (view["fixed_image"] - view["moving_image"]).abs().max() < 1e-3
    view = AlignedPairs(same, still, PhotometricRanges(p_apply=1.0))[ViewKey(0, 0)]
    assert (view["fixed_image"] - view["moving_image"]).abs().mean() > 0.01
    plain, sometimes = (
        AlignedPairs(same, still),
        AlignedPairs(same, still, PhotometricRanges(p_apply=0.5)),
    )
    keys = [ViewKey(0, index) for index in range(24)]
    changed = [
        [not torch.equal(plain[key][name], sometimes[key][name]) for key in keys]
        for name in ("fixed_image", "moving_image")
    ]
    assert all(4 <= sum(part) <= 20 for part in changed) and changed[0] != changed[1]


def test_rounding_beyond_the_range_of_an_image_makes_no_nan():
    image = np.full((40, 50), 0.5, np.float32)
    image[:10], image[10:20] = 1.0 + 2e-7, -2e-7
    seen = np.ones(image.shape, bool)
    ranges = PhotometricRanges(p_apply=1.0, p_invert=0.5, p_patches=0.0, p_new_field=0.0)
    for seed in range(20):
        result, _ = randomise(image, seen, ranges, np.random.default_rng(seed))
        assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1


def test_noise_has_the_drawn_strength_and_differs_between_images():
    grey, seen = np.full((200, 220), 0.5, np.float32), np.ones((200, 220), bool)
    ranges = PhotometricRanges(p_apply=1.0, p_patches=0.0, p_new_field=0.0, p_banding=0.0)
    rng, residuals = np.random.default_rng(1), []
    for _ in range(6):
        look = draw_look(grey.shape, ranges, rng)
        look = replace(look, shading=0.0, blur_px=0.0, gain=1.0, gamma=1.0, noise=0.02, speckle=0.1)
        image, _ = apply_look(grey, seen, look)
        residuals.append(image - 0.5)
        assert image.std() == pytest.approx(np.hypot(0.02, 0.5 * 0.1), rel=0.03)
    correlations = np.corrcoef([each.ravel() for each in residuals])
    assert np.abs(correlations - np.eye(6)).max() < 0.03


def test_runs_of_a_table_begin_again_at_its_end():
    table = np.arange(10)
    assert run_of(table, 3, 4).tolist() == [3, 4, 5, 6]
    assert run_of(table, 8, 14).tolist() == [8, 9, *range(10), 0, 1]


def test_uneven_illumination_is_smooth_and_within_its_range():
    rng = np.random.default_rng(0)
    for _ in range(5):
        rows, columns = _draw_shade((60, 90), rng)
        shade = rows @ columns.T
        assert shade.shape == (60, 90) and 0.1 < np.abs(shade).max() < 2
        assert np.abs(np.diff(shade, axis=0)).max() < 0.2
