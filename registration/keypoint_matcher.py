"""Matching with a trained :class:`model.super_retina_multimodal.SuperRetinaMultimodal`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from geometry.field_of_view import erode_field
from geometry.points import warp_points
from model.super_retina_multimodal import SuperRetinaMultimodal
from registration.keypoints import extract_keypoints, match_descriptors, sample_descriptors
from registration.matcher import Matcher, MatchSettings, WorkingMatches
from registration.working_frame import WorkingImage


@dataclass(frozen=True)
class KeypointMatchSettings(MatchSettings):
    """Settings of a matcher with keypoints and descriptors, in addition to those of the base.

    Attributes:
        min_probability: least detector probability of a keypoint, [0, 1].
        nms_radius_px: radius of the non-maximum suppression, working pixels.
        max_keypoints: number of keypoints per image, the most probable ones.
        max_distance_ratio: Lowe's ratio test on the nearest two descriptors; 1 = off.
        proposal_threshold_px: residual below which a match is an inlier of the first proposal, a
            similarity, working pixels.
        guided_radii_px: search radii of guided matching around the position that the current
            transform predicts, working pixels, one round each; none for an empty list. The first,
            wide round accepts or rejects the proposal, the others refine.
        min_significance: least significance (:mod:`registration.significance`) of an accepted
            proposal, standard deviations. The correction for several proposals is not applied
            here, only in the confidence.
    """

    min_probability: float = 0.02
    nms_radius_px: int = 4
    max_keypoints: int = 1024
    max_distance_ratio: float = 1.0
    proposal_threshold_px: float = 5.0
    guided_radii_px: tuple[float, ...] = (15.0, 6.0)
    min_significance: float = 3.0
    # Fitting eyes: the largest multiple of 0.05 that loses no more right pairs than the least
    # threshold with at most 1 % false "ok" (docs/measured.md).
    min_confidence: float = 0.6

    def bare(self) -> Self:
        """See :meth:`registration.matcher.MatchSettings.bare`; no guided rounds either."""
        return replace(super().bare(), guided_radii_px=())


@dataclass(frozen=True)
class KeypointFeatures:
    """Features of one image.

    Attributes:
        keypoints: (N, 2) float64, working pixels (x, y).
        descriptors: (N, D), unit length.
        heatmap: (h, w) float32 in [0, 1], keypoint probability.
        working: the image.
    """

    keypoints: np.ndarray
    descriptors: torch.Tensor
    heatmap: np.ndarray
    working: WorkingImage


class SuperRetinaMatcher(Matcher):
    """Detects, describes and matches keypoints with a trained network.

    Args:
        model: the network. Its results do not depend on training or evaluation mode.
        settings: see :class:`KeypointMatchSettings`.
        device: where the network is.
    """

    name = "superretina"
    settings: KeypointMatchSettings

    def __init__(
        self,
        model: SuperRetinaMultimodal,
        settings: KeypointMatchSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model
        self.settings = settings
        self.device = torch.device(device)

    @torch.inference_mode()
    def describe(self, working: WorkingImage, role: str) -> KeypointFeatures:
        """See :meth:`registration.matcher.Matcher.describe`."""
        settings = self.settings
        height, width = working.image.shape
        multiple = self.model.size_multiple
        padded = np.pad(working.image, ((0, -height % multiple), (0, -width % multiple)))
        allowed = np.zeros(padded.shape, dtype=np.float32)
        allowed[:height, :width] = erode_field(working.field_of_view, settings.field_margin_px)
        tensor = torch.from_numpy(padded)[None, None].to(
            self.device, memory_format=torch.channels_last
        )
        maps = self.model.describe(tensor, role)
        keypoints, _ = extract_keypoints(
            maps.detector,
            settings.min_probability,
            settings.nms_radius_px,
            settings.max_keypoints,
            torch.from_numpy(allowed)[None, None].to(self.device),
        )[0]
        descriptors = sample_descriptors(
            maps.descriptors, keypoints[None], self.model.descriptor_stride
        )[0]
        return KeypointFeatures(
            keypoints=keypoints.cpu().numpy().astype(np.float64),
            descriptors=descriptors,
            heatmap=maps.detector[0, 0, :height, :width].cpu().numpy(),
            working=working,
        )

    def match_described(self, fixed: KeypointFeatures, moving: KeypointFeatures) -> WorkingMatches:
        """Mutual nearest neighbours; see :meth:`registration.matcher.Matcher.match_described`."""
        pairs, similarity = match_descriptors(
            fixed.descriptors, moving.descriptors, self.settings.max_distance_ratio
        )
        rows, columns = pairs.cpu().numpy().T
        return WorkingMatches(
            fixed_points=fixed.keypoints[rows],
            moving_points=moving.keypoints[columns],
            similarity=similarity.cpu().numpy(),
            fixed=fixed.working,
            moving=moving.working,
            fixed_keypoints=fixed.keypoints,
            moving_keypoints=moving.keypoints,
            fixed_heatmap=fixed.heatmap,
            moving_heatmap=moving.heatmap,
            fixed_descriptors=fixed.descriptors,
            moving_descriptors=moving.descriptors,
        )


def match_guided(
    matches: WorkingMatches, H_fix_to_mov: np.ndarray, radius_px: float
) -> WorkingMatches:
    """Match all keypoints again, each within a radius of its position under a transform.

    Convention: ``H_fix_to_mov`` takes fixed to moving *working* pixels, (x, y).

    Args:
        matches: of a matcher with descriptors.
        H_fix_to_mov: (3, 3), working pixels.
        radius_px: of the search, moving working pixels.
    """
    assert matches.fixed_descriptors is not None and matches.moving_descriptors is not None
    mapped = torch.from_numpy(warp_points(matches.fixed_keypoints, H_fix_to_mov))
    near = torch.cdist(mapped, torch.from_numpy(matches.moving_keypoints)) <= radius_px
    pairs, similarity = match_descriptors(
        matches.fixed_descriptors,
        matches.moving_descriptors,
        allowed=near.to(matches.fixed_descriptors.device),
    )
    rows, columns = pairs.cpu().numpy().T
    return replace(
        matches,
        fixed_points=matches.fixed_keypoints[rows],
        moving_points=matches.moving_keypoints[columns],
        similarity=similarity.cpu().numpy(),
    )
