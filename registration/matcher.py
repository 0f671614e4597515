"""The contract of a matcher: its settings, its result, and the methods that it implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Self

import numpy as np
import torch

from registration.confidence_model import ConfidenceModel
from registration.working_frame import WorkingImage, to_working_frame

# Numbers of quarter turns (counterclockwise) of the moving image, in the order in which they are
# matched: 0, 90, 270 and 180 degrees.
QUARTER_TURNS = (0, 1, 3, 2)


@dataclass(frozen=True)
class MatchSettings:
    """Settings that every matcher needs: working frame, fit, search over copies, confidence.

    Attributes:
        long_side: working size, pixels: diameter of the circle with the area of the field of view
            in the working image (``registration.working_frame.field_diameter``).
        field_margin_px: width of the border of the field of view without matches, working pixels.
        inlier_threshold_px: residual below which a match is an inlier, working pixels.
        accident_rate: expected share of inliers under a wrong transform. With matches spread
            uniformly within the guided radius it is (threshold / radius)**2 = 4 %; the fit to
            these matches about doubles it.
        min_confidence: a result with less confidence is reported as failed, [0, 1].
        try_turns: also match the moving image rotated by 90, 180 and 270 degrees.
        smaller_copy: scale of the smaller copies, relative to the working size; 1 = none. They
            are matched after the full-size images, because the working images of an OCT and a
            photograph, both 512 px, can differ in scale by 1.6 and more.
        try_mirrored: where nothing is found, also match the mirrored moving image, to give that as
            the reason of the failure.
        sure_confidence: at this confidence the search over copies stops, [0, 1].
        refine: refine the matrix on the ridge maps (:mod:`registration.refinement`).
        confidence: model of the confidence, fitted to the results of the matcher by
            ``benchmarks/confidence.py``.
    """

    long_side: int = 512
    field_margin_px: int = 6
    inlier_threshold_px: float = 3.0
    accident_rate: float = 0.08
    min_confidence: float = 0.5
    try_turns: bool = True
    smaller_copy: float = 0.6
    try_mirrored: bool = True
    sure_confidence: float = 0.97
    refine: bool = True
    confidence: ConfidenceModel = ConfidenceModel()

    def bare(self) -> Self:
        """The same settings for the bare view: what the network alone gives.

        One robust fit to the matches of the images as they are: no rotated, smaller or mirrored
        copies, no refinement on the ridge maps, and no least confidence.
        """
        return replace(
            self,
            try_turns=False,
            smaller_copy=1.0,
            try_mirrored=False,
            refine=False,
            min_confidence=0.0,
        )


@dataclass(frozen=True)
class WorkingMatches:
    """Matches of a pair; all points are pixels (x, y) of the *working* images.

    Attributes:
        fixed_points, moving_points: (K, 2) float64, pixels; row i corresponds.
        similarity: (K,) float, the matcher's score: cosine similarity or match probability.
        fixed, moving: the working images with their frames.
        fixed_keypoints, moving_keypoints: (N, 2), (M, 2) float64, pixels; all keypoints.
        fixed_heatmap, moving_heatmap: (h, w) float32 in [0, 1], keypoint probabilities, for
            figures; None for a matcher without a detector.
        fixed_descriptors, moving_descriptors: (N, D), (M, D), unit length, for guided matching;
            None for a matcher without descriptors.
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
    """Finds matches between two images. A subclass implements the two abstract methods.

    Attributes:
        name: name of the method in tables.
        settings: see :class:`MatchSettings`.
        device: where its network is.
    """

    name: str
    settings: MatchSettings
    device: torch.device

    @abstractmethod
    def describe(self, working: WorkingImage, role: str) -> Any:
        """Features of one image.

        Args:
            working: the image.
            role: "fixed" or "moving".
        """

    @abstractmethod
    def match_described(self, fixed: Any, moving: Any) -> WorkingMatches:
        """Match the features of two images.

        Args:
            fixed, moving: what :meth:`describe` returned for either image.
        """

    def match(self, fixed: np.ndarray, moving: np.ndarray) -> WorkingMatches:
        """Match two images without rotated or smaller copies.

        Args:
            fixed, moving: (H, W) float in [0, 1]; the sizes may differ.
        """
        long_side = self.settings.long_side
        working = to_working_frame(fixed, long_side), to_working_frame(moving, long_side)
        return next(self.match_copies(*working))

    def match_copies(
        self, fixed: WorkingImage, moving: WorkingImage, smaller_copies: bool = True
    ) -> Iterator[WorkingMatches]:
        """Matches of the images as they are, then with rotated, then with smaller copies.

        Each item is computed when the iterator reaches it. The fixed image is described once per
        size. The frame of a copy holds its rotation and scale, so all items refer to the same two
        original images.

        Args:
            fixed, moving: the working images.
            smaller_copies: whether to match smaller copies, if the settings allow it.
        """
        scale = self.settings.smaller_copy if smaller_copies else 1.0
        full_size: tuple[float, tuple[float, ...]] = (1.0, (1.0,))
        scales = [(1.0, (1.0, scale)), (scale, (1.0,))] if scale < 1.0 else [full_size]
        quarter_turns = QUARTER_TURNS if self.settings.try_turns else (0,)
        for fixed_scale, moving_scales in scales:
            described = self.describe(fixed.resized(fixed_scale), "fixed")
            for moving_scale, turns in product(moving_scales, quarter_turns):
                copy = moving.resized(moving_scale).turned(turns)
                yield self.match_described(described, self.describe(copy, "moving"))
