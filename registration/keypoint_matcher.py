"""From two images to matches, by a trained :class:`model.super_retina_multimodal.SuperRetinaMultimodal`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from geometry.field_of_view import erode_field
from geometry.points import warp_points
from model.super_retina_multimodal import SuperRetinaMultimodal
from registration.keypoints import extract_keypoints, match_descriptors, sample_descriptors
from registration.matcher import Matcher, MatchSettings, WorkingMatches
from registration.working_frame import WorkingImage


@dataclass(frozen=True)
class KeypointFeatures:
    """Keypoints (N, 2) in *working* pixels, unit descriptors (N, D) torch, detector map (H, W), and the working image."""

    keypoints: np.ndarray
    descriptors: torch.Tensor
    heatmap: np.ndarray
    working: WorkingImage


class SuperRetinaMatcher(Matcher):
    """Detects, describes and matches keypoints with a trained network.

    Args:
        model: the network. It is used in the mode it is in: ours answers alike in training and in evaluation mode.
        settings: see :class:`MatchSettings`.
        device: where the network is.
    """

    name = "superretina"

    def __init__(
        self,
        model: SuperRetinaMultimodal,
        settings: MatchSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model = model
        self.settings = settings
        self.device = torch.device(device)

    @torch.inference_mode()
    def describe(self, working: WorkingImage, role: str) -> KeypointFeatures:
        """Keypoints and descriptors of one image."""
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
            keypoints.cpu().numpy().astype(np.float64),
            descriptors,
            maps.detector[0, 0, :height, :width].cpu().numpy(),
            working,
        )

    def match_described(self, fixed: KeypointFeatures, moving: KeypointFeatures) -> WorkingMatches:
        """Mutual nearest neighbours among the keypoints of both."""
        pairs, similarity = match_descriptors(
            fixed.descriptors, moving.descriptors, self.settings.max_distance_ratio
        )
        rows, columns = pairs.cpu().numpy().T
        return WorkingMatches(
            fixed.keypoints[rows],
            moving.keypoints[columns],
            similarity.cpu().numpy(),
            fixed.working,
            moving.working,
            fixed.keypoints,
            moving.keypoints,
            fixed.heatmap,
            moving.heatmap,
            fixed.descriptors,
            moving.descriptors,
        )


def match_under(
    matches: WorkingMatches, H_fix_to_mov: np.ndarray, radius_px: float
) -> WorkingMatches:
    """Match all keypoints again, each only among those near to where a transform maps it.

    Convention: ``H_fix_to_mov`` and ``radius_px`` are in working pixels.
    """
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
