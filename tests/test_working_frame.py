"""The working frame: position and scale of the field of view."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import turn_about_centre
from geometry.points import warp_points
from registration.working_frame import to_working_frame
from utils.image_files import read_gray


@pytest.fixture
def cf(generated_root) -> Path:
    return generated_root / "1_A" / "1_A_cf.png"


def test_working_frame_maps_pixels_exactly():
    image = np.zeros((300, 420), np.float32)
    cv2.circle(image, (230, 160), 110, 0.4, -1)
    spots = np.array([[200.0, 130.0], [270.0, 170.0], [225.0, 215.0]])
    ys, xs = np.indices(image.shape)
    for x, y in spots:
        image += 0.6 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / 18).astype(np.float32)
    working, seen, frame = to_working_frame(image, 192)
    assert working.shape == seen.shape == frame.size
    ys, xs = np.indices(working.shape)
    for x, y in warp_points(spots, frame.H_image_to_working):
        weight = np.clip(working - 0.42, 0, None) * (np.maximum(abs(xs - x), abs(ys - y)) < 12)
        assert (
            abs((xs * weight).sum() / weight.sum() - x) < 0.25
            and abs((ys * weight).sum() / weight.sum() - y) < 0.25
        )


@pytest.mark.parametrize("angle", [30, 45, 90, 180])
def test_working_scale_does_not_depend_on_the_canvas(cf, angle):
    """Rotated on a larger canvas or with a wider black border, a retina gets the same scale."""
    image = np.where(estimate_field_of_view(read_gray(cf)), read_gray(cf), 0)
    H, canvas = turn_about_centre(image.shape, angle)
    turned = cv2.warpAffine(image, H[:2], canvas[::-1], flags=cv2.INTER_LINEAR)
    scales = [
        math.sqrt(np.linalg.det(to_working_frame(picture, 192)[2].H_image_to_working[:2, :2]))
        for picture in (image, turned, np.pad(image, 60))
    ]
    assert max(scales) < 1.05 * min(scales)
