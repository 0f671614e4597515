"""Matching with a trained :class:`model.loftr_vessel.LoFTRVessel`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import numpy as np
import torch

from geometry.cells import cell_centres
from geometry.estimation import Plausibility, estimate_transform
from geometry.field_of_view import erode_field
from geometry.points import warp_points
from geometry.rasters import register_onto_fixed
from model.loftr_modules import COARSE_STRIDE
from model.loftr_outputs import LoFTRFeatures
from model.loftr_vessel import LoFTRVessel
from registration.confidence_model import ConfidenceModel
from registration.matcher import Matcher, MatchSettings, WorkingMatches
from registration.proposals import PROPOSALS
from registration.working_frame import WorkingImage

# Inlier threshold of the fit between the two rounds, working pixels: coarse matches have an error
# of up to a cell.
FIRST_FIT_THRESHOLD_PX = 0.75 * COARSE_STRIDE


@dataclass(frozen=True)
class LoFTRConfidence(ConfidenceModel):
    """The model of the confidence, fitted to the results of the LoFTR matcher.

    Its matches are not guided by a proposal, so its significance has another range than that of the
    keypoint matcher, and wrong matrices reach higher values.
    """

    bias: float = -8.338
    per_significance: float = 0.238
    per_agreement: float = 1.721
    max_significance: float = 10.0
    max_agreement: float = 6.0


@dataclass(frozen=True)
class LoFTRMatchSettings(MatchSettings):
    """Settings of the LoFTR matcher, in addition to those of the base.

    Attributes:
        min_cell_confidence: least dual-softmax probability of a match, [0, 1].
        max_matches: number of matches, the most confident ones.
        aligned_round: match a second time with the moving image resampled by the first fit. Without
            rotation, scale and most of the translation more cells match, and the fine stage is
            more accurate.
    """

    # Settings of keypoint matching, which LoFTR does not use; older checkpoints contain them.
    RETIRED_KEYS: ClassVar[tuple[str, ...]] = (
        "min_probability",
        "nms_radius_px",
        "max_keypoints",
        "max_distance_ratio",
        "proposal_threshold_px",
        "guided_radii_px",
        "min_significance",
    )

    min_cell_confidence: float = 0.2
    max_matches: int = 2000
    aligned_round: bool = True
    confidence: LoFTRConfidence = LoFTRConfidence()

    def bare(self) -> Self:
        """See :meth:`registration.matcher.MatchSettings.bare`; no second, aligned round either."""
        return replace(super().bare(), aligned_round=False)


class DescribedImage(NamedTuple):
    """Features of one image.

    Attributes:
        working: the image.
        features: of the network.
        centres: (L, 2) float, pixel centres (x, y) of the coarse cells, working pixels.
        allowed: (1, L) bool, which cells may match.
    """

    working: WorkingImage
    features: LoFTRFeatures
    centres: torch.Tensor
    allowed: torch.Tensor


class LoFTRMatcher(Matcher):
    """Matches with a trained network.

    Args:
        model: the network; set to evaluation mode during matching, then back.
        settings: see :class:`LoFTRMatchSettings`.
        device: where the network is.
    """

    name = "loftr"
    settings: LoFTRMatchSettings

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
        """See :meth:`registration.matcher.Matcher.describe`; both roles share the backbone."""
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
            working=working,
            features=features,
            centres=centres.to(self.device),
            allowed=torch.from_numpy(allowed[y, x])[None].to(self.device),
        )

    def match_described(self, fixed: DescribedImage, moving: DescribedImage) -> WorkingMatches:
        """See :meth:`registration.matcher.Matcher.match_described`; with the aligned round."""
        fixed_points, moving_points, confidence = self._match_once(fixed, moving)
        if self.settings.aligned_round:
            H = self._first_fit(fixed_points, moving_points, fixed.working)
            if H is not None:
                fixed_points, aligned_points, confidence = self._match_once(
                    fixed, self._aligned(fixed, moving, H)
                )
                moving_points = warp_points(aligned_points, H)
        return WorkingMatches(
            fixed_points=fixed_points,
            moving_points=moving_points,
            similarity=confidence,
            fixed=fixed.working,
            moving=moving.working,
            fixed_keypoints=fixed_points,
            moving_keypoints=moving_points,
        )

    def _first_fit(
        self, fixed_points: np.ndarray, moving_points: np.ndarray, fixed: WorkingImage
    ) -> np.ndarray | None:
        """Affine matrix (3, 3) in working pixels for the aligned round; None if the fit fails."""
        # Default limits, not those of the run: they apply to the final fit, not to this proposal.
        lenient = replace(Plausibility(), min_inliers=PROPOSALS.min_inliers, min_inlier_share=0.0)
        return estimate_transform(
            fixed_points,
            moving_points,
            fixed.frame.size,
            "affine",
            FIRST_FIT_THRESHOLD_PX,
            lenient,
        ).H_fix_to_mov

    def _aligned(
        self, fixed: DescribedImage, moving: DescribedImage, H_fix_to_mov: np.ndarray
    ) -> DescribedImage:
        """Features of the moving working image, resampled into the frame of the fixed one."""
        frame, source = fixed.working.frame, moving.working
        image, seen = (
            register_onto_fixed(raster.astype(np.float32), H_fix_to_mov, frame.size)
            for raster in (source.image, source.field_of_view)
        )
        return self.describe(WorkingImage(image, seen > 0.5, frame), "moving")

    def _match_once(
        self, fixed: DescribedImage, moving: DescribedImage
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points (K, 2) of both working images, confidence (K,), in decreasing confidence."""
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
        fixed_points = fixed.centres[found.fixed_cell[order]]
        moving_points = moving.centres[found.moving_cell[order]] + found.offset_px[order]
        return (
            _to_float64(fixed_points),
            _to_float64(moving_points),
            _to_float64(found.confidence[order]),
        )


def _to_float64(values: torch.Tensor) -> np.ndarray:
    return values.cpu().numpy().astype(np.float64)
