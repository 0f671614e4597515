"""Estimate ``H_fix_to_mov`` from corresponding points: least squares, robust fit, plausibility."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from geometry.matrices import Size, image_centre, local_linear_part
from geometry.points import image_corners
from utils.errors import InputError

MATRIX_KINDS = ("similarity", "affine", "homography")
MIN_MATCHES = {"similarity": 2, "affine": 3, "homography": 4}  # minimal sample of each kind
MIN_SPREAD_RATIO = 1e-3  # of the singular values of landmarks; below it they count as collinear
RANSAC_MAX_ITERATIONS = 10000  # hypotheses, chosen by hand
RANSAC_CONFIDENCE = 0.9999  # of at least one sample without outliers, chosen by hand


def fit_affine(fixed_points: np.ndarray, moving_points: np.ndarray) -> np.ndarray:
    """Least-squares affine matrix of corresponding points.

    Convention:
        Direction fixed -> moving; residuals are measured in the moving image.

    Args:
        fixed_points, moving_points: (N, 2), pixels (x, y), N >= 3, not collinear.

    Returns:
        ``H_fix_to_mov`` (3, 3) float64.

    Raises:
        InputError: unequal numbers, fewer than three points, or collinear points.
    """
    fixed_points, moving_points = np.asarray(fixed_points, float), np.asarray(moving_points, float)
    if (
        fixed_points.shape != moving_points.shape
        or fixed_points.ndim != 2
        or fixed_points.shape[1:] != (2,)
    ):
        raise InputError(
            f"{len(fixed_points)} fixed and {len(moving_points)} moving landmarks; line i of both "
            "files must be the same point, so the numbers must be equal."
        )
    if len(fixed_points) < 3:
        raise InputError(f"only {len(fixed_points)} landmarks; an affine matrix needs at least 3.")
    for points in (fixed_points, moving_points):
        spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
        if spread[1] < MIN_SPREAD_RATIO * max(spread[0], 1e-9):
            raise InputError(
                "the landmarks lie on one line; an affine matrix needs a point off that line."
            )
    design = np.hstack([fixed_points, np.ones((len(fixed_points), 1))])
    solution = np.linalg.lstsq(design, moving_points, rcond=None)[0]
    return np.vstack([solution.T, [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Plausibility:
    """Limits on a matrix between two photographs of one retina; defaults chosen by hand.

    Attributes:
        min_scale, max_scale: bounds of sqrt(|det|) of the Jacobian, at the centre and the corners
            of the fixed image; moving pixels per fixed pixel.
        max_anisotropy: largest ratio of the singular values of the Jacobian there.
        min_inliers: least number of inliers.
        min_inlier_share: least share of inliers among the matches, because among many wrong
            matches some are inliers by chance.
        min_spread: least standard deviation of the positions of the inliers in the fixed image
            along their minor axis, divided by the diagonal of the image; inliers in one spot or
            along one line do not determine a matrix.
    """

    min_scale: float = 0.3
    max_scale: float = 3.3
    max_anisotropy: float = 1.5
    min_inliers: int = 10
    min_inlier_share: float = 0.08
    min_spread: float = 0.04


@dataclass(frozen=True)
class TransformEstimate:
    """Result of :func:`estimate_transform`.

    Attributes:
        status: "ok" or "failed".
        reason: why it failed; empty when "ok".
        H_fix_to_mov: (3, 3) float64; None exactly when ``status`` is "failed".
        inliers: (N,) bool, one entry per match.
    """

    status: str
    reason: str
    H_fix_to_mov: np.ndarray | None
    inliers: np.ndarray = field(repr=False)

    @property
    def n_inliers(self) -> int:
        """Number of inliers; 0 when it failed before a fit."""
        return int(self.inliers.sum())


def implausibility_reason(
    H_fix_to_mov: np.ndarray,
    inlier_points: np.ndarray,
    n_matches: int,
    fixed_size: Size,
    limits: Plausibility,
) -> str:
    """Why a matrix is implausible, or "" when it is plausible.

    Args:
        H_fix_to_mov: (3, 3).
        inlier_points: (N, 2), fixed pixels (x, y) of the inliers.
        n_matches: number of all matches.
        fixed_size: (height, width) of the fixed image.
        limits: bounds on matrix and inliers.
    """
    if len(inlier_points) < limits.min_inliers:
        return (
            f"only {len(inlier_points)} of {n_matches} matches agree "
            f"(at least {limits.min_inliers} needed)"
        )
    if len(inlier_points) < limits.min_inlier_share * n_matches:
        return (
            f"only {len(inlier_points)} of {n_matches} matches agree "
            f"(share below {limits.min_inlier_share:g})"
        )
    for point in [image_centre(fixed_size), *image_corners(fixed_size)]:
        reason = _implausible_linear_part(local_linear_part(H_fix_to_mov, point), limits)
        if reason:
            return reason
    centred = inlier_points - inlier_points.mean(0)
    spread = np.linalg.svd(centred, compute_uv=False)[1] / math.sqrt(len(inlier_points))
    if spread < limits.min_spread * math.hypot(*fixed_size):
        return "the agreeing matches lie in one spot or along one line"
    return ""


def _implausible_linear_part(linear: np.ndarray, limits: Plausibility) -> str:
    """Why the linear part (2, 2) of a transform at some point is implausible, or ""."""
    if not np.isfinite(linear).all():
        return "the matrix is singular"
    if np.linalg.det(linear) <= 0:
        return "the matrix mirrors the image; two photographs of one eye are never mirrored"
    largest, smallest = np.linalg.svd(linear, compute_uv=False)
    if largest / smallest > limits.max_anisotropy:
        ratio = largest / smallest
        return f"the matrix stretches one direction {ratio:.2f} times more than the other"
    scale = math.sqrt(largest * smallest)
    if not limits.min_scale <= scale <= limits.max_scale:
        return f"implausible scale {scale:.2f} between the images"
    return ""


def estimate_transform(
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    fixed_size: Size,
    model: str = "affine",
    inlier_threshold_px: float = 3.0,
    plausibility: Plausibility | None = None,
) -> TransformEstimate:
    """Robust fit of a matrix to matches, with a plausibility test.

    Affine and homography: MAGSAC++ (Barath et al., CVPR 2020), OpenCV's USAC_MAGSAC. Similarity:
    OpenCV's RANSAC with a least-squares refinement, because OpenCV has no USAC for it. The random
    generator is seeded: the same input gives the same result.

    Convention:
        Direction fixed -> moving; residuals are measured in the moving image.

    Args:
        fixed_points, moving_points: (N, 2), corresponding pixels (x, y).
        fixed_size: (height, width) of the fixed image.
        model: "affine", "similarity" or "homography".
        inlier_threshold_px: largest residual of an inlier, moving pixels.
        plausibility: limits on the result; the defaults when None.

    Returns:
        The matrix and its inliers, or the reason of the failure.

    Raises:
        InputError: unknown model.
    """
    if model not in MATRIX_KINDS:
        raise InputError(f"unknown transform '{model}'; choose one of {', '.join(MATRIX_KINDS)}.")
    limits = plausibility or Plausibility()
    no_inliers = np.zeros(len(fixed_points), dtype=bool)
    fixed_points, moving_points = (
        np.asarray(fixed_points, np.float64),
        np.asarray(moving_points, np.float64),
    )
    if len(fixed_points) < max(MIN_MATCHES[model], limits.min_inliers):
        return TransformEstimate("failed", f"only {len(fixed_points)} matches", None, no_inliers)
    H, inliers = _fit_robustly(fixed_points, moving_points, model, inlier_threshold_px)
    if H is None:
        return TransformEstimate("failed", "no transform agrees with the matches", None, no_inliers)
    reason = implausibility_reason(H, fixed_points[inliers], len(fixed_points), fixed_size, limits)
    if reason:
        return TransformEstimate("failed", reason, None, inliers)
    return TransformEstimate("ok", "", H, inliers)


def _fit_robustly(
    fixed_points: np.ndarray, moving_points: np.ndarray, model: str, threshold_px: float
) -> tuple[np.ndarray | None, np.ndarray]:
    """Run OpenCV's robust estimator.

    Args:
        fixed_points, moving_points: (N, 2) float64, corresponding pixels (x, y).
        model: a key of ``MIN_MATCHES``.
        threshold_px: largest residual of an inlier, moving pixels.

    Returns:
        ``H_fix_to_mov`` (3, 3), None when there is no finite one; inliers (N,) bool.
    """
    cv2.setRNGSeed(0)
    if model == "homography":
        H, mask = cv2.findHomography(
            fixed_points,
            moving_points,
            cv2.USAC_MAGSAC,
            ransacReprojThreshold=threshold_px,
            maxIters=RANSAC_MAX_ITERATIONS,
            confidence=RANSAC_CONFIDENCE,
        )
    else:
        estimate, method = (
            (cv2.estimateAffine2D, cv2.USAC_MAGSAC)
            if model == "affine"
            else (cv2.estimateAffinePartial2D, cv2.RANSAC)
        )
        H, mask = estimate(
            fixed_points,
            moving_points,
            method=method,
            ransacReprojThreshold=threshold_px,
            maxIters=RANSAC_MAX_ITERATIONS,
            confidence=RANSAC_CONFIDENCE,
        )
        H = None if H is None else np.vstack([H, [0.0, 0.0, 1.0]])
    if H is None or not np.isfinite(H).all():
        return None, np.zeros(len(fixed_points), dtype=bool)
    return H, mask.ravel().astype(bool)
