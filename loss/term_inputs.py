"""Inputs of the terms of the joint objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from loss.common import Term
from loss.keypoint_places import AdmittedPlaces
from loss.value_map import PKESettings

# (descriptor map (B, D, h, w), points (B, N, 2) in pixels) -> unit descriptors (B, N, D).
DescriptorSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class FeatureMaps(Protocol):
    """Output of a detector and descriptor network for a batch of images."""

    @property
    def detector(self) -> torch.Tensor:
        """(B, 1, H, W) in [0, 1], probability of a keypoint at every pixel."""

    @property
    def descriptors(self) -> torch.Tensor:
        """(B, D, h, w), unit length along D."""


@dataclass(frozen=True)
class TermSettings:
    """Settings of the single terms.

    Attributes:
        descriptor: "infonce" or "triplet".
        temperature: of InfoNCE.
        margin: of the triplet loss.
        ignore_px: points closer than this are not negatives, fixed pixels.
        junction_sigma_px: standard deviation of the spots in the label heatmaps, pixels.
        pke: of the keypoint expansion.
    """

    descriptor: str = "infonce"
    temperature: float = 0.07
    margin: float = 0.8
    ignore_px: float = 6.0
    junction_sigma_px: float = 2.0
    pke: PKESettings = field(default_factory=PKESettings)


@dataclass(frozen=True)
class TermInputs:
    """Everything that a term of the joint objective may be computed from.

    Attributes:
        fixed, moving: features of both images.
        batch: collated views of ``dataset.generated_pairs.GeneratedPairs``; for either role the
            (B, 1, H, W) rasters ``<role>_heatmap`` and ``<role>_fov``, and ``key``,
            ``H_fix_to_mov`` and ``H_fix_to_own`` (B, 3, 3), ``anchors`` (B, N, 2) in fixed pixels
            and ``anchor_valid`` (B, N).
        overlap: (B, 1, H, W), 1 where both images show retina, fixed frame.
        places: admitted places of the keypoint expansion.
        settings: of the terms.
        sample_descriptors: interpolates a descriptor map at pixel positions.
    """

    fixed: FeatureMaps
    moving: FeatureMaps
    batch: Mapping[str, Any]
    overlap: torch.Tensor
    places: AdmittedPlaces
    settings: TermSettings
    sample_descriptors: DescriptorSampler


TermFunction = Callable[[TermInputs], Term]
