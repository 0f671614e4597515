"""Detections of both images of a batch, extracted once for all terms that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from geometry.point_sets import PointSet


class Keypoints(Protocol):
    """Keypoints of each image of a batch, such as :class:`registration.keypoints.Keypoints`."""

    @property
    def points(self) -> PointSet:
        """Pixels (x, y), by decreasing probability."""

    @property
    def probabilities(self) -> torch.Tensor:
        """(B, N) in [0, 1]."""


# (detector map, allowed), both (B, 1, H, W) -> keypoints of each image.
KeypointExtractor = Callable[[torch.Tensor, torch.Tensor], Keypoints]


class Detections(NamedTuple):
    """Detections of one image of each pair of a batch; without graph.

    Attributes:
        points: pixels (x, y), by decreasing probability.
        probabilities: (B, N) in [0, 1]; any value at padding.
    """

    points: PointSet
    probabilities: torch.Tensor

    def above(self, probability: float) -> PointSet:
        """The points of more than a probability in [0, 1]."""
        return self.points.only(self.probabilities > probability)


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
    return Detections(found.points, found.probabilities)
