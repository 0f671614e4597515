"""Ridges of real samples: on vessels that both images show, whatever their polarity."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from dataset.ridge_labels import find_ridges
from geometry.field_of_view import estimate_field_of_view
from synthesis.generated_set import write_generated_set
from utils.image_files import read_gray, read_mask


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    """Photograph, angiogram, vessel mask and field of view of one generated eye of 320 px."""
    root = tmp_path_factory.mktemp("ridges")
    write_generated_set(root, 3, seed=4, size=320, progress=False)
    folder = root / "1_A"
    fixed, moving = (read_gray(folder / f"1_A_{name}.png") for name in ("cf", "fa_gen"))
    overlap = (estimate_field_of_view(fixed) > 0.5) & (estimate_field_of_view(moving) > 0.5)
    return fixed, moving, read_mask(folder / "1_A_seg.png"), overlap


def test_ridges_lie_on_vessels(eye):
    fixed, moving, mask, overlap = eye
    ridges = find_ridges(fixed, moving, overlap)
    assert 0.01 < ridges[overlap].mean() <= 0.08
    near = binary_dilation(mask, iterations=2)
    by_chance = near[overlap].mean()
    assert near[ridges].mean() > max(0.7, 2 * by_chance), "precision"
    assert not (ridges & ~overlap).any()


def test_polarity_does_not_matter(eye):
    fixed, moving, _, overlap = eye
    ridges, inverted = (find_ridges(fixed, image, overlap) for image in (moving, 1.0 - moving))
    assert (ridges & inverted).sum() > 0.95 * (ridges | inverted).sum()


def test_what_one_image_lacks_is_no_ridge(eye):
    fixed, moving, mask, overlap = eye
    blank = moving.copy()
    half = blank.shape[1] // 2
    noise = np.random.default_rng(0).normal(0.0, 0.02, blank[:, :half].shape)
    blank[:, :half] = 0.5 + noise
    with_both, with_half = (find_ridges(fixed, image, overlap) for image in (moving, blank))
    near = binary_dilation(mask, iterations=2)
    left = np.s_[:, : half - 16]
    assert (with_half & near)[left].sum() < 0.7 * (with_both & near)[left].sum()


def test_no_overlap_has_no_ridges(eye):
    fixed, moving, _, overlap = eye
    assert not find_ridges(fixed, moving, np.zeros_like(overlap)).any()
    narrow = np.zeros_like(overlap)
    narrow[100:110, 100:200] = True
    assert not find_ridges(fixed, moving, narrow).any(), "all of it is near its border"
