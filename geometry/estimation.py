"""Fit ``H_fix_to_mov`` to corresponding points, by least squares or robustly, and judge whether it can be right."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from geometry.matrices import Size, image_centre, local_linear_part
from utils.errors import InputError

MATRIX_KINDS = ("similarity", "affine", "homography")
MIN_MATCHES = {"similarity": 2, "affine": 3, "homography": 4}


# --- fitting ---------------------------------------------------------------------------------------------------------


def fit_affine(fixed_points: np.ndarray, moving_points: np.ndarray) -> np.ndarray:
    """Least-squares affine ``H_fix_to_mov`` through corresponding points.

    Args:
        fixed_points, moving_points: (N, 2), N >= 3, not all on one line.

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
            f"{len(fixed_points)} fixed and {len(moving_points)} moving landmarks; line i of both files "
            "must be the same point, so the numbers must be equal."
        )
    if len(fixed_points) < 3:
        raise InputError(f"only {len(fixed_points)} landmarks; an affine matrix needs at least 3.")
    for points in (fixed_points, moving_points):
        spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
        if spread[1] < 1e-3 * max(spread[0], 1e-9):
            raise InputError(
                "the landmarks lie on one line; an affine matrix needs a point beside it."
            )
    design = np.hstack([fixed_points, np.ones((len(fixed_points), 1))])
    solution = np.linalg.lstsq(design, moving_points, rcond=None)[0]
    return np.vstack([solution.T, [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Plausibility:
    """What a matrix between two photographs of one retina can be; lengths relative to the working size.

    Attributes:
        min_scale, max_scale: bounds of sqrt(|det|) of the linear part at the centre of the fixed image.
        max_anisotropy: bound of the ratio of its singular values.
        min_inliers: matches that must agree with the matrix.
        min_inlier_share: share of the matches that must agree: among many wrong matches some agree by accident.
        min_spread: the *smaller* standard deviation of the inliers' positions in the fixed image, divided by the
            image's diagonal: inliers in one spot or along one line do not fix a matrix.
    """

    min_scale: float = 0.3
    max_scale: float = 3.3
    max_anisotropy: float = 1.5
    min_inliers: int = 10
    min_inlier_share: float = 0.08
    min_spread: float = 0.04


@dataclass(frozen=True)
class TransformEstimate:
    """Result of :func:`estimate_transform`; ``H_fix_to_mov`` is None exactly when ``status`` is "failed"."""

    status: str
    reason: str
    H_fix_to_mov: np.ndarray | None
    inliers: np.ndarray = field(repr=False)

    @property
    def n_inliers(self) -> int:
        """Number of matches that agree with the matrix (0 when failed before a fit)."""
        return int(self.inliers.sum())


def implausible_because(
    H_fix_to_mov: np.ndarray,
    inlier_points: np.ndarray,
    n_matches: int,
    fixed_size: Size,
    limits: Plausibility,
) -> str:
    """Why a matrix cannot be right, or "" when nothing speaks against it. ``inlier_points`` (N, 2) are fixed pixels."""
    if len(inlier_points) < limits.min_inliers:
        return f"only {len(inlier_points)} of {n_matches} matches agree (at least {limits.min_inliers} needed)"
    if len(inlier_points) < limits.min_inlier_share * n_matches:
        return f"only {len(inlier_points)} of {n_matches} matches agree (share below {limits.min_inlier_share:g})"
    corners = np.array(
        [
            [0, 0],
            [fixed_size[1] - 1, 0],
            [fixed_size[1] - 1, fixed_size[0] - 1],
            [0, fixed_size[0] - 1],
        ]
    )
    for point in [image_centre(fixed_size), *corners]:
        linear = local_linear_part(H_fix_to_mov, point)
        if not np.isfinite(linear).all():
            return "the matrix is singular"
        if np.linalg.det(linear) <= 0:
            return "the matrix mirrors the image; two photographs of one eye are never mirrored"
        largest, smallest = np.linalg.svd(linear, compute_uv=False)
        if largest / smallest > limits.max_anisotropy:
            return f"the matrix stretches one direction {largest / smallest:.2f} times more than the other"
        scale = math.sqrt(largest * smallest)
        if not limits.min_scale <= scale <= limits.max_scale:
            return f"implausible scale {scale:.2f} between the images"
    spread = np.linalg.svd(inlier_points - inlier_points.mean(0), compute_uv=False)[1] / math.sqrt(
        len(inlier_points)
    )
    if spread < limits.min_spread * math.hypot(*fixed_size):
        return "the agreeing matches lie in one spot or along one line"
    return ""


def estimate_transform(
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    fixed_size: Size,
    model: str = "affine",
    inlier_threshold_px: float = 3.0,
    plausibility: Plausibility | None = None,
) -> TransformEstimate:
    """Robust ``H_fix_to_mov`` from matches, or the reason why there is none.

    Affine and homography by OpenCV's USAC_MAGSAC (Barath et al., CVPR 2020). OpenCV has no USAC for the similarity, so
    that one is its RANSAC with local least squares. The random draws are seeded: equal input, equal result.

    Args:
        fixed_points, moving_points: (N, 2) corresponding pixels.
        fixed_size: (height, width) of the fixed image.
        model: "affine", "similarity" or "homography".
        inlier_threshold_px: a match agrees when it is nearer than this, moving pixels.
        plausibility: limits on the result; the defaults when None.

    Raises:
        InputError: unknown model.
    """
    if model not in MATRIX_KINDS:
        raise InputError(f"unknown transform '{model}'; choose one of {', '.join(MATRIX_KINDS)}.")
    limits = plausibility or Plausibility()
    none = np.zeros(len(fixed_points), dtype=bool)
    fixed_points, moving_points = (
        np.asarray(fixed_points, np.float64),
        np.asarray(moving_points, np.float64),
    )
    if len(fixed_points) < max(MIN_MATCHES[model], limits.min_inliers):
        return TransformEstimate("failed", f"only {len(fixed_points)} matches", None, none)
    H, inliers = _fit_robustly(fixed_points, moving_points, model, inlier_threshold_px)
    if H is None:
        return TransformEstimate("failed", "no transform agrees with the matches", None, none)
    reason = implausible_because(H, fixed_points[inliers], len(fixed_points), fixed_size, limits)
    if reason:
        return TransformEstimate("failed", reason, None, inliers)
    return TransformEstimate("ok", "", H, inliers)


def _fit_robustly(
    fixed_points: np.ndarray, moving_points: np.ndarray, model: str, threshold_px: float
) -> tuple[np.ndarray | None, np.ndarray]:
    """Run OpenCV's estimator; returns (3, 3) or None, and the bool (N,) of inliers."""
    cv2.setRNGSeed(0)
    settings = dict(ransacReprojThreshold=threshold_px, maxIters=10000, confidence=0.9999)
    if model == "homography":
        H, mask = cv2.findHomography(fixed_points, moving_points, cv2.USAC_MAGSAC, **settings)
    else:
        if model == "affine":
            H, mask = cv2.estimateAffine2D(
                fixed_points, moving_points, method=cv2.USAC_MAGSAC, **settings
            )
        else:
            H, mask = cv2.estimateAffinePartial2D(
                fixed_points, moving_points, method=cv2.RANSAC, **settings
            )
        H = None if H is None else np.vstack([H, [0.0, 0.0, 1.0]])
    if H is None or not np.isfinite(H).all():
        return None, np.zeros(len(fixed_points), dtype=bool)
    return H, mask.ravel().astype(bool)
