"""Transform through hand-placed landmarks, and how accurately the landmarks determine it.

Affine, unless many landmarks support a richer map: a homography or a quadratic map has to predict
landmarks that were left out of its fit better than the simpler map does.

Unit of all residuals: "px at 512", see :mod:`geometry.accuracy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.stats import wilcoxon

from geometry.accuracy import REFERENCE_SIDE, to_reference_px
from geometry.curved_transforms import QuadraticTransform, quadratic_terms, unit_frame
from geometry.estimation import fit_affine
from geometry.matrices import Size
from geometry.points import warp_points
from geometry.transforms import MatrixTransform, Transform
from utils.errors import InputError


@dataclass(frozen=True)
class LandmarkFitConstants:
    """Constants of the fits and of the choice between them; chosen by hand."""

    min_homography: int = 10  # landmarks; fewer do not decide between the kinds of transform
    min_quadratic: int = 15  # landmarks
    min_gain: float = 0.1  # relative reduction of the median residual by a richer transform
    min_gain_px: float = 0.05  # the same in px at 512; less is rounding of the coordinates
    significance: float = 0.05  # level of the one-sided Wilcoxon signed-rank test of that reduction
    min_jacobian: float = 0.3  # least determinant relative to the affine one; 0 means folding
    jacobian_steps: int = 64  # lattice steps along the long side, at which the Jacobian is checked
    outlier_deviations: float = 3.0  # standard deviations beyond which a landmark is left out
    min_deviation_px: float = 0.5  # least standard deviation of a coordinate, px at 512
    min_for_outliers: int = 6  # landmarks; among fewer an outlier cannot be told
    max_outlier_share: float = 0.25  # more outliers than that are no clicking errors
    unknown_residual_px: float = 5.0  # of landmarks that leave no residual to measure, px at 512
    min_tolerance_px: float = 1.0  # fixed px at 512; nobody places landmarks more accurately


FITS = LandmarkFitConstants()
# Distances of normally distributed points in the plane have this median, standard deviations of a
# coordinate (Rayleigh distribution).
RAYLEIGH_MEDIAN = math.sqrt(2.0 * math.log(2.0))

Fitter = Callable[[np.ndarray, np.ndarray], Transform]


@dataclass(frozen=True)
class LandmarkFit:
    """Result of :func:`fit_landmarks`.

    Attributes:
        transform: fixed pixels to moving pixels, both at the sizes of their files.
        kind: "affine", "homography" or "quadratic".
        residual_px: median residual of landmarks that were left out of the fit, one at a time;
            moving px at 512.
        tolerance_file_px: the same in pixels of the fixed file; at least the given least value.
        reason: why this kind was chosen, and how many landmarks the fit leaves out.
    """

    transform: Transform
    kind: str
    residual_px: float
    tolerance_file_px: float
    reason: str


@dataclass(frozen=True)
class _Candidate:
    """One kind of transform through the landmarks.

    Attributes:
        transform: fixed pixels to moving pixels.
        residuals: (N,) of each landmark while it was left out, px at 512; infinite where the
            others do not determine the transform.
        n_outliers: landmarks left out of the fit.
    """

    transform: Transform
    residuals: np.ndarray
    n_outliers: int

    @property
    def median(self) -> float:
        """Median residual, px at 512."""
        return float(np.median(self.residuals))


def fit_landmarks(
    fixed_landmarks: np.ndarray,
    moving_landmarks: np.ndarray,
    fixed_size: Size,
    moving_size: Size,
    min_tolerance_px: float = FITS.min_tolerance_px,
) -> LandmarkFit:
    """Fit a transform to landmarks by least squares, robust to a few clicking errors.

    Landmarks beyond three robust standard deviations are left out of one second fit. They still
    count in the residual and in the comparison of the kinds of transform.

    Convention:
        Direction fixed -> moving; residuals are measured in the moving image.

    Args:
        fixed_landmarks, moving_landmarks: (N, 2), pixels (x, y) of each image at its own size; row
            i of both is the same point.
        fixed_size, moving_size: (height, width) of the images.
        min_tolerance_px: least tolerance, fixed px at 512.

    Returns:
        The transform and its tolerance.

    Raises:
        InputError: unequal numbers, fewer than three landmarks, or collinear landmarks.
    """
    fixed, moving = (
        np.asarray(points, dtype=float) for points in (fixed_landmarks, moving_landmarks)
    )
    affine = _candidate(_fit_affine, fixed, moving, moving_size)
    chosen, reasons = _choose(affine, fixed, moving, fixed_size, moving_size)
    if chosen.n_outliers:
        reasons.append(f"{chosen.n_outliers} of {len(fixed)} landmarks left out of the fit")
    residual_px = chosen.median
    if not math.isfinite(residual_px):
        residual_px = FITS.unknown_residual_px
        reasons.append(f"residual unknown, taken as {residual_px:g} px at 512")
    scale = math.sqrt(abs(np.linalg.det(affine.transform.approximate_matrix()[:2, :2])))
    tolerance = residual_px / to_reference_px(moving_size) / scale
    return LandmarkFit(
        transform=chosen.transform,
        kind=chosen.transform.kind,
        residual_px=residual_px,
        tolerance_file_px=max(tolerance, min_tolerance_px * max(fixed_size) / REFERENCE_SIDE),
        reason=f"{chosen.transform.kind}: {'; '.join(reasons)}",
    )


def _choose(
    affine: _Candidate, fixed: np.ndarray, moving: np.ndarray, fixed_size: Size, moving_size: Size
) -> tuple[_Candidate, list[str]]:
    """The richest candidate that the landmarks support, and a reason for each decision.

    Args:
        affine: the affine candidate.
        fixed, moving: (N, 2), pixels (x, y).
        fixed_size, moving_size: (height, width).
    """
    chosen, reasons = affine, []
    for kind, fitter, least in (
        ("homography", _fit_homography, FITS.min_homography),
        ("quadratic", _fit_quadratic, FITS.min_quadratic),
    ):
        if len(fixed) < least:
            reasons.append(f"{len(fixed)} landmarks, a {kind} needs {least}")
            break
        rich = _candidate(fitter, fixed, moving, moving_size)
        accepted, reason = _compare(chosen, rich, affine, fixed_size)
        chosen = rich if accepted else chosen
        reasons.append(reason)
    return chosen, reasons


def _compare(
    simple: _Candidate, rich: _Candidate, affine: _Candidate, fixed_size: Size
) -> tuple[bool, str]:
    """Whether the landmarks support the richer of two candidates, and why or why not.

    Args:
        simple, rich: the candidates.
        affine: the affine one, whose Jacobian is the reference for folding.
        fixed_size: (height, width) of the fixed image.
    """
    kinds = f"{rich.transform.kind} against {simple.transform.kind}"
    if not (np.isfinite(simple.residuals).all() and np.isfinite(rich.residuals).all()):
        return False, f"{kinds}: the landmarks without one of them do not determine it"
    least_gain = max(FITS.min_gain * simple.median, FITS.min_gain_px)
    differences = simple.residuals - rich.residuals
    p_value = wilcoxon(differences, alternative="greater").pvalue if differences.any() else 1.0
    reason = (
        f"{kinds}: median residual of left-out landmarks {rich.median:.2f} instead of "
        f"{simple.median:.2f} px at 512 (p = {p_value:.2g})"
    )
    if simple.median - rich.median < least_gain or not p_value < FITS.significance:
        return False, f"{reason}, too little"
    step_px = max(1, max(fixed_size) // FITS.jacobian_steps)
    determinant = np.linalg.det(affine.transform.approximate_matrix()[:2, :2])
    relative = rich.transform.least_jacobian(fixed_size, step_px) * np.sign(determinant)
    if not relative > FITS.min_jacobian * abs(determinant):
        return False, f"{reason}, but it comes near folding"
    return True, reason


def _candidate(
    fitter: Fitter, fixed: np.ndarray, moving: np.ndarray, moving_size: Size
) -> _Candidate:
    """Fit once, find outliers, fit again without them.

    Args:
        fitter: fits one kind of transform.
        fixed, moving: (N, 2), pixels (x, y).
        moving_size: (height, width).

    Raises:
        InputError: from ``fitter``.
    """
    to_reference = to_reference_px(moving_size)
    kept = np.ones(len(fixed), dtype=bool)
    transform = fitter(fixed, moving)
    left_out = _left_out_residuals(fitter, fixed, moving, kept) * to_reference
    own = np.linalg.norm(transform.map(fixed) - moving, axis=1) * to_reference
    outliers = _outliers(own, left_out)
    if outliers.any():
        kept = ~outliers
        transform = fitter(fixed[kept], moving[kept])
        left_out = _left_out_residuals(fitter, fixed, moving, kept) * to_reference
    return _Candidate(transform, left_out, int(outliers.sum()))


def _outliers(own: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Landmarks beyond three robust standard deviations; none where they are too many.

    With leverage h, the residual of a landmark in a fit with it has the standard deviation
    s sqrt(1 - h), in a fit without it s / sqrt(1 - h); their geometric mean has s for every
    landmark.

    Args:
        own, left_out: (N,) residuals in the fit with and without the landmark, px at 512.

    Returns:
        (N,) bool.
    """
    none = np.zeros(len(own), dtype=bool)
    if len(own) < FITS.min_for_outliers or not np.isfinite(left_out).all():
        return none
    standardised = np.sqrt(own * left_out)
    deviation = max(float(np.median(standardised)) / RAYLEIGH_MEDIAN, FITS.min_deviation_px)
    outliers = standardised > FITS.outlier_deviations * deviation
    return outliers if outliers.mean() <= FITS.max_outlier_share else none


