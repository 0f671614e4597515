"""The transform of a registered pair, a matrix or a curved transform that refines it."""

from __future__ import annotations

import numpy as np

from geometry.curved_transforms import CURVED_KINDS
from geometry.estimation import MATRIX_KINDS
from geometry.matrices import compose
from geometry.transforms import MatrixTransform
from registration.curved_refinement import TransformChoice, estimate_beyond_affine
from registration.ridges import RidgePair

TRANSFORMS = ("auto", *MATRIX_KINDS, *CURVED_KINDS)  # that can be requested


def matrix_kind_of(requested: str) -> str:
    """Kind of the matrix that is fitted for a requested transform; affine for curved ones."""
    return requested if requested in MATRIX_KINDS else "affine"


def choose_transform(
    ridges: RidgePair, H_fix_to_mov: np.ndarray, requested: str
) -> TransformChoice:
    """The transform of a pair in original pixels, with the reason for the choice.

    Args:
        ridges: of the full-size working images.
        H_fix_to_mov: (3, 3), original pixels.
        requested: one of ``TRANSFORMS``.
    """
    if requested in MATRIX_KINDS:
        return TransformChoice(MatrixTransform(H_fix_to_mov, requested), "")
    H_fixed_to_working, H_moving_to_working = ridges.H_images_to_working
    H_working = compose(np.linalg.inv(H_fixed_to_working), H_fix_to_mov, H_moving_to_working)
    choice = estimate_beyond_affine(ridges, H_working, requested)
    return choice._replace(
        transform=choice.transform.rescaled(H_fixed_to_working, np.linalg.inv(H_moving_to_working))
    )
