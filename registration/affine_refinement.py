"""Refine an affine matrix: maximise the correlation of the ridge maps from several starts.

1. ECC on the whole maps.
2. Least squares on local patches, which has a wider basin of convergence, then ECC again.
3. ECC on blurred maps, then on sharp ones, where the patches do not improve the matrix.
4. Steps 2 and 3 again while the agreement of the maps rises.
5. ECC until convergence, once the agreement is high enough.

The result of step 2 or 3 is accepted only if the agreement of the whole maps rises by ``min_rise``
and reaches ``high_agreement``, which images of different eyes rarely reach. The result of step 1 is
always kept; step 5 may lose at most ``final_max_loss``.

Convention: all matrices are (3, 3), fixed to moving working pixels, (x, y).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from geometry.points import corner_shift
from geometry.transforms import MatrixTransform
from registration.displacement_fits import fit_displacement, robust_weights
from registration.displacement_models import affine_basis
from registration.patches import PATCHES, find_local_matches
from registration.ridges import RidgePair


@dataclass(frozen=True)
class AffineRefinementConstants:
    """Constants of the refinement; chosen by hand. Agreements are standard deviations."""

    max_steps: int = 4  # accepted steps
    min_rise: float = 0.05  # of the agreement, of an accepted step
    near_agreement: float = 3.0  # agreement of maps that are a few pixels off
    high_agreement: float = 5.0  # agreement that images of different eyes hardly reach
    patch_search_px: int = 12  # search range of the patches
    patch_rounds: int = 5  # rounds of patches
    patch_trial_rounds: int = 3  # the remaining rounds run only if these reach near_agreement
    converged_px: float = 1.0  # shift of the corners that ends the rounds of patches
    blur_px: int = 9  # side of the Gaussian kernel for the blurred maps
    # Final ECC: with little overlap the correlation is nearly flat and rises slowly.
    final_min_gain: float = 1e-6  # gain in correlation per iteration at which ECC stops
    final_rounds: int = 8  # restarts of ECC
    final_converged_px: float = 0.1  # shift of the corners that ends the restarts
    final_max_correction_px: float = 24.0  # largest shift of a corner per restart
    # Allowed loss in the final ECC: the agreement is measured at half resolution, less precisely
    # than the correlation that ECC maximises.
    final_max_loss: float = 0.25


AFFINE = AffineRefinementConstants()


def refine_affine(ridges: RidgePair, H_fix_to_mov: np.ndarray) -> np.ndarray:
    """Affine matrix (3, 3) with the highest agreement that the search from a start finds.

    Args:
        ridges: of both working images.
        H_fix_to_mov: (3, 3), the start, working pixels.
    """
    best = ridges.refine(H_fix_to_mov, "affine")
    agreement = ridges.agreement(best)
    for _ in range(AFFINE.max_steps):
        for H_moved in _steps(ridges, best, agreement):
            moved_agreement = ridges.agreement(H_moved)
            if moved_agreement >= max(agreement + AFFINE.min_rise, AFFINE.high_agreement):
                best, agreement = H_moved, moved_agreement
                break
        else:
            break
    if agreement < AFFINE.high_agreement:
        return best
    converged = maximise_correlation(ridges, best)
    lost = ridges.agreement(converged) < agreement - AFFINE.final_max_loss
    return best if lost else converged


def _steps(ridges: RidgePair, H_fix_to_mov: np.ndarray, agreement: float) -> Iterator[np.ndarray]:
    """Matrices (3, 3) from further searches, each computed when the iterator reaches it."""
    size = ridges.fixed_size
    by_patches = fit_patches(ridges, H_fix_to_mov)
    if corner_shift(H_fix_to_mov, by_patches, size) >= AFFINE.converged_px:
        yield ridges.refine(by_patches, "affine")
    if agreement >= AFFINE.near_agreement:
        blurred = ridges.refine(H_fix_to_mov, "affine", AFFINE.blur_px)
        if corner_shift(H_fix_to_mov, blurred, size) >= AFFINE.converged_px:
            yield ridges.refine(blurred, "affine")


def fit_patches(ridges: RidgePair, H_fix_to_mov: np.ndarray) -> np.ndarray:
    """Fit an affine matrix to located patches, repeatedly, until it converges.

    Args:
        ridges: of both working images.
        H_fix_to_mov: (3, 3), the start, working pixels.

    Returns:
        (3, 3); the start where too few patches are found or the agreement stays low.
    """
    current = H_fix_to_mov
    for number in range(AFFINE.patch_rounds):
        if (
            number == AFFINE.patch_trial_rounds
            and ridges.agreement(current) < AFFINE.near_agreement
        ):
            return H_fix_to_mov
        matches = find_local_matches(ridges, MatrixTransform(current), AFFINE.patch_search_px)
        if len(matches.points) < PATCHES.min_matches:
            return H_fix_to_mov
        basis, H_correction = affine_basis(matches.points), np.eye(3)
        coefficients = fit_displacement(basis, matches, robust_weights(basis, matches))
        # Coefficients of 1, x, y to the columns x, y, 1 of a matrix.
        H_correction[:2] += coefficients.T[:, [1, 2, 0]]
        before, current = current, current @ H_correction
        if corner_shift(before, current, ridges.fixed_size) < AFFINE.converged_px:
            break
    return current


def maximise_correlation(ridges: RidgePair, H_fix_to_mov: np.ndarray) -> np.ndarray:
    """Restart ECC until no corner moves any more; returns the matrix (3, 3).

    Args:
        ridges: of both working images.
        H_fix_to_mov: (3, 3), the start, working pixels.
    """
    current = H_fix_to_mov
    for _ in range(AFFINE.final_rounds):
        before = current
        current = ridges.refine(
            before,
            "affine",
            min_gain=AFFINE.final_min_gain,
            max_correction_px=AFFINE.final_max_correction_px,
        )
        if corner_shift(before, current, ridges.fixed_size) < AFFINE.final_converged_px:
            break
    return current
