"""Register a pair in three ways, and accept the result only if all three agree.

A pair without landmarks has no known error. A wrong registration is found out by repeating it under
conditions that do not change the true transform but change the matches: with fixed and moving
image exchanged, and with the moving image turned. Matches that are right lead to the same transform
again; accidental ones do not. (Forward-backward consistency: Kalal, Mikolajczyk & Matas, ICPR 2010,
there for tracks.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from geometry.accuracy import REFERENCE_SIDE, to_reference_px
from geometry.estimation import Plausibility
from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import (
    Size,
    fit_within,
    resize_matrix,
    size_of_image,
    turn_about_centre,
)
from geometry.points import warp_points
from geometry.rasters import register_onto_fixed
from geometry.transforms import Transform
from registration.matcher import Matcher
from registration.pipeline import register_pair
from registration.registered_pair import Registration
from utils.errors import InputError
from utils.image_files import resize_image

TRANSFORM = "auto"  # requested of every registration
DISAGREEMENT_PERCENTILE = 95.0  # of the distances on the grid; robust to a few extrapolated points
GRID_STEPS = 32  # distance of the grid's points: this part of the long side of the fixed image
# Fewer points in both fields of view are too small an overlap to compare transforms on (3 % of the
# grid of a square image); chosen by hand.
MIN_COMMON_POINTS = 32

Register = Callable[[np.ndarray, np.ndarray], Registration]  # of a fixed and a moving image


@dataclass(frozen=True)
class ConsistencySettings:
    """When the registration of a pair without landmarks is believed.

    Attributes:
        min_confidence: least confidence of the registration of the images as they are, [0, 1].
        turn_deg: by how much the moving image is turned for the third registration, degrees. Far
            from the quarter turns that the pipeline tries itself.
        max_disagreement_px: largest distance, 95th percentile over the common field of view,
            between the transform and each of the two repetitions, moving px at 512. About twice
            the error of a good registration (2 to 4 px against landmarks), chosen by hand.
        min_tolerance_px: least tolerance of an accepted transform, fixed px at 512: two
            registrations can share an error that no repetition shows.

    Measured with the shipped weights on ``../shared/data/real_pairs`` and ``real_practice`` (30
    pairs of 27 eyes): all 30 are accepted, with a mean error of 2.1 px at 512 against the landmarks
    (largest 3.1) and a median disagreement of 0.26 px (largest 3.9). Of 40 wrong pairs (fixed image
    of one eye, moving image of another, same kind) none is accepted: a rate below 7 %, 95 %
    one-sided, if they were independent. All 40 fail at the first registration, so they say nothing
    about the two repetitions. An accepted pair takes 3.0 to 3.9 s of one core (10 pairs).
    """

    min_confidence: float = 0.8
    turn_deg: float = 40.0
    max_disagreement_px: float = 6.0
    min_tolerance_px: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise InputError(f"min_confidence {self.min_confidence}: must lie between 0 and 1.")
        if not 0 < abs(self.turn_deg) <= 180:
            raise InputError(f"turn_deg {self.turn_deg}: must lie within 180 degrees and not be 0.")
        for name in ("max_disagreement_px", "min_tolerance_px"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} {getattr(self, name)}: must be above 0 and finite.")


@dataclass(frozen=True)
class ConsistentRegistration:
    """What :func:`register_consistently` found.

    Attributes:
        accepted: whether all registrations succeeded and agree.
        reason: why it was not accepted; "" if it was.
        transform: of the images as they are, fixed to moving pixels of the files; None if that
            registration failed. Kept where a repetition disagrees.
        kind: of the transform; "" without one.
        confidence: of the registration of the images as they are, [0, 1].
        disagreement_px: the largest that was measured, moving px at 512; NaN if none was.
        tolerance_file_px: radius within which the transform is known, pixels of the fixed file; NaN
            if it was not accepted.
        points: (N, 2) float64, pixels (x, y) of the fixed file that lie in both fields of view;
            (0, 2) without a transform.
        moving_size: (height, width) of the moving file.
    """

    accepted: bool
    reason: str
    transform: Transform | None
    kind: str
    confidence: float
    disagreement_px: float
    tolerance_file_px: float
    points: np.ndarray
    moving_size: Size

    def distance_px(self, other: Transform) -> float:
        """Distance to another transform of the same pair: the median over the common field.

        Args:
            other: fixed to moving pixels of the files.

        Returns:
            moving px at 512; infinite without a transform.
        """
        if self.transform is None or not len(self.points):
            return math.inf
        distance = _distances(self.transform.map(self.points), other.map(self.points))
        return float(np.median(distance)) * to_reference_px(self.moving_size)


def register_consistently(
    matcher: Matcher,
    fixed: np.ndarray,
    moving: np.ndarray,
    settings: ConsistencySettings,
    plausibility: Plausibility | None = None,
) -> ConsistentRegistration:
    """Register a pair, then with exchanged roles, then with the moving image turned.

    It stops at the first check that fails.

    Args:
        matcher: finds the matches.
        fixed, moving: (H, W) float in [0, 1]; the sizes may differ.
        settings: limits of the checks.
        plausibility: limits on the matrices; the defaults when None.
    """
    direct = register_pair(matcher, fixed, moving, TRANSFORM, plausibility)
    transform, moving_size = direct.transform, size_of_image(moving)
    points, disagreement = np.zeros((0, 2)), math.nan
    reason, tolerance_file_px = "", math.nan
    if transform is not None:
        points = common_points(fixed, moving, transform)
    if transform is None:
        reason = f"failed: {direct.reason}"
    elif direct.confidence < settings.min_confidence:
        reason = f"confidence {direct.confidence:.3g} below {settings.min_confidence:g}"
    elif len(points) < MIN_COMMON_POINTS:
        reason = "the fields of view have too little in common"
    else:
        disagreement, reason = _compare(
            matcher, fixed, moving, transform.map(points), points, settings, plausibility
        )
    if transform is not None and not reason:
        least = settings.min_tolerance_px * max(fixed.shape) / REFERENCE_SIDE
        tolerance_file_px = max(_tolerance(transform, points, disagreement, moving_size), least)
    return ConsistentRegistration(
        accepted=not reason,
        reason=reason,
        transform=transform,
        kind="" if transform is None else transform.kind,
        confidence=float(direct.confidence),
        disagreement_px=disagreement,
        tolerance_file_px=tolerance_file_px,
        points=points,
        moving_size=moving_size,
    )


def _compare(
    matcher: Matcher,
    fixed: np.ndarray,
    moving: np.ndarray,
    mapped: np.ndarray,
    points: np.ndarray,
    settings: ConsistencySettings,
    plausibility: Plausibility | None,
) -> tuple[float, str]:
    """Repeat the registration and compare it at ``points``, which it took to ``mapped``.

    Returns:
        The largest disagreement, moving px at 512, NaN if none was measured; and why the
        registration is not accepted, "" if it is.
    """
    disagreement = math.nan

    def register(first: np.ndarray, second: np.ndarray) -> Registration:
        return register_pair(matcher, first, second, TRANSFORM, plausibility)

    for repeat, name, disagrees in (
        (partial(_map_swapped, register), "swapped images", "disagree"),
        (partial(_map_turned, register, settings.turn_deg), "turned image", "disagrees"),
    ):
        again = repeat(fixed, moving, points)
        if isinstance(again, str):
            return disagreement, f"{name}: failed: {again}"
        distance = _disagreement(mapped, again) * to_reference_px(size_of_image(moving))
        disagreement = float(np.fmax(disagreement, distance))
        if not distance <= settings.max_disagreement_px:
            return disagreement, f"{name} {disagrees} by {distance:.3g} px"
    return disagreement, ""


def common_points(fixed: np.ndarray, moving: np.ndarray, transform: Transform) -> np.ndarray:
    """Points of a grid on the fixed image that lie in both fields of view.

    Args:
        fixed, moving: (H, W) float in [0, 1].
        transform: fixed to moving pixels.

    Returns:
        (N, 2) float64, fixed pixels (x, y).
    """
    step = max(1.0, max(fixed.shape) / GRID_STEPS)
    xs, ys = (np.arange(step / 2, side, step) for side in fixed.shape[::-1])
    points = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    points = points[_in_field(fixed, points)]
    return points[_in_field(moving, transform.map(points))]


def _in_field(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether points (N, 2) lie in the field of view, which is estimated at the reference size."""
    size = size_of_image(image)
    small = fit_within(size, int(REFERENCE_SIDE)) if max(size) > REFERENCE_SIDE else size
    seen = estimate_field_of_view(resize_image(image, small) if small != size else image)
    places = warp_points(points, resize_matrix(size, small))
    known = np.isfinite(places).all(axis=1)
    columns, rows = np.round(np.where(known[:, None], places, -1.0)).astype(int).T
    inside = known & (columns >= 0) & (columns < small[1]) & (rows >= 0) & (rows < small[0])
    inside[inside] = seen[rows[inside], columns[inside]]
    return inside


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances (N,) of points (N, 2); infinite where a transform has no counterpart."""
    return np.nan_to_num(np.linalg.norm(a - b, axis=1), nan=np.inf)


def _disagreement(a: np.ndarray, b: np.ndarray) -> float:
    """Percentile of the distances of points (N, 2); infinite if too many have no counterpart."""
    # Interpolation between infinite distances would give NaN, which no limit refuses.
    return float(np.percentile(_distances(a, b), DISAGREEMENT_PERCENTILE, method="higher"))


def _map_swapped(
    register: Register, fixed: np.ndarray, moving: np.ndarray, points: np.ndarray
) -> np.ndarray | str:
    """Points (N, 2) mapped by the inverse of the registration with exchanged roles; or why not."""
    found = register(moving, fixed)
    return found.reason if found.transform is None else found.transform.map_back(points)


def _map_turned(
    register: Register,
    turn_deg: float,
    fixed: np.ndarray,
    moving: np.ndarray,
    points: np.ndarray,
) -> np.ndarray | str:
    """Points (N, 2) mapped into the turned moving image and turned back; or why it failed."""
    H_moving_to_turned, canvas = turn_about_centre(size_of_image(moving), turn_deg)
    H_turned_to_moving = np.linalg.inv(H_moving_to_turned)
    turned = register_onto_fixed(moving, H_turned_to_moving, canvas)
    found = register(fixed, turned)
    if found.transform is None:
        return found.reason
    return warp_points(found.transform.map(points), H_turned_to_moving)


def _tolerance(
    transform: Transform,
    points: np.ndarray,
    disagreement_px: float,
    moving_size: Size,
) -> float:
    """The disagreement (moving px at 512) in pixels of the fixed file, by the local scale."""
    scale = math.sqrt(float(np.median(np.abs(np.linalg.det(transform.jacobian(points))))))
    return disagreement_px / to_reference_px(moving_size) / scale
