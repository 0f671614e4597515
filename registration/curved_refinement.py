"""What an affine matrix leaves, taken up by a richer transform where the images bear it out.

    affine -> small patches of the ridge maps are looked for near where it puts them -> quadratic map through what was found,
    twice -> patches again -> smooth displacement on top

Every step re-matches under the estimate so far, so the region in which patches are found grows towards the border. A richer
transform is kept only where it predicts patches that it was not fitted to better than the simpler one.

All points and matrices are in working pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geometry.curved_transforms import DeformableTransform
from geometry.matrices import Size
from geometry.transforms import MatrixTransform, Transform
from registration.displacement_fits import (
    CLIP_PX,
    Basis,
    Lattice,
    affine_basis,
    bent,
    blocks_across,
    blocks_of,
    fit_displacement,
    gain_of,
    held_out_residuals,
    quadratic_basis,
    residuals_of,
    robust_weights,
    unit_frame,
)
from registration.patches import LocalMatches, find_local_matches, relative_to
from registration.ridges import RidgePair

LEAST_PATCHES = 30
SEARCH_RADII_PX = (12, 7)  # of the rounds of the quadratic map
DEFORMABLE_SEARCH_PX = 6
STIFFNESSES = (30.0, 100.0, 300.0, 1000.0)
SMALL_BLOCK_PX = 32.0  # where the displacement is: as wide as a patch
LEAST_GAIN, LEAST_SIGNIFICANCE = 0.05, 2.5
LEAST_JACOBIAN = 0.3  # relative to the simpler transform: less is on the way to folding


class Choice(NamedTuple):
    """The transform that was chosen, in working pixels, and why."""

    transform: Transform
    reason: str


# --- estimation ------------------------------------------------------------------------------------------------------


def estimate_quadratic(ridges: RidgePair, H_affine: np.ndarray) -> Choice:
    """A quadratic map, or the affine one with the reason why it is kept."""
    base = MatrixTransform(H_affine)
    transform: Transform = base
    for search_px in SEARCH_RADII_PX:
        matches = relative_to(base, transform, find_local_matches(ridges, transform, search_px))
        if len(matches.points) < LEAST_PATCHES:
            return Choice(
                base,
                f"affine: only {len(matches.points)} patches were found again (at least {LEAST_PATCHES} needed)",
            )
        H_fixed_to_unit = unit_frame(matches.points)
        basis = quadratic_basis(matches.points, H_fixed_to_unit)
        weights = robust_weights(basis, matches)
        transform = bent(H_affine, H_fixed_to_unit, fit_displacement(basis, matches, weights))
    blocks, straight = blocks_across(matches.points), affine_basis(matches.points)
    simple = min(
        np.minimum(_lengths(matches), CLIP_PX),
        held_out_residuals(straight, matches, robust_weights(straight, matches), blocks),
        key=lambda residuals: (residuals**2).mean(),
    )
    rich = held_out_residuals(basis, matches, weights, blocks)
    return _chosen(base, transform, gain_of(simple, rich, blocks), ridges.ridges[0].shape)


def _chosen(simple: Transform, rich: Transform, gain: tuple[float, float], size: Size) -> Choice:
    """The richer transform where it predicts held-out patches better and does not come near folding."""
    share, sure = gain
    saves = f"saves {share:.0%} of the mean squared residual of held-out patches ({sure:.1f} standard errors)"
    if share < LEAST_GAIN or sure < LEAST_SIGNIFICANCE:
        return Choice(simple, f"{simple.kind}: the {rich.kind} map {saves}, too little")
    bends = rich.least_jacobian(size) / abs(np.linalg.det(simple.near_matrix()[:2, :2]))
    if not bends > LEAST_JACOBIAN:
        return Choice(
            simple,
            f"{simple.kind}: the {rich.kind} map comes near folding (least relative Jacobian {bends:.2f})",
        )
    return Choice(rich, f"{rich.kind}: it {saves}")


def estimate_deformable(ridges: RidgePair, base: Transform) -> Choice:
    """A smooth displacement on top of a transform, or the transform itself with the reason why it is kept."""
    matches = find_local_matches(ridges, base, DEFORMABLE_SEARCH_PX)
    if len(matches.points) < LEAST_PATCHES:
        return Choice(
            base,
            f"{base.kind}: only {len(matches.points)} patches were found again (at least {LEAST_PATCHES} needed)",
        )
    lattice, size = Lattice.over(ridges.ridges[0].shape), ridges.ridges[0].shape
    design, bending = lattice.design(matches.points), lattice.bending()
    bases = [Basis(design, stiffness * bending) for stiffness in STIFFNESSES]
    weights = robust_weights(bases[-1], matches)
    blocks = blocks_of(matches.points, SMALL_BLOCK_PX)
    held_out = [held_out_residuals(basis, matches, weights, blocks) for basis in bases]
    best = min(range(len(bases)), key=lambda index: (held_out[index] ** 2).mean())
    rich = DeformableTransform(
        base,
        lattice.H_fixed_to_lattice,
        lattice.controls(fit_displacement(bases[best], matches, weights)),
    )
    still = np.minimum(_lengths(matches), CLIP_PX)
    return _chosen(base, rich, gain_of(still, held_out[best], blocks), size)


def _lengths(matches: LocalMatches) -> np.ndarray:
    """Residuals (N,) of no displacement at all."""
    return residuals_of(
        np.zeros_like(matches.displacements), matches.displacements, matches.information
    )


def estimate_beyond_affine(ridges: RidgePair, H_affine: np.ndarray, asked: str) -> Choice:
    """The transform that was asked for, as far as the images bear it out.

    Args:
        ridges: of both working images.
        H_affine: (3, 3), working pixels.
        asked: "quadratic", or "deformable" or "auto": a displacement on top of whichever of affine and quadratic is chosen.
    """
    choice = estimate_quadratic(ridges, H_affine)
    if asked == "quadratic":
        return choice
    refined = estimate_deformable(ridges, choice.transform)
    return Choice(refined.transform, f"{choice.reason}; {refined.reason}")
