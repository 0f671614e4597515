"""The contract of a matcher: what it is given, what it returns, and its settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from registration.working_frame import WorkingImage, to_working_frame


@dataclass(frozen=True)
class MatchSettings:
    """How images are matched.

    Attributes:
        long_side: working size: the field of view of either image is brought to this size, pixels.
        min_probability: weakest detection that counts as a keypoint.
        nms_radius_px: least distance of keypoints, working pixels.
        max_keypoints: at most so many per image.
        max_distance_ratio: Lowe's test on the nearest descriptors; 1 = off.
        field_margin_px: no keypoint nearer to the edge of the field of view, working pixels.
        proposal_threshold_px: residual below which a match agrees with the first proposal, a similarity, working pixels.
        inlier_threshold_px: residual below which a match agrees with the transform itself, working pixels.
        guided_radii_px: once a transform is found, keypoints are matched again among those this near to where it maps
            them, working pixels; one round for each radius, none for an empty list. The first, wide round decides, the
            others refine.
        accident_rate: share of the matches of the wide round that agree with a wrong transform. They lie anywhere within
            the radius, so (threshold / radius)**2 = 4 % do; about twice that once the transform is fitted to them.
        min_significance: by how many standard deviations of such accidents the agreeing matches of a proposal must exceed them;
            what is taken off the best of several proposals for its being the best counts in the confidence only.
        min_confidence: least :func:`confidence_of` of a result that counts as found.
        try_turns: also try copies of the moving image turned by 90, 180 and 270 degrees.
        smaller_copy: where that finds nothing, also try the moving and then the fixed image at this share of the working
            size: the fields of an OCT and a photograph, both at 512 px, differ in scale by 1.6 and more. 1 = off.
        sure_confidence: no further copy is tried once a result is this likely to be right.
        refine: let the ridges of both images settle the last pixels of the transform (:mod:`registration.affine_refinement`).
    """

    long_side: int = 512
    min_probability: float = 0.02
    nms_radius_px: int = 4
    max_keypoints: int = 1024
    max_distance_ratio: float = 1.0
    field_margin_px: int = 6
    proposal_threshold_px: float = 5.0
    inlier_threshold_px: float = 3.0
    guided_radii_px: tuple[float, ...] = (15.0, 6.0)
    accident_rate: float = 0.08
    min_significance: float = 3.0
    min_confidence: float = 0.5
    try_turns: bool = True
    smaller_copy: float = 0.6
    sure_confidence: float = 0.97
    refine: bool = True


@dataclass(frozen=True)
class WorkingMatches:
    """Matches of a pair; all points are pixels of the *working* images.

    Attributes:
        fixed_points, moving_points: (K, 2), row i corresponds.
        similarity: (K,) cosine similarity of the descriptors.
        fixed, moving: the working images, and how they lie in the original ones.
        fixed_keypoints, moving_keypoints: (N, 2), (M, 2), all keypoints, for pictures.
        fixed_heatmap, moving_heatmap: detector maps, for pictures; None where a matcher has none.
        fixed_descriptors, moving_descriptors: (N, D), (M, D), for guided matching; None where a matcher has none.
    """

    fixed_points: np.ndarray
    moving_points: np.ndarray
    similarity: np.ndarray
    fixed: WorkingImage
    moving: WorkingImage
    fixed_keypoints: np.ndarray
    moving_keypoints: np.ndarray
    fixed_heatmap: np.ndarray | None = None
    moving_heatmap: np.ndarray | None = None
    fixed_descriptors: torch.Tensor | None = None
    moving_descriptors: torch.Tensor | None = None


class Matcher(ABC):
    """Finds matches between two images. A new kind of matcher says how it describes one image and matches two.

    Attributes:
        name: what tables call the method.
        settings: see :class:`MatchSettings`.
    """

    name: str
    settings: MatchSettings

    @abstractmethod
    def describe(self, working: WorkingImage, role: str) -> Any:
        """What can be computed of one image alone, in its role, "fixed" or "moving"."""

    @abstractmethod
    def match_described(self, fixed: Any, moving: Any) -> WorkingMatches:
        """Match two images that were described."""

    def match(self, fixed: np.ndarray, moving: np.ndarray) -> WorkingMatches:
        """Match two grey images (H, W) float in [0, 1] of any sizes, as they are."""
        return next(
            self.candidates(
                *(to_working_frame(image, self.settings.long_side) for image in (fixed, moving))
            )
        )

    def candidates(
        self, fixed: WorkingImage, moving: WorkingImage, smaller: bool = True
    ) -> Iterator[WorkingMatches]:
        """Matches of the images as they are, then of turned and of smaller copies; each is computed when it is asked for.

        The fixed image is described once at each size. The frames of the copies hold turn and size, so the candidates all
        mean the same two images.

        Args:
            smaller: also the smaller copies, where the settings have them.
        """
        share = self.settings.smaller_copy if smaller else 1.0
        for fixed_share, moving_shares in (
            ((1.0, (1.0, share)), (share, (1.0,))) if share < 1.0 else ((1.0, (1.0,)),)
        ):
            described = self.describe(fixed.resized(fixed_share), "fixed")
            for moving_share, quarter_turns in product(
                moving_shares, (0, 1, 3, 2) if self.settings.try_turns else (0,)
            ):
                copy = moving.resized(moving_share).turned(quarter_turns)
                yield self.match_described(described, self.describe(copy, "moving"))
