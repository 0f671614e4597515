"""How good detector and descriptors are before any transform is fitted.

The true transform of the pair must be known. All distances are in px at 512 (see
:func:`geometry.accuracy.to_reference_px`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from geometry.accuracy import to_reference_px
from geometry.matrices import Size
from geometry.points import warp_points

REPEAT_PX = 3.0  # largest distance of a repeated keypoint, px at 512 (DeTone et al., CVPRW 2018)
ACCURACY_PX = (1, 3, 5)  # thresholds of the matching accuracy, px at 512


class DetectorScores(NamedTuple):
    """Scores of the keypoints of a pair.

    Attributes:
        repeatability: share of the keypoints, of both images together, with a keypoint of the other
            image within ``REPEAT_PX`` of their place, [0, 1]; 0 without keypoints.
        localisation_px: mean distance of these keypoints from the nearest one of the other image,
            px at 512; NaN where none is repeated.
        fixed_repeated: (N,) bool, which fixed keypoints are repeated.
    """

    repeatability: float
    localisation_px: float
    fixed_repeated: np.ndarray


def detector_scores(
    fixed_keypoints: np.ndarray,
    moving_keypoints: np.ndarray,
    H_fix_to_mov: np.ndarray,
    moving_size: Size,
) -> DetectorScores:
    """Repeatability and localisation error (DeTone et al., SuperPoint, CVPRW 2018, app. A).

    Convention: ``H_fix_to_mov`` takes fixed to moving pixels, (x, y).

    Args:
        fixed_keypoints, moving_keypoints: (N, 2), (M, 2), pixels; only those whose place the other
            image shows.
        H_fix_to_mov: (3, 3), the true matrix.
        moving_size: (height, width) of the moving image.
    """
    if len(fixed_keypoints) == 0 or len(moving_keypoints) == 0:
        return DetectorScores(0.0, float("nan"), np.zeros(len(fixed_keypoints), bool))
    mapped = warp_points(np.asarray(fixed_keypoints, dtype=float), H_fix_to_mov)
    factor = to_reference_px(moving_size)
    of_fixed = factor * cKDTree(moving_keypoints).query(mapped)[0]
    of_moving = factor * cKDTree(mapped).query(moving_keypoints)[0]
    nearest = np.concatenate([of_fixed, of_moving])
    repeated = nearest <= REPEAT_PX
    localisation_px = float(nearest[repeated].mean()) if repeated.any() else float("nan")
    return DetectorScores(float(repeated.mean()), localisation_px, of_fixed <= REPEAT_PX)


def count_right_matches(
    fixed_points: np.ndarray, moving_points: np.ndarray, H_fix_to_mov: np.ndarray, moving_size: Size
) -> dict[int, int]:
    """Number of matches within each threshold of ``ACCURACY_PX`` of their true place.

    Their share of all matches of a pair is the matching accuracy (Mikolajczyk & Schmid, PAMI 2005);
    its mean over pairs is the mean matching accuracy, MMA.

    Convention: ``H_fix_to_mov`` takes fixed to moving pixels, (x, y).

    Args:
        fixed_points, moving_points: (K, 2), pixels; row i is a match.
        H_fix_to_mov: (3, 3), the true matrix.
        moving_size: (height, width) of the moving image.
    """
    mapped = warp_points(np.asarray(fixed_points, dtype=float), H_fix_to_mov)
    error = to_reference_px(moving_size) * np.linalg.norm(mapped - moving_points, axis=1)
    return {limit: int((error <= limit).sum()) for limit in ACCURACY_PX}
