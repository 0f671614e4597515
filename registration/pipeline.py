"""From two images to a matrix: the pipeline behind register.py, evaluate.py and the validation of a training run.

    image -> working frame -> features -> matches, moving image turned if need be -> robust transform -> ridges settle
    the last pixels -> H_fix_to_mov in original pixels -> where asked for, a transform beyond affine on top

A :class:`Matcher` finds the matches; :class:`SuperRetinaMatcher` is ours.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from geometry.curved_transforms import CURVED_KINDS
from geometry.estimation import MATRIX_KINDS, Plausibility
from geometry.matrices import compose
from geometry.points import warp_points
from geometry.transforms import MatrixTransform, Transform, affine_of
from registration.curved_refinement import Choice, estimate_beyond_affine
from registration.matcher import Matcher, WorkingMatches
from registration.ridges import RidgePair
from registration.search import search
from registration.working_frame import to_working_frame

TRANSFORMS = ("auto", *MATRIX_KINDS, *CURVED_KINDS)


@dataclass(frozen=True)
class Registration:
    """Result for one pair, in *original* pixels of both images.

    Attributes:
        status: "ok" or "failed"; ``reason`` says why it failed.
        H_fix_to_mov: (3, 3), or None when failed.
        fixed_points, moving_points: (K, 2) all matches; inliers: (K,) which of them agree with the matrix that they gave, before
            the ridges refined it.
        matches: what the matcher returned.
        seconds: time for features, matches and fit.
        significance: by how many standard deviations the agreeing matches exceed what accident would give.
        agreement: how far the ridges of both images agree better under the matrix than beside it; see
            :func:`registration.ridges.ridge_agreement`. 0 when failed.
        confidence: probability in [0, 1] that the matrix is right, by both; 0 when failed.
        transform: what takes fixed to moving pixels: the matrix, or a curved transform that ``H_fix_to_mov`` is the affine part
            of; None when failed. ``transform_reason`` says why this one, where there was a choice.
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
        """Number of matches that agree with the matrix."""
        return int(self.inliers.sum())

    @property
    def H_affine(self) -> np.ndarray | None:
        """The affine ``H_fix_to_mov`` (3, 3), whatever the transform: the matrix itself, the one that a curved transform
        refines, or the one that is nearest to a homography where matches agree."""
        if self.transform is None or self.transform.kind != "homography":
            return self.H_fix_to_mov
        return affine_of(self.transform, self.fixed_points[self.inliers])


def register_pair(
    matcher: Matcher,
    fixed: np.ndarray,
    moving: np.ndarray,
    transform: str = "affine",
    plausibility: Plausibility | None = None,
) -> Registration:
    """Register a moving image onto a fixed one.

    Convention: the matrix is ``H_fix_to_mov`` in original pixels of both images.

    Args:
        matcher: finds the matches.
        fixed, moving: (H, W) float in [0, 1]; the sizes may differ.
        transform: one of ``TRANSFORMS``. Beyond affine a matrix is found first, then refined as far as the images bear it out.
        plausibility: limits on the result; the defaults when None.
    """
    start, limits = time.perf_counter(), plausibility or Plausibility()
    ridges = RidgePair(
        *(to_working_frame(image, matcher.settings.long_side) for image in (fixed, moving))
    )
    matrix_kind = transform if transform in MATRIX_KINDS else "affine"
    best = search(matcher, ridges, matrix_kind, limits)
    (estimate, matches, significance), reason = best.candidate, best.candidate.estimate.reason
    chosen = None
    if best.H_fix_to_mov is not None:
        chosen = choose_transform(ridges, best.H_fix_to_mov, transform)
    else:
        # Only to name the reason: copies at full size are enough.
        working = ridges.images
        flipped = search(
            matcher,
            RidgePair(working[0], working[1].mirrored()),
            matrix_kind,
            limits,
            smaller=False,
        )
        if flipped.H_fix_to_mov is not None:
            reason = "the moving image is mirrored: flip it and try again"
    return Registration(
        estimate.status,
        reason,
        best.H_fix_to_mov,
        warp_points(matches.fixed_points, np.linalg.inv(matches.fixed.frame.H_image_to_working)),
        warp_points(matches.moving_points, np.linalg.inv(matches.moving.frame.H_image_to_working)),
        estimate.inliers,
        matches,
        time.perf_counter() - start,
        significance,
        best.agreement,
        best.confidence,
        *(chosen or (None, "")),
    )


def choose_transform(ridges: RidgePair, H_fix_to_mov: np.ndarray, asked: str) -> Choice:
    """The transform of a registered pair in original pixels: the matrix itself, or what refines it.

    Args:
        H_fix_to_mov: (3, 3), original pixels.
        asked: one of ``TRANSFORMS``.
    """
    if asked in MATRIX_KINDS:
        return Choice(MatrixTransform(H_fix_to_mov, asked), "")
    H_fixed_to_working, H_moving_to_working = (
        image.frame.H_image_to_working for image in ridges.images
    )
    H_working = compose(np.linalg.inv(H_fixed_to_working), H_fix_to_mov, H_moving_to_working)
    choice = estimate_beyond_affine(ridges, H_working, asked)
    return Choice(
        choice.transform.rescaled(H_fixed_to_working, np.linalg.inv(H_moving_to_working)),
        choice.reason,
    )
