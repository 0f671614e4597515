"""Detections of both images of a batch, extracted once for all terms that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from geometry.points import warp_points
from loss.keypoint_places import in_mask

# (detector map, allowed), both (B, 1, H, W) -> per image points (N, 2) in pixels and scores (N,).
KeypointExtractor = Callable[[torch.Tensor, torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]


class Detections(NamedTuple):
    """Detections of one image of each pair of a batch; without graph.

    Attributes:
        points: per sample (N, 2), pixels (x, y), by decreasing probability.
        probabilities: per sample (N,) in [0, 1].
    """

    points: list[torch.Tensor]
    probabilities: list[torch.Tensor]

    def above(self, probability: float) -> list[torch.Tensor]:
        """Per sample the points (N, 2) of more than a probability in [0, 1]."""
        return [
            points[strength > probability]
            for points, strength in zip(self.points, self.probabilities, strict=True)
        ]


def find_detections(
    extract: KeypointExtractor, detector: torch.Tensor, field_of_view: torch.Tensor
) -> Detections:
    """Detections inside the field of view.

    Args:
        extract: finds the local maxima of a map.
        detector: (B, 1, H, W) probabilities.
        field_of_view: (B, 1, H, W), 0 or 1.
    """
    found = extract(detector, field_of_view)
    return Detections([points for points, _ in found], [strength for _, strength in found])


def warped_into(
    points: list[torch.Tensor], H: torch.Tensor, visible: torch.Tensor
) -> list[torch.Tensor]:
    """Points of one image in the frame of the other, those that land on visible pixels.

    Args:
        points: per sample (N, 2), pixels.
        H: (B, 3, 3), from the pixels of the points to those of the result.
        visible: (B, 1, H, W), 0 or 1, in the frame of the result.

    Returns:
        Per sample (M, 2), pixels.
    """
    warped = [warp_points(each, matrix) for each, matrix in zip(points, H, strict=True)]
    return [each[in_mask(each, mask)] for each, mask in zip(warped, visible, strict=True)]
