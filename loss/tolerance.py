"""Tolerance of a sample: the radius within which a match counts as right.

The transform of a real pair is known only to within a residual. Its place in the other image is
then a disc instead of a point. A tolerance of 0 is an exact transform: nothing changes then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

# The disc is searched at the points of a square grid with this many steps from its centre to its
# border: 49 points, 2.5 px apart in a disc of 10 px. Chosen by hand.
DISC_STEPS = 4


class Tolerances(NamedTuple):
    """Radius of each sample of a batch in the pixels of each of its frames; 0 = exact.

    Attributes:
        in_fixed: in fixed pixels of the view.
        in_moving: in moving pixels of the view.
        in_own: in pixels of the sample's own frame.
    """

    in_fixed: list[float]
    in_moving: list[float]
    in_own: list[float]

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> Tolerances:
        """The tolerances of a batch.

        Args:
            batch: collated views; ``tolerance_px`` (B,), ``H_fix_to_mov`` and ``H_fix_to_own``
                (B, 3, 3).
        """
        radius = batch["tolerance_px"]
        return cls(
            radius.tolist(),
            (radius * linear_scale(batch["H_fix_to_mov"])).tolist(),
            (radius * linear_scale(batch["H_fix_to_own"])).tolist(),
        )


def linear_scale(H: torch.Tensor) -> torch.Tensor:
    """Factor by which affine matrices (B, 3, 3) enlarge lengths, as a mean over the directions.

    The matrices of views are affine: the root of the determinant of the linear part holds at every
    place. Shear, which makes an ellipse of the disc, is ignored; that of views is small.
    """
    return torch.linalg.det(H[:, :2, :2] / H[:, 2:, 2:]).abs().sqrt()


def places_within(points: torch.Tensor, radius_px: float) -> torch.Tensor:
    """A grid of places within a radius of each point.

    Args:
        points: (N, 2), pixels.
        radius_px: in the same pixels; 0 gives the points alone.

    Returns:
        (N, K, 2), pixels; the point itself comes first.
    """
    if radius_px <= 0.0:
        return points[:, None]
    steps = torch.arange(-DISC_STEPS, DISC_STEPS + 1, device=points.device)
    grid = torch.cartesian_prod(steps, steps)
    squared = (grid**2).sum(1)
    order = torch.argsort(squared, stable=True)
    disc = grid[order[squared[order] <= DISC_STEPS**2]]
    return points[:, None] + disc.to(points) * (radius_px / DISC_STEPS)


def moved_to_detections(
    places: torch.Tensor, detections: torch.Tensor, radius_px: float
) -> torch.Tensor:
    """Places that have a detection within a radius, at the nearest one; the others as they are.

    Args:
        places: (N, 2), pixels.
        detections: (M, 2), the same pixels.
        radius_px: in the same pixels; 0 moves nothing.

    Returns:
        (N, 2), pixels.
    """
    if radius_px <= 0.0 or len(places) == 0 or len(detections) == 0:
        return places
    gap, nearest = torch.cdist(places, detections).min(1)
    return torch.where((gap <= radius_px)[:, None], detections[nearest], places)
