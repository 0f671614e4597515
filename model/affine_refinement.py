"""The last pixels of an affine matrix: whatever makes the ridge maps of both images agree better.

    correlation of the whole maps -> small patches found again, which reach further -> correlation again -> ...
    where that gains nothing: correlation of blurred maps, which reaches further too

A step is kept where the agreement of the whole maps rises, and only to a height that maps of different eyes hardly reach: so a
wrong matrix is not made to look better.

All points and matrices are in working pixels.
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from model.beyond_affine import LEAST_PATCHES, affine_basis, fit_displacement, robust_weights
from model.local_matches import find_local_matches
from model.refinement import RidgePair
from utils.geometry import warp_points
from utils.metrics import image_corners
from utils.transforms import MatrixTransform

SEARCH_PX = 12
PATCH_ROUNDS, TRIAL_ROUNDS, SETTLED_PX = 5, 3, 1.0
BLUR_PX = 9
MAX_STEPS = 4
LEAST_RISE = 0.05
NEAR, BELIEVED = 3.0, 5.0  # agreement of maps that are a few pixels off, and such as those of different eyes hardly reach


def refine_affine(ridges: RidgePair, H_fix_to_mov: np.ndarray) -> np.ndarray:
    """The affine matrix (3, 3) near a given one under which the ridge maps agree best."""
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
    return ridges.refine(best, "affine", thorough=True) if agreement >= BELIEVED else best


def _moves(ridges: RidgePair, H_fix_to_mov: np.ndarray, agreement: float) -> Iterator[np.ndarray]:
    """Matrices (3, 3) that further searches from a given one lead to; each is computed when it is asked for."""
    corners = image_corners(ridges.ridges[0].shape)

    def moved(H_moved: np.ndarray) -> bool:
        return np.linalg.norm(warp_points(corners, H_moved) - warp_points(corners, H_fix_to_mov), axis=1).max() >= SETTLED_PX
    by_patches = follow_patches(ridges, H_fix_to_mov)
    if moved(by_patches):
        yield ridges.refine(by_patches, "affine")
    if agreement >= NEAR:
        blurred = ridges.refine(H_fix_to_mov, "affine", BLUR_PX)
        if moved(blurred):
            yield ridges.refine(blurred, "affine")


def follow_patches(ridges: RidgePair, H_fix_to_mov: np.ndarray) -> np.ndarray:
    """Fit an affine matrix to patches found again near a given one, and again near that, until it stays or leads nowhere."""
    transform, corners = MatrixTransform(H_fix_to_mov), image_corners(ridges.ridges[0].shape)
    for number in range(PATCH_ROUNDS):
        if number == TRIAL_ROUNDS and ridges.agreement(transform.H_fix_to_mov) < NEAR:
            break
        matches = find_local_matches(ridges, transform, SEARCH_PX)
        if len(matches.points) < LEAST_PATCHES:
            break
        basis, H_correction = affine_basis(matches.points), np.eye(3)
        H_correction[:2] += fit_displacement(basis, matches, robust_weights(basis, matches)).T[:, [1, 2, 0]]
        before, transform = transform, MatrixTransform(transform.H_fix_to_mov @ H_correction)
        if np.linalg.norm(transform.map(corners) - before.map(corners), axis=1).max() < SETTLED_PX:
            break
    return transform.H_fix_to_mov
