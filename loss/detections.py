"""Detections of both images of a batch, extracted once for all terms that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from geometry.point_sets import PointSet

# (descriptor map (B, D, h, w), points (B, N, 2) in pixels) -> unit descriptors (B, N, D).
DescriptorSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# (detector map, allowed), both (B, 1, H, W) -> keypoints of each image, pixels (x, y), by
# decreasing probability, and their probabilities (B, N) in [0, 1].
KeypointExtractor = Callable[[torch.Tensor, torch.Tensor], tuple[PointSet, torch.Tensor]]


class FeatureMaps(Protocol):
    """Output of a detector and descriptor network for a batch of images."""

    @property
    def detector(self) -> torch.Tensor:
        """(B, 1, H, W) in [0, 1], probability of a keypoint at every pixel."""

    @property
    def descriptors(self) -> torch.Tensor:
        """(B, D, h, w), unit length along D."""


class Detections(NamedTuple):
    """Detections of one image of each pair of a batch; without graph.

    Attributes:
        points: pixels (x, y), by decreasing probability.
        probabilities: (B, N) in [0, 1]; any value at padding.
        in_other: the same detections in pixels of the other image, inside of it or not.
        in_overlap: those that lie on the overlap, pixels of this image.
        descriptors: (B, N, D) float32, unit descriptors of this image there.
    """

    points: PointSet
    probabilities: torch.Tensor
    in_other: PointSet
    in_overlap: PointSet
    descriptors: torch.Tensor


@torch.no_grad()
def find_detections(
    extract: KeypointExtractor,
    sample_descriptors: DescriptorSampler,
    features: FeatureMaps,
    field_of_view: torch.Tensor,
    overlap: torch.Tensor,
    H_to_other: torch.Tensor,
) -> Detections:
    """Detections inside the field of view.

    Args:
        extract: finds the local maxima of a map.
        sample_descriptors: interpolates a descriptor map.
        features: of the images.
        field_of_view: (B, 1, H, W), 0 or 1.
        overlap: (B, 1, H, W), 1 where both images show retina.
        H_to_other: (B, 3, 3), pixels of this image to those of the other.
    """
    points, probabilities = extract(features.detector, field_of_view)
    return Detections(
        points,
        probabilities,
        points.warped(H_to_other),
        points.on(overlap),
        sample_descriptors(features.descriptors, points.points).float(),
    )
