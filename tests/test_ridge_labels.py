"""Ridges of two aligned images: known trees, polarity, misalignment, borders."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dataset.junctions import find_junctions
from dataset.ridge_labels import RIDGE_LABELS, find_ridges
from geometry.field_of_view import erode_field
from synthesis.vessel_drawing import View, draw_vessels
from synthesis.vessel_growth import grow_eye

SIDE = 512


@pytest.fixture(scope="module")
def tree() -> np.ndarray:
    """Coverage (SIDE, SIDE) in [0, 1] of the vessels of at least 2.5 px around a disc."""
    view = View(np.array([0.0, 0.0]), SIDE / 6.0, SIDE, 0.0)
    return draw_vessels(grow_eye(np.random.default_rng(4)).vein, view, widths_px=(2.5, np.inf))


@pytest.fixture(scope="module")
def field() -> np.ndarray:
    """A round field of view (SIDE, SIDE) bool."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    return np.hypot(x, y) < 0.47 * SIDE


def picture(tree: np.ndarray, field: np.ndarray, contrast: float, seed: int) -> np.ndarray:
    """A noisy picture in which vessels differ from an uneven background by a contrast."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(-0.1, 0.1, SIDE)[None]
    image = 0.5 + slope + contrast * tree + rng.normal(0, 0.03, tree.shape)
    return np.where(field, np.clip(image, 0, 1), 0.0).astype(np.float32)


def near(mask: np.ndarray, radius_px: int) -> np.ndarray:
    """Pixels within a distance of a mask (H, W) bool."""
    kernel = np.ones((2 * radius_px + 1,) * 2, np.uint8)
    return cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)


@pytest.mark.parametrize("shift_px", [0, 2])
def test_ridges_are_the_vessels(tree, field, shift_px):
    fixed = picture(tree, field, -0.2, 0)
    moving = picture(np.roll(tree, shift_px, axis=1), field, 0.3, 1)
    found = find_ridges(fixed, moving, field)
    truth = (tree > 0.5) & erode_field(field, RIDGE_LABELS.margin_px)
    assert (found & near(truth, 2)).sum() > 0.9 * found.sum()
    assert (truth & near(found, 2)).sum() > 0.6 * truth.sum()
    assert 0.02 * field.sum() < found.sum() <= RIDGE_LABELS.low_share * field.sum()


def test_junctions_lie_on_the_vessels(tree, field):
    fixed = picture(tree, field, -0.2, 0)
    junctions = find_junctions(find_ridges(fixed, fixed, field)).round().astype(int)
    assert len(junctions) >= 5
    assert near(tree > 0.5, 3)[junctions[:, 1], junctions[:, 0]].mean() > 0.9


def test_opposite_polarity_gives_the_same(tree, field):
    fixed, moving = picture(tree, field, -0.2, 0), picture(tree, field, 0.3, 1)
    found = find_ridges(fixed, moving, field)
    inverted = find_ridges(1.0 - fixed, 1.0 - moving, field)
    assert (found & inverted).sum() > 0.99 * (found | inverted).sum()


def test_what_only_one_image_shows_is_no_ridge(tree, field):
    fixed, other = picture(tree, field, -0.2, 0), picture(tree[:, ::-1], field, 0.3, 1)
    found, truth = find_ridges(fixed, other, field), near(tree > 0.5, 1)
    both = find_ridges(fixed, picture(tree, field, 0.3, 1), field)
    assert (found & truth).sum() < 0.7 * (both & truth).sum()


def test_border_of_the_field_is_left_out(tree, field):
    fixed = picture(tree, field, -0.2, 0)
    found = find_ridges(fixed, fixed, field)
    assert not (found & ~erode_field(field, RIDGE_LABELS.margin_px)).any()


def test_edge_of_a_bright_disc_is_no_ridge(field):
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    disc = cv2.GaussianBlur((np.hypot(x, y) < 30).astype(np.float32), (0, 0), 2.0)
    image = picture(disc, field, 0.4, 0)
    rim = np.abs(np.hypot(x, y) - 30) < 8
    assert (find_ridges(image, image, field) & rim).sum() < 0.1 * rim.sum()


def test_empty_overlap_gives_an_empty_mask(tree, field):
    image = picture(tree, field, -0.2, 0)
    found = find_ridges(image, image, np.zeros_like(field))
    assert found.shape == field.shape and found.dtype == bool and not found.any()


def test_flat_images_give_an_empty_mask(field):
    flat = np.full(field.shape, 0.5, np.float32)
    assert not find_ridges(flat, flat.copy(), field).any()
