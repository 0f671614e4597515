"""Refine an affine matrix by a quadratic transform and a smooth displacement on top.

1. Patches of the ridge maps are located under the affine matrix.
2. A quadratic transform is fitted to them; again with patches located under that transform.
3. Patches are located under the chosen transform; a smooth displacement is fitted on top.

Each round locates patches under the current estimate, so their region grows towards the border. A
richer transform is chosen only if it predicts held-out patches better than the simpler one.

Convention: all points and matrices are working pixels, (x, y).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geometry.curved_transforms import DeformableTransform, unit_frame
from geometry.matrices import Size
from geometry.transforms import MatrixTransform, Transform
from registration.displacement_fits import (
    Basis,
    Gain,
    blocks_across,
    blocks_of,
    fit_displacement,
    gain_of,
    held_out_residuals,
    robust_weights,
    zero_residuals,
)
from registration.displacement_models import (
    Lattice,
    affine_basis,
    quadratic_basis,
    quadratic_transform,
)
from registration.patches import PATCHES, LocalMatches, find_local_matches, relative_to
from registration.ridges import RidgePair


@dataclass(frozen=True)
class CurvedRefinementConstants:
    """Constants of the curved transforms and of the choice between them; chosen by hand."""

    quadratic_search_px: tuple[int, ...] = (12, 7)  # search range in each round
    deformable_search_px: int = 6  # search range for the smooth displacement
    stiffnesses: tuple[float, ...] = (30.0, 100.0, 300.0, 1000.0)  # weights of the bending penalty
    deformable_block_px: float = 32.0  # side of the held-out blocks: about the width of a patch
    min_gain: float = 0.05  # relative reduction of the mean squared held-out residual
    min_gain_significance: float = 2.5  # standard errors of that reduction
    min_jacobian: float = 0.3  # relative to the simpler transform; 0 means folding


CURVED = CurvedRefinementConstants()


class TransformChoice(NamedTuple):
    """The chosen transform, and the reason for the choice."""

    transform: Transform
    reason: str


class _QuadraticFit(NamedTuple):
    """A quadratic transform with the data of its last fit; ``weights`` (N,) in [0, 1]."""

    transform: Transform
    matches: LocalMatches
    basis: Basis
    weights: np.ndarray


def estimate_quadratic(ridges: RidgePair, H_affine: np.ndarray) -> TransformChoice:
    """A quadratic transform, or the affine one with the reason why it is kept.

    Args:
        ridges: of both working images.
        H_affine: (3, 3), working pixels.
    """
    base = MatrixTransform(H_affine)
    fit = _fit_quadratic(ridges, base)
    if isinstance(fit, TransformChoice):
        return fit
    blocks, affine = blocks_across(fit.matches.points), affine_basis(fit.matches.points)
    simple = min(
        zero_residuals(fit.matches),
        held_out_residuals(affine, fit.matches, robust_weights(affine, fit.matches), blocks),
        key=lambda residuals: (residuals**2).mean(),
    )
    rich = held_out_residuals(fit.basis, fit.matches, fit.weights, blocks)
    return choose_richer(base, fit.transform, gain_of(simple, rich, blocks), ridges.fixed_size)


def _fit_quadratic(ridges: RidgePair, base: MatrixTransform) -> _QuadraticFit | TransformChoice:
    """The fit of the last round; the choice of the affine transform where patches are too few."""
    transform: Transform = base
    fit = None
    for search_px in CURVED.quadratic_search_px:
        matches = relative_to(base, transform, find_local_matches(ridges, transform, search_px))
        if len(matches.points) < PATCHES.min_matches:
            return _too_few_patches(base, len(matches.points))
        H_fixed_to_unit = unit_frame(matches.points)
        basis = quadratic_basis(matches.points, H_fixed_to_unit)
        weights = robust_weights(basis, matches)
        transform = quadratic_transform(
            base.H_fix_to_mov, H_fixed_to_unit, fit_displacement(basis, matches, weights)
        )
        fit = _QuadraticFit(transform=transform, matches=matches, basis=basis, weights=weights)
    assert fit is not None
    return fit


def _too_few_patches(base: Transform, n_patches: int) -> TransformChoice:
    return TransformChoice(
        base,
        f"{base.kind}: only {n_patches} patches were found again (at least {PATCHES.min_matches} "
        "needed)",
    )


def choose_richer(
    simple: Transform, rich: Transform, gain: Gain, fixed_size: Size
) -> TransformChoice:
    """The richer transform if it predicts held-out patches better and is far from folding.

    Args:
        simple, rich: the two transforms, working pixels.
        gain: of the richer one.
        fixed_size: (height, width) of the fixed working image.
    """
    saves = (
        f"saves {gain.share:.0%} of the mean squared residual of held-out patches "
        f"({gain.significance:.1f} standard errors)"
    )
    if gain.share < CURVED.min_gain or gain.significance < CURVED.min_gain_significance:
        return TransformChoice(simple, f"{simple.kind}: the {rich.kind} map {saves}, too little")
    determinant = np.linalg.det(simple.approximate_matrix()[:2, :2])
    relative = rich.least_jacobian(fixed_size) / abs(determinant)
    if not relative > CURVED.min_jacobian:
        return TransformChoice(
            simple,
            f"{simple.kind}: the {rich.kind} map comes near folding (least relative Jacobian "
            f"{relative:.2f})",
        )
    return TransformChoice(rich, f"{rich.kind}: it {saves}")


def estimate_deformable(ridges: RidgePair, base: Transform) -> TransformChoice:
    """A smooth displacement on top of a transform, or the transform itself with the reason.

    Args:
        ridges: of both working images.
        base: between working pixels.
    """
    matches = find_local_matches(ridges, base, CURVED.deformable_search_px)
    if len(matches.points) < PATCHES.min_matches:
        return _too_few_patches(base, len(matches.points))
    lattice = Lattice.over(ridges.fixed_size)
    design, bending = lattice.design(matches.points), lattice.bending()
    bases = [Basis(design, stiffness * bending) for stiffness in CURVED.stiffnesses]
    weights = robust_weights(bases[-1], matches)
    blocks = blocks_of(matches.points, CURVED.deformable_block_px)
    held_out = [held_out_residuals(basis, matches, weights, blocks) for basis in bases]
    best = min(range(len(bases)), key=lambda index: (held_out[index] ** 2).mean())
    rich = DeformableTransform(
        base,
        lattice.H_fixed_to_lattice,
        lattice.controls(fit_displacement(bases[best], matches, weights)),
    )
    gain = gain_of(zero_residuals(matches), held_out[best], blocks)
    return choose_richer(base, rich, gain, ridges.fixed_size)


def estimate_beyond_affine(
    ridges: RidgePair, H_affine: np.ndarray, requested: str
) -> TransformChoice:
    """The requested transform, or a simpler one where held-out patches do not support it.

    Args:
        ridges: of both working images.
        H_affine: (3, 3), working pixels.
        requested: "quadratic"; "deformable" or "auto" for a displacement on top of the better of
            affine and quadratic.
    """
    choice = estimate_quadratic(ridges, H_affine)
    if requested == "quadratic":
        return choice
    refined = estimate_deformable(ridges, choice.transform)
    return TransformChoice(refined.transform, f"{choice.reason}; {refined.reason}")
