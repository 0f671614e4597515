"""Inputs of the terms of the joint objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from geometry.point_sets import PointSet
from loss.common import Term
from loss.detections import DescriptorSampler, Detections, FeatureMaps
from loss.keypoint_places import AdmittedPlaces, Memory
from loss.tolerance import Tolerances
from loss.value_map import PKESettings
from utils.errors import InputError


@dataclass(frozen=True)
class AnchorShares:
    """Kinds of points at which the descriptors are trained, as shares of all anchors.

    Attributes:
        junctions: label places: vessel junctions and admitted places of the keypoint expansion;
            for samples without junction labels, admitted places and detections of the moving image.
        detections: detections of the fixed image.

    The other anchors, also where a view has too few points of a kind, are random vessel points.

    Raises:
        InputError: shares that are negative or above 1 together.
    """

    junctions: float = 0.25
    detections: float = 0.25

    def __post_init__(self) -> None:
        if min(self.junctions, self.detections) < 0 or self.junctions + self.detections > 1:
            raise InputError(
                f"loss.anchors: shares of {self.junctions:g} and {self.detections:g} must not be "
                "negative, and at most 1 together; the rest are vessel points."
            )


@dataclass(frozen=True)
class TermSettings:
    """Settings of the single terms.

    Attributes:
        descriptor: "infonce" or "triplet".
        temperature: of InfoNCE.
        margin: of the triplet loss.
        ignore_px: points closer than this are not negatives, fixed pixels; 0 excludes only the
            point itself, as published for the triplet loss.
        anchors: at which points the descriptors are trained.
        junction_sigma_px: standard deviation of the spots in the label heatmaps, pixels.
        partner_probability: L_geo expects a detection where the other image has one of more than
            this probability, [0, 1].
        pke: of the keypoint expansion.
    """

    descriptor: str = "infonce"
    temperature: float = 0.07
    margin: float = 0.8
    ignore_px: float = 6.0
    anchors: AnchorShares = field(default_factory=AnchorShares)
    junction_sigma_px: float = 2.0
    partner_probability: float = 0.3
    pke: PKESettings = field(default_factory=PKESettings)


@dataclass(frozen=True)
class TermInputs:
    """Everything that a term of the joint objective may be computed from.

    Attributes:
        fixed, moving: features of both images.
        batch: collated views of ``dataset.aligned_pairs.AlignedPairs``; for either role the
            (B, 1, H, W) rasters ``<role>_heatmap`` and ``<role>_fov``, and ``key``,
            ``H_fix_to_mov`` and ``H_fix_to_own`` (B, 3, 3), ``anchors`` (B, N, 2) in fixed pixels
            and ``anchor_valid`` (B, N); ``form`` of each sample, ``tolerance_px`` (B,) in fixed
            pixels, and ``has_junctions`` (B,), 1 where the heatmaps are labels.
        H_mov_to_fix: (B, 3, 3), inverse of ``H_fix_to_mov``, pixels.
        overlap, moving_overlap: (B, 1, H, W), 1 where both images show retina, in the fixed and in
            the moving frame.
        junctions: vessel junctions of the fixed image inside the overlap, fixed pixels.
        fixed_detections, moving_detections: of both detector maps.
        memory: places that the value map remembers.
        places: admitted places of the keypoint expansion; those with a detection of the image
            within the tolerance are at that detection.
        near_admitted: for either role (B, 1, H, W) bool, the pixels near its admitted places.
        tolerances: within which the transform of each sample is known.
        settings: of the terms.
        sample_descriptors: interpolates a descriptor map at pixel positions.
    """

    fixed: FeatureMaps
    moving: FeatureMaps
    batch: Mapping[str, Any]
    H_mov_to_fix: torch.Tensor
    overlap: torch.Tensor
    moving_overlap: torch.Tensor
    junctions: PointSet
    fixed_detections: Detections
    moving_detections: Detections
    memory: Memory
    places: AdmittedPlaces
    near_admitted: Mapping[str, torch.Tensor]
    tolerances: Tolerances
    settings: TermSettings
    sample_descriptors: DescriptorSampler


TermFunction = Callable[[TermInputs], Term]
