"""The result of the pipeline for one pair."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from geometry.transforms import Transform, affine_of
from registration.matcher import WorkingMatches


@dataclass(frozen=True)
class Registration:
    """Result for one pair, in *original* pixels (x, y) of both images.

    Attributes:
        status: "ok" or "failed".
        reason: why it failed; "" otherwise.
        H_fix_to_mov: (3, 3), fixed to moving pixels; None when failed.
        fixed_points, moving_points: (K, 2) float64, all matches.
        inliers: (K,) bool, inliers of the matrix before its refinement on the ridge maps.
        matches: result of the matcher, in working pixels.
        seconds: wall-clock time of the pipeline.
        significance: deviation of the number of inliers from that of a wrong transform, standard
            deviations (:mod:`registration.significance`).
        agreement: of the ridge maps under the matrix, standard deviations; see
            :func:`registration.ridges.ridge_agreement`. 0 where no matrix was fitted; kept where a
            matrix was rejected for its low confidence.
        confidence: probability that the matrix is right, [0, 1]; 0 when failed.
        transform: fixed to moving pixels: the matrix, or a curved transform whose affine part is
            ``H_fix_to_mov``; None when failed.
        transform_reason: why this transform was chosen; "" where a matrix was requested.
    """

    status: str
    reason: str
    H_fix_to_mov: np.ndarray | None
    fixed_points: np.ndarray = field(repr=False)
    moving_points: np.ndarray = field(repr=False)
    inliers: np.ndarray = field(repr=False)
    matches: WorkingMatches = field(repr=False)
    seconds: float
    significance: float = 0.0
    agreement: float = 0.0
    confidence: float = 0.0
    transform: Transform | None = None
    transform_reason: str = ""

    @property
    def n_matches(self) -> int:
        """Number of matches before the robust fit."""
        return len(self.fixed_points)

    @property
    def n_inliers(self) -> int:
        """Number of inliers among the matches."""
        return int(self.inliers.sum())

    @property
    def H_affine(self) -> np.ndarray | None:
        """Affine matrix (3, 3), fixed to moving pixels, whatever the transform.

        ``H_fix_to_mov`` itself, except for a homography: then the affine matrix that is nearest to
        it at the inliers, in least squares.
        """
        if self.transform is None or self.transform.kind != "homography":
            return self.H_fix_to_mov
        return affine_of(self.transform, self.fixed_points[self.inliers])
