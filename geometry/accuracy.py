"""Accuracy of a transform: transfer errors of one pair against landmarks or a known matrix.

Unit of all errors: "px at 512", moving pixels after scaling the moving image to a long side of 512.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geometry.matrices import Size
from geometry.points import image_corners, warp_points
from geometry.transforms import Transform, as_transform

REFERENCE_SIDE = 512.0  # long side of the moving image in which errors are given, pixels


@dataclass(frozen=True)
class PairError:
    """Errors of one pair, px at 512; all infinite when the registration failed.

    Attributes:
        mean, median, max: over the points of the pair.
    """

    mean: float
    median: float
    max: float


FAILED = PairError(float("inf"), float("inf"), float("inf"))


def to_reference_px(moving_size: Size) -> float:
    """Factor from moving pixels to px at 512.

    Args:
        moving_size: (height, width) of the moving image.
    """
    return REFERENCE_SIDE / max(moving_size)


def pair_error(
    fix_to_mov: np.ndarray | Transform | None,
    fixed_landmarks: np.ndarray,
    moving_landmarks: np.ndarray,
    moving_size: Size,
) -> PairError:
    """Transfer error of corresponding landmarks.

    Convention:
        Fixed landmarks are mapped into the moving image; distances are measured there.

    Args:
        fix_to_mov: ``H_fix_to_mov`` (3, 3) or a transform; None for a failed registration.
        fixed_landmarks, moving_landmarks: (N, 2) float64, pixels (x, y) of each image.
        moving_size: (height, width) of the moving image.

    Returns:
        The errors; :data:`FAILED` for a failed registration.
    """
    if fix_to_mov is None:
        return FAILED
    distance = np.linalg.norm(
        as_transform(fix_to_mov).map(fixed_landmarks) - moving_landmarks, axis=1
    )
    distance = distance * to_reference_px(moving_size)
    return PairError(
        mean=float(distance.mean()),
        median=float(np.median(distance)),
        max=float(distance.max()),
    )


def corner_error(
    H_estimated: np.ndarray | None, H_true: np.ndarray, fixed_size: Size, moving_size: Size
) -> float:
    """Mean distance of the mapped corners of the fixed image under two matrices.

    Convention:
        Both matrices are ``H_fix_to_mov``; distances are measured in the moving image.

    Args:
        H_estimated: (3, 3); None for a failed registration.
        H_true: (3, 3), the known matrix.
        fixed_size, moving_size: (height, width).

    Returns:
        px at 512; infinite for a failed registration.
    """
    corners = image_corners(fixed_size)
    return pair_error(H_estimated, corners, warp_points(corners, H_true), moving_size).mean
