"""From two images to matches, by a trained :class:`model.loftr_vessel.LoFTRVessel`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from geometry.cells import cell_centres
from geometry.estimation import Plausibility, estimate_transform
from geometry.field_of_view import erode_field
from geometry.points import warp_points
from geometry.rasters import register_onto_fixed
from model.loftr_vessel import COARSE_STRIDE, LoFTRFeatures, LoFTRVessel
from registration.matcher import Matcher, MatchSettings, WorkingMatches
from registration.proposals import MIN_PROPOSAL_INLIERS
from registration.working_frame import WorkingImage


@dataclass(frozen=True)
class LoFTRMatchSettings(MatchSettings):
    """How LoFTR matches; the settings of keypoints that it inherits have no meaning here, those of the working frame
    and of the fit do.

    Attributes:
        min_cell_confidence: least dual-softmax probability of a match.
        max_matches: at most so many, the most confident.
        aligned_round: match once more with the moving image warped by the first fit. Turn, scale and most of the shift
            are gone then, so many more cells match and the fine stage sees what it is best at.
    """

    min_cell_confidence: float = 0.2
    max_matches: int = 2000
    aligned_round: bool = True


class DescribedImage(NamedTuple):
    """A working image, the network's features of it, the pixels on which its cells sit (L, 2), and which of them may match,
    (1, L) bool."""

    working: WorkingImage
    features: LoFTRFeatures
    centres: torch.Tensor
    allowed: torch.Tensor


class LoFTRMatcher(Matcher):
    """Matches with a trained network.

    Args:
        model: the network; put into evaluation mode while it matches, and back afterwards.
        settings: see :class:`LoFTRMatchSettings`.
        device: where the network is.
    """

    name = "loftr"

    def __init__(
        self, model: LoFTRVessel, settings: LoFTRMatchSettings, device: torch.device | str = "cpu"
    ) -> None:
        self.model, self.settings, self.device = model, settings, torch.device(device)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def describe(self, working: WorkingImage, role: str) -> DescribedImage:
        """Features of one image; both roles share the backbone."""
        allowed = erode_field(working.field_of_view, self.settings.field_margin_px)
        height, width = working.image.shape
        padding = ((0, -height % COARSE_STRIDE), (0, -width % COARSE_STRIDE))
        padded, allowed = np.pad(working.image, padding), np.pad(allowed, padding)
        centres = cell_centres(padded.shape, COARSE_STRIDE, self.model.cell_offset_px)
        x, y = centres.round().long().clamp_min(0).numpy().T
        tensor = torch.from_numpy(np.ascontiguousarray(padded, dtype=np.float32))[None, None].to(
            self.device
        )
        with self._evaluating():
            features = self.model.describe(tensor)
        return DescribedImage(
            working,
            features,
            centres.to(self.device),
            torch.from_numpy(allowed[y, x])[None].to(self.device),
        )

    def match_described(self, fixed: DescribedImage, moving: DescribedImage) -> WorkingMatches:
        """Matches of both images, after a second look at the moving image laid onto the fixed one."""
        fixed_points, moving_points, confidence = self._match_once(fixed, moving)
        if self.settings.aligned_round:
            H = self._propose(fixed_points, moving_points, fixed.working)
            if H is not None:
                fixed_points, aligned_points, confidence = self._match_once(
                    fixed, self._laid_onto(fixed, moving, H)
                )
                moving_points = warp_points(aligned_points, H)
        return WorkingMatches(
            fixed_points,
            moving_points,
            confidence,
            fixed.working,
            moving.working,
            fixed_points,
            moving_points,
        )

    def _propose(
        self, fixed_points: np.ndarray, moving_points: np.ndarray, fixed: WorkingImage
    ) -> np.ndarray | None:
        """A first transform in working pixels, from a handful of agreeing matches; None when there is none."""
        # Not the run's own limits: this only says where to look again, and the final fit is held to those.
        lenient = replace(Plausibility(), min_inliers=MIN_PROPOSAL_INLIERS, min_inlier_share=0.0)
        # Coarse matches may be a cell off, so the first fit allows as much.
        return estimate_transform(
            fixed_points, moving_points, fixed.frame.size, "affine", 0.75 * COARSE_STRIDE, lenient
        ).H_fix_to_mov

    def _laid_onto(
        self, fixed: DescribedImage, moving: DescribedImage, H_fix_to_mov: np.ndarray
    ) -> DescribedImage:
        """The moving working image in the frame of the fixed one."""
        frame, source = fixed.working.frame, moving.working
        image, seen = (
            register_onto_fixed(raster.astype(np.float32), H_fix_to_mov, frame.size)
            for raster in (source.image, source.field_of_view)
        )
        return self.describe(WorkingImage(image, seen > 0.5, frame), "moving")

    def _match_once(
        self, fixed: DescribedImage, moving: DescribedImage
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Matched points (K, 2) of both working images and their confidence (K,), the most confident first."""
        with self._evaluating():
            found = self.model.match(
                fixed.features,
                moving.features,
                fixed.allowed,
                moving.allowed,
                self.settings.min_cell_confidence,
            )
        order = torch.argsort(found.confidence, descending=True, stable=True)[
            : self.settings.max_matches
        ]
        points = (
            fixed.centres[found.fixed_cell[order]],
            moving.centres[found.moving_cell[order]] + found.offset_px[order],
            found.confidence[order],
        )
        return tuple(values.cpu().numpy().astype(np.float64) for values in points)
