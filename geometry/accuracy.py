"""How far a transform is from the truth: errors of one pair, in px at 512."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geometry.matrices import Size
from geometry.points import image_corners, warp_points
from geometry.transforms import Transform, as_transform

REFERENCE_SIDE = 512.0


@dataclass(frozen=True)
class PairError:
    """Errors of one pair, px at 512; all infinite when the registration failed."""

    mean: float
    median: float
    max: float


FAILED = PairError(float("inf"), float("inf"), float("inf"))


def to_reference_px(moving_size: Size) -> float:
    """Factor from moving pixels to px at 512; ``moving_size`` is (height, width)."""
    return REFERENCE_SIDE / max(moving_size)


def pair_error(
    fix_to_mov: np.ndarray | Transform | None,
    fixed_landmarks: np.ndarray,
    moving_landmarks: np.ndarray,
    moving_size: Size,
) -> PairError:
    """Transfer error of landmarks.

    Convention: fixed landmarks are mapped into the moving image and compared with the moving ones there.

    Args:
        fix_to_mov: ``H_fix_to_mov`` (3, 3) or a transform; None for a failed registration.
        fixed_landmarks, moving_landmarks: (N, 2) pixels of each image.
        moving_size: (height, width) of the moving image.
    """
    if fix_to_mov is None:
        return FAILED
    distance = np.linalg.norm(
        as_transform(fix_to_mov).map(fixed_landmarks) - moving_landmarks, axis=1
    )
    distance = distance * to_reference_px(moving_size)
    return PairError(float(distance.mean()), float(np.median(distance)), float(distance.max()))


def corner_error(
    H_estimated: np.ndarray | None, H_true: np.ndarray, fixed_size: Size, moving_size: Size
) -> float:
    """Mean distance of the fixed image's corners under both matrices, px at 512; infinite when failed."""
    corners = image_corners(fixed_size)
    return pair_error(H_estimated, corners, warp_points(corners, H_true), moving_size).mean
