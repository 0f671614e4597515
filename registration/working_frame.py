"""The frame in which images are matched: the field of view, cut out, at the working size; turned copies of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import Size, compose, fit_within, resize_matrix, translation_matrix
from geometry.points import warp_points
from utils.image_files import resize_image

MIN_WORKING_SIDE_PX = 32


@dataclass(frozen=True)
class WorkingFrame:
    """The frame in which an image is matched: its field of view, cut out and brought to the working size.

    Attributes:
        H_image_to_working: (3, 3), original pixels to working pixels.
        size: (height, width) of the working image.
    """

    H_image_to_working: np.ndarray
    size: Size


class WorkingImage(NamedTuple):
    """An image in its working frame: (h, w) float32 in [0, 1], its field of view (h, w) bool, and the frame."""

    image: np.ndarray
    field_of_view: np.ndarray
    frame: WorkingFrame

    def turned(self, quarter_turns: int) -> WorkingImage:
        """The same turned by quarters of a circle against the clock: exact, no pixel is interpolated."""
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
        """The same at another size."""
        if factor == 1.0:
            return self
        size = tuple(max(MIN_WORKING_SIDE_PX, round(side * factor)) for side in self.frame.size)
        seen = resize_image(self.field_of_view.astype(np.float32), size) > 0.5
        frame = WorkingFrame(
            compose(self.frame.H_image_to_working, resize_matrix(self.frame.size, size)), size
        )
        return WorkingImage(resize_image(self.image, size), seen, frame)

    def mirrored(self) -> WorkingImage:
        """The same with left and right exchanged."""
        flip = np.array([[-1.0, 0, self.frame.size[1] - 1], [0, 1, 0], [0, 0, 1]])
        image, seen = (
            np.ascontiguousarray(raster[:, ::-1]) for raster in (self.image, self.field_of_view)
        )
        return WorkingImage(
            image, seen, WorkingFrame(compose(self.frame.H_image_to_working, flip), self.frame.size)
        )


def field_diameter(field_of_view: np.ndarray) -> float:
    """Size of a field of view (H, W) bool in pixels: the diameter of the circle of the same area."""
    return 2.0 * math.sqrt(field_of_view.sum() / math.pi)


def to_working_frame(image: np.ndarray, working_px: int) -> WorkingImage:
    """Cut the field of view out of an image and bring it to the working size.

    By what the image shows and not by its frame: a retina turned on a larger canvas, or surrounded by more black, must
    come out at the same size, or every rotation would be a change of scale too.

    Args:
        image: (H, W) float in [0, 1].
        working_px: the field's diameter in the working image (see :func:`field_diameter`).

    """
    seen = estimate_field_of_view(resize_image(image, fit_within(image.shape, working_px)))
    H_image_to_small = resize_matrix(image.shape, seen.shape)
    factor = working_px / field_diameter(seen) * H_image_to_small[0, 0]
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    corners = np.array([[columns[0] - 0.5, rows[0] - 0.5], [columns[-1] + 0.5, rows[-1] + 0.5]])
    (left, top), (right, bottom) = warp_points(corners, np.linalg.inv(H_image_to_small)) + 0.5
    left, top = max(int(left), 0), max(int(top), 0)
    cut = image[top : math.ceil(bottom), left : math.ceil(right)]
    size = tuple(max(MIN_WORKING_SIDE_PX, round(side * factor)) for side in cut.shape)
    working = resize_image(cut, size)
    H_image_to_working = compose(translation_matrix((-left, -top)), resize_matrix(cut.shape, size))
    return WorkingImage(
        working, estimate_field_of_view(working), WorkingFrame(H_image_to_working, size)
    )
