"""The working frame of an image: its field of view, cropped and resized; copies of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import (
    Size,
    compose,
    fit_within,
    resize_matrix,
    size_of_image,
    translation_matrix,
)
from geometry.points import warp_points
from utils.image_files import resize_image

MIN_WORKING_SIDE_PX = 32  # least side of a working image, pixels; chosen by hand


@dataclass(frozen=True)
class WorkingFrame:
    """Where a working image lies in its original image.

    Attributes:
        H_image_to_working: (3, 3), original pixels to working pixels, (x, y).
        size: (height, width) of the working image.
    """

    H_image_to_working: np.ndarray
    size: Size


class WorkingImage(NamedTuple):
    """An image in its working frame.

    Attributes:
        image: (h, w) float32 in [0, 1].
        field_of_view: (h, w) bool.
        frame: where it lies in the original image.
    """

    image: np.ndarray
    field_of_view: np.ndarray
    frame: WorkingFrame

    def to_original(self, points: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of the original image, (x, y), from working pixels (N, 2)."""
        return warp_points(points, np.linalg.inv(self.frame.H_image_to_working))

    def turned(self, quarter_turns: int) -> WorkingImage:
        """A copy rotated counterclockwise by quarter turns; exact, without interpolation."""
        H_here_to_turned, (height, width) = np.eye(3), self.frame.size
        for _ in range(quarter_turns % 4):
            H_here_to_turned = compose(
                H_here_to_turned, np.array([[0.0, 1, 0], [-1, 0, width - 1], [0, 0, 1]])
            )
            height, width = width, height
        image, seen = (
            np.ascontiguousarray(np.rot90(raster, quarter_turns))
            for raster in (self.image, self.field_of_view)
        )
        return WorkingImage(
            image,
            seen,
            WorkingFrame(compose(self.frame.H_image_to_working, H_here_to_turned), (height, width)),
        )

    def resized(self, factor: float) -> WorkingImage:
        """A copy scaled by a factor; the image itself for 1."""
        if factor == 1.0:
            return self
        height, width = (max(MIN_WORKING_SIDE_PX, round(side * factor)) for side in self.frame.size)
        size = height, width
        seen = resize_image(self.field_of_view.astype(np.float32), size) > 0.5
        frame = WorkingFrame(
            compose(self.frame.H_image_to_working, resize_matrix(self.frame.size, size)), size
        )
        return WorkingImage(resize_image(self.image, size), seen, frame)

    def mirrored(self) -> WorkingImage:
        """A copy with left and right exchanged."""
        flip = np.array([[-1.0, 0, self.frame.size[1] - 1], [0, 1, 0], [0, 0, 1]])
        image, seen = (
            np.ascontiguousarray(raster[:, ::-1]) for raster in (self.image, self.field_of_view)
        )
        return WorkingImage(
            image, seen, WorkingFrame(compose(self.frame.H_image_to_working, flip), self.frame.size)
        )


def field_diameter(field_of_view: np.ndarray) -> float:
    """Diameter in pixels of the circle with the area of a field of view (H, W) bool."""
    return 2.0 * math.sqrt(field_of_view.sum() / math.pi)


def to_working_frame(image: np.ndarray, working_px: int) -> WorkingImage:
    """Crop an image to its field of view and resize it to the working size.

    The scale depends on the field of view, not on the canvas: a retina rotated on a larger canvas
    or with a wider black border gets the same scale.

    Args:
        image: (H, W) float in [0, 1].
        working_px: diameter of the field in the working image, pixels (:func:`field_diameter`).
    """
    own_size = size_of_image(image)
    seen = estimate_field_of_view(resize_image(image, fit_within(own_size, working_px)))
    H_image_to_small = resize_matrix(own_size, size_of_image(seen))
    factor = working_px / field_diameter(seen) * H_image_to_small[0, 0]
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    corners = np.array([[columns[0] - 0.5, rows[0] - 0.5], [columns[-1] + 0.5, rows[-1] + 0.5]])
    (left, top), (right, bottom) = warp_points(corners, np.linalg.inv(H_image_to_small)) + 0.5
    left, top = max(int(left), 0), max(int(top), 0)
    cropped = image[top : math.ceil(bottom), left : math.ceil(right)]
    cropped_size = size_of_image(cropped)
    size = (
        max(MIN_WORKING_SIDE_PX, round(cropped_size[0] * factor)),
        max(MIN_WORKING_SIDE_PX, round(cropped_size[1] * factor)),
    )
    working = resize_image(cropped, size)
    H_image_to_working = compose(
        translation_matrix((-left, -top)), resize_matrix(cropped_size, size)
    )
    return WorkingImage(
        working, estimate_field_of_view(working), WorkingFrame(H_image_to_working, size)
    )
