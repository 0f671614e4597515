"""The last pixels of an affine matrix: whatever makes the ridge maps of both images agree better.

    correlation of the whole maps
    -> small patches found again, which reach further, then correlation again; again from there, while the agreement rises
    -> where patches gain nothing, and little can be missing: correlation of blurred maps, then of sharp ones
    -> once the agreement is believed: correlation until nothing moves

A further search counts only where the agreement of the whole maps rises to what those of different eyes hardly reach: so a wrong
matrix is not made to look better.

All matrices are in working pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from geometry.points import corner_shift
from geometry.transforms import MatrixTransform
from registration.curved_refinement import LEAST_PATCHES
from registration.displacement_fits import affine_basis, fit_displacement, robust_weights
from registration.patches import find_local_matches
from registration.ridges import RidgePair

PATCH_SEARCH_PX = 12  # of patches
PATCH_ROUNDS, TRIAL_ROUNDS = 5, 3  # the last ones only where the first have led somewhere
SETTLED_PX = 1.0  # shift of the corners that is no longer worth a round of patches
BLUR_PX = 9  # side of the kernel
MAX_STEPS = 4
LEAST_RISE = 0.05  # of the agreement
NEAR, BELIEVED = (
    3.0,
    5.0,
)  # agreement of maps that are a few pixels off, and such as those of different eyes hardly reach
# Where little overlaps, the correlation is flat along what the overlap leaves open, and rises slowly.
THOROUGH_GAIN, THOROUGH_ROUNDS, THOROUGH_SETTLED_PX, THOROUGH_FARTHEST_PX = 1e-6, 8, 0.1, 24.0
MOST_LOST = (
    0.25  # of the agreement: it is measured less finely than the correlation that is maximised
)


def refine_affine(ridges: RidgePair, H_fix_to_mov: np.ndarray) -> np.ndarray:
    """The affine matrix (3, 3) to which searches from a given one lead; see the module's text."""
    best = ridges.refine(H_fix_to_mov, "affine")
    agreement = ridges.agreement(best)
    for _ in range(MAX_STEPS):
        for H_moved in _moves(ridges, best, agreement):
            risen = ridges.agreement(H_moved)
            if risen >= max(agreement + LEAST_RISE, BELIEVED):
                best, agreement = H_moved, risen
                break
        else:
            break
    if agreement < BELIEVED:
        return best
    settled = settle(ridges, best)
    return settled if ridges.agreement(settled) >= agreement - MOST_LOST else best


def _moves(ridges: RidgePair, H_fix_to_mov: np.ndarray, agreement: float) -> Iterator[np.ndarray]:
    """Matrices (3, 3) that further searches from a given one lead to; each is computed when it is asked for."""
    size = ridges.ridges[0].shape
    by_patches = follow_patches(ridges, H_fix_to_mov)
    if corner_shift(H_fix_to_mov, by_patches, size) >= SETTLED_PX:
        yield ridges.refine(by_patches, "affine")
    if agreement >= NEAR:
        blurred = ridges.refine(H_fix_to_mov, "affine", BLUR_PX)
        if corner_shift(H_fix_to_mov, blurred, size) >= SETTLED_PX:
            yield ridges.refine(blurred, "affine")


def follow_patches(ridges: RidgePair, H_fix_to_mov: np.ndarray) -> np.ndarray:
    """Fit an affine matrix to patches found again near a given one, and again near that, until it stays.

    Returns:
        The given matrix where there are too few patches, or where they lead nowhere.
    """
    transform = MatrixTransform(H_fix_to_mov)
    for number in range(PATCH_ROUNDS):
        if number == TRIAL_ROUNDS and ridges.agreement(transform.H_fix_to_mov) < NEAR:
            return H_fix_to_mov
        matches = find_local_matches(ridges, transform, PATCH_SEARCH_PX)
        if len(matches.points) < LEAST_PATCHES:
            return H_fix_to_mov
        basis, H_correction = affine_basis(matches.points), np.eye(3)
        H_correction[:2] += fit_displacement(basis, matches, robust_weights(basis, matches)).T[
            :, [1, 2, 0]
        ]
        before, transform = transform, MatrixTransform(transform.H_fix_to_mov @ H_correction)
        if (
            corner_shift(before.H_fix_to_mov, transform.H_fix_to_mov, ridges.ridges[0].shape)
            < SETTLED_PX
        ):
            break
    return transform.H_fix_to_mov


def settle(ridges: RidgePair, H_fix_to_mov: np.ndarray) -> np.ndarray:
    """Maximise the correlation of the ridge maps until no corner moves any more."""
    for _ in range(THOROUGH_ROUNDS):
        before, H_fix_to_mov = (
            H_fix_to_mov,
            ridges.refine(
                H_fix_to_mov, "affine", least_gain=THOROUGH_GAIN, farthest_px=THOROUGH_FARTHEST_PX
            ),
        )
        if corner_shift(before, H_fix_to_mov, ridges.ridges[0].shape) < THOROUGH_SETTLED_PX:
            break
    return H_fix_to_mov