def _left_out_residuals(
    fitter: Fitter, fixed: np.ndarray, moving: np.ndarray, kept: np.ndarray
) -> np.ndarray:
    """Residual (N,) of each landmark in the fit to the other kept ones, moving pixels.

    Args:
        fitter: fits one kind of transform.
        fixed, moving: (N, 2), pixels (x, y).
        kept: (N,) bool, landmarks that take part in the fits.

    Returns:
        Infinite where the others do not determine the transform.
    """
    residuals = np.full(len(fixed), np.inf)
    for index in range(len(fixed)):
        others = kept.copy()
        others[index] = False
        try:
            transform = fitter(fixed[others], moving[others])
        except InputError:  # the others are too few or collinear: the residual stays infinite
            continue
        mapped = transform.map(fixed[index : index + 1])
        residuals[index] = np.linalg.norm(mapped - moving[index])
    return residuals


def _fit_affine(fixed: np.ndarray, moving: np.ndarray) -> Transform:
    """Least-squares affine; points (N, 2), N >= 3."""
    return MatrixTransform(fit_affine(fixed, moving))


def _fit_homography(fixed: np.ndarray, moving: np.ndarray) -> Transform:
    """Homography with the least squared residuals in the moving image; points (N, 2), N >= 4.

    Raises:
        InputError: the points do not determine it.
    """
    H, _ = cv2.findHomography(fixed, moving, 0)
    if H is None or not np.isfinite(H).all():
        raise InputError("the landmarks do not determine a homography; spread them more widely.")
    return MatrixTransform(H, "homography")


def _fit_quadratic(fixed: np.ndarray, moving: np.ndarray) -> Transform:
    """Least-squares quadratic map; points (N, 2), N >= 6."""
    H_fixed_to_unit = unit_frame(fixed)
    design = quadratic_terms(warp_points(fixed, H_fixed_to_unit))
    coefficients = np.linalg.lstsq(design, moving, rcond=None)[0]
    return QuadraticTransform(H_fixed_to_unit, coefficients.T)


# Least-squares fit of each kind, and the number of different points that it needs.
FITTERS: dict[str, tuple[Fitter, int]] = {
    "affine": (_fit_affine, 3),
    "homography": (_fit_homography, 4),
    "quadratic": (_fit_quadratic, 6),
}
