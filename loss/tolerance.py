"""Tolerance of a sample: the radius within which a match counts as right.

The transform of a real pair is known only to within a residual. Its place in the other image is
then a disc instead of a point. A tolerance of 0 is an exact transform: nothing changes then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from dataset.view_sources import EXACT_FORMS
from geometry.point_sets import PointSet
from utils.transfer import to_device

# The disc is searched at the points of a square grid with this many steps from its centre to its
# border: 49 points, 2.5 px apart in a disc of 10 px. Chosen by hand.
DISC_STEPS = 4


class Tolerances(NamedTuple):
    """Radius of each sample of a batch in the pixels of each of its frames; 0 = exact.

    Attributes:
        in_fixed: (B,), fixed pixels of the view.
        in_moving: (B,), moving pixels of the view.
        in_own: (B,), pixels of the sample's own frame.
        inexact: numbers of the samples whose form allows a radius above 0. They are known on the
            host, so that exact samples cost nothing and no radius has to be read from the device.
    """

    in_fixed: torch.Tensor
    in_moving: torch.Tensor
    in_own: torch.Tensor
    inexact: tuple[int, ...]

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> Tolerances:
        """The tolerances of a batch.

        Args:
            batch: collated views; ``tolerance_px`` (B,), ``H_fix_to_mov`` and ``H_fix_to_own``
                (B, 3, 3), ``form``.
        """
        radius = batch["tolerance_px"]
        forms = enumerate(batch["form"])
        return cls(
            radius,
            radius * linear_scale(batch["H_fix_to_mov"]),
            radius * linear_scale(batch["H_fix_to_own"]),
            tuple(index for index, form in forms if form not in EXACT_FORMS),
        )


def linear_scale(H: torch.Tensor) -> torch.Tensor:
    """Factor by which affine matrices (B, 3, 3) enlarge lengths, as a mean over the directions.

    The matrices of views are affine: the root of the determinant of the linear part holds at every
    place. Shear, which makes an ellipse of the disc, is ignored; that of views is small.
    """
    linear = H[:, :2, :2] / H[:, 2:, 2:]
    determinant = linear[:, 0, 0] * linear[:, 1, 1] - linear[:, 0, 1] * linear[:, 1, 0]
    return determinant.abs().sqrt()


def unit_disc() -> np.ndarray:
    """The grid of places in a disc of radius 1: (K, 2) float32, its centre first."""
    steps = np.arange(-DISC_STEPS, DISC_STEPS + 1)
    grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(-1, 2)
    squared = (grid**2).sum(1)
    order = np.argsort(squared, kind="stable")
    return grid[order[squared[order] <= DISC_STEPS**2]].astype(np.float32) / DISC_STEPS


def places_within(points: torch.Tensor, radius_px: torch.Tensor) -> torch.Tensor:
    """A grid of places within a radius of each point.

    Args:
        points: (B, N, 2), pixels.
        radius_px: (B,) in the same pixels; 0 gives the point itself at every place of the grid.

    Returns:
        (B, N, K, 2), pixels; the point itself comes first.
    """
    disc = to_device(unit_disc(), points.device).to(points.dtype)
    return points[:, :, None] + disc * radius_px[:, None, None, None]


def moved_to_detections(
    places: PointSet, detections: PointSet, radius_px: torch.Tensor
) -> PointSet:
    """Places that have a detection within a radius, at the nearest one; the others as they are.

    Args:
        places, detections: in the same pixels.
        radius_px: (B,) in the same pixels; 0 moves nothing.
    """
    gap, nearest = places.gaps(detections).min(2)
    there = detections.points.gather(1, nearest[..., None].expand(-1, -1, 2))
    radius = radius_px[:, None]
    moves = (gap <= radius) & (radius > 0.0)
    return PointSet(torch.where(moves[..., None], there, places.points), places.valid)
