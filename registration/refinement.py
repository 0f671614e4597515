"""Refine the matrix of a candidate on the ridge maps of the full-size working images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geometry.estimation import Plausibility, implausibility_reason
from geometry.matrices import compose
from geometry.points import warp_points
from registration.affine_refinement import refine_affine
from registration.guided_fit import Candidate
from registration.matcher import MatchSettings
from registration.ridges import RidgePair

# Significance of guided matches, standard deviations. Above this, one ECC pass suffices; skip the
# wide search. Chosen by hand.
HIGH_SIGNIFICANCE = 12.0


class RefinedMatrix(NamedTuple):
    """A matrix in two pairs of frames.

    Attributes:
        H_fix_to_mov: (3, 3), original pixels.
        H_working: (3, 3), pixels of the full-size working images, in which the ridge maps are.
    """

    H_fix_to_mov: np.ndarray
    H_working: np.ndarray


def refine_matrix(
    candidate: Candidate,
    ridges: RidgePair,
    matrix_kind: str,
    settings: MatchSettings,
    plausibility: Plausibility,
) -> RefinedMatrix | None:
    """The matrix of a candidate, refined on the ridge maps if the settings say so.

    Args:
        candidate: its matches may be those of rotated or smaller copies.
        ridges: of the full-size working images.
        matrix_kind: "similarity", "affine" or "homography".
        settings: of the matcher.
        plausibility: limits on the refined matrix; beyond them the unrefined one is kept.

    Returns:
        The matrix; None if the candidate has none.
    """
    matches, H_matched = candidate.matches, candidate.estimate.H_fix_to_mov
    if H_matched is None:
        return None
    H_fixed_to_matched = matches.fixed.frame.H_image_to_working
    H_moving_to_matched = matches.moving.frame.H_image_to_working
    H_fix_to_mov = compose(H_fixed_to_matched, H_matched, np.linalg.inv(H_moving_to_matched))
    H_fixed_to_working, H_moving_to_working = ridges.H_images_to_working
    H_working = compose(np.linalg.inv(H_fixed_to_working), H_fix_to_mov, H_moving_to_working)
    if settings.refine:
        guided = matches.fixed_descriptors is not None
        precise = guided and candidate.significance >= HIGH_SIGNIFICANCE
        if matrix_kind == "affine" and not precise:
            refined = refine_affine(ridges, H_working)
        else:
            refined = ridges.refine(H_working, matrix_kind)
        inlier_points = warp_points(
            matches.fixed_points[candidate.estimate.inliers],
            compose(np.linalg.inv(H_fixed_to_matched), H_fixed_to_working),
        )
        if not implausibility_reason(
            refined, inlier_points, len(inlier_points), ridges.fixed_size, plausibility
        ):
            H_working = refined
        H_fix_to_mov = compose(H_fixed_to_working, H_working, np.linalg.inv(H_moving_to_working))
    return RefinedMatrix(H_fix_to_mov=H_fix_to_mov / H_fix_to_mov[2, 2], H_working=H_working)
