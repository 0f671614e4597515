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

from model.local_matches import LocalMatches, find_local_matches, relative_to
from model.refinement import RidgePair
from utils.geometry import Size, warp_points
from utils.transforms import (
    DeformableTransform,
    MatrixTransform,
    QuadraticTransform,
    Transform,
    quadratic_terms,
)

LEAST_PATCHES = 30
SEARCH_RADII_PX = (12, 7)  # of the rounds of the quadratic map
DEFORMABLE_SEARCH_PX = 6
CURVATURE_SPREAD_PX = 6.0  # how large quadratic terms are at the edge of what matched, a priori
CONTROLS_ACROSS = 13  # along the long side: 40 px at the usual working size
STIFFNESSES = (30.0, 100.0, 300.0, 1000.0)
FOLDS = 5
BLOCKS_ACROSS = 6  # of what matched, where the quadratic map is tried
SMALL_BLOCK_PX = 32.0  # where the displacement is: as wide as a patch
LEAST_GAIN, LEAST_SIGNIFICANCE = 0.05, 2.5
CLIP_PX = 1.5  # residuals count at most as this much where models are compared
LEAST_JACOBIAN = 0.3  # relative to the simpler transform: less is on the way to folding


class Choice(NamedTuple):
    """The transform that was chosen, in working pixels, and why."""

    transform: Transform
    reason: str


# --- fits ------------------------------------------------------------------------------------------------------------


class Basis(NamedTuple):
    """A displacement that is linear in its coefficients.

    Attributes:
        design: (N, K) values of K functions at the points of the matches.
        penalty: (K, K) quadratic penalty on the coefficients of either component, in pixels squared.
    """

    design: np.ndarray
    penalty: np.ndarray


def fit_displacement(basis: Basis, matches: LocalMatches, weights: np.ndarray) -> np.ndarray:
    """Weighted least squares: coefficients (K, 2) of the displacement.

    Args:
        weights: (N,), beside what the matches say of their own certainty.
    """
    n_terms = basis.design.shape[1]
    normal, right = np.zeros((n_terms, 2, n_terms, 2)), np.zeros((n_terms, 2))
    for row, column in np.ndindex(2, 2):
        weighted = basis.design * (matches.information[:, row, column] * weights)[:, None]
        normal[:, row, :, column] = basis.design.T @ weighted + (row == column) * (
            basis.penalty + 1e-9 * np.eye(n_terms)
        )
        right[:, row] += weighted.T @ matches.displacements[:, column]
    return np.linalg.solve(normal.reshape(2 * n_terms, -1), right.ravel()).reshape(n_terms, 2)


def robust_weights(basis: Basis, matches: LocalMatches, rounds: int = 10) -> np.ndarray:
    """Weights (N,) in [0, 1] by which wrong matches are left out: Tukey's biweight, its scale annealed to the residuals'."""
    weights, scale = np.ones(len(matches.points)), 6.0
    for _ in range(rounds):
        predicted = basis.design @ fit_displacement(basis, matches, weights)
        residuals = residuals_of(predicted, matches.displacements, matches.information)
        scale = max(0.6 * scale, 1.5 * float(np.median(residuals)), 0.5)
        weights = np.clip(1.0 - (residuals / (3.0 * scale)) ** 2, 0.0, None) ** 2
    return weights


def residuals_of(
    predicted: np.ndarray, measured: np.ndarray, information: np.ndarray
) -> np.ndarray:
    """Distances (N,) in pixels, each counted in the directions that its patch knows."""
    gap = predicted - measured
    shape = information / (0.5 * np.trace(information, axis1=1, axis2=2))[:, None, None]
    return np.sqrt(np.maximum(np.einsum("na,nab,nb->n", gap, shape, gap), 0.0))


def blocks_of(points: np.ndarray, block_px: float) -> np.ndarray:
    """Square block (N, 2) int of the image in which each point lies. What is held out is held out by blocks: neighbouring
    patches overlap, and would betray it."""
    return np.floor((points - points.min(axis=0)) / block_px).astype(int)


def blocks_across(points: np.ndarray) -> np.ndarray:
    """Blocks (N, 2) of a size with the region of the points, for maps that are few numbers for all of it."""
    return blocks_of(points, float(np.ptp(points, axis=0).max()) / BLOCKS_ACROSS + 1e-6)


def held_out_residuals(
    basis: Basis, matches: LocalMatches, weights: np.ndarray, blocks: np.ndarray
) -> np.ndarray:
    """Residuals (N,) of each match under the fit to the other folds, clipped.

    Args:
        blocks: see :func:`blocks_of`; a fold is every fifth of them, no two of it side by side.
    """
    folds, residuals = (blocks[:, 0] + 2 * blocks[:, 1]) % FOLDS, np.zeros(len(matches.points))
    for fold in range(FOLDS):
        out = folds == fold
        if out.any():
            coefficients = fit_displacement(basis, matches, np.where(out, 0.0, weights))
            residuals[out] = residuals_of(
                basis.design[out] @ coefficients,
                matches.displacements[out],
                matches.information[out],
            )
    return np.minimum(residuals, CLIP_PX)


def gain_of(simple: np.ndarray, rich: np.ndarray, blocks: np.ndarray) -> tuple[float, float]:
    """Share of the mean squared held-out residual that the richer model saves, and by how many standard errors over the blocks
    of the image that is more than nothing."""
    saved = simple**2 - rich**2
    _, index = np.unique(blocks, axis=0, return_inverse=True)
    sums = np.bincount(index.ravel(), saved)
    error = float(np.sqrt((sums**2).sum())) or 1e-9
    return float(saved.mean() / max((simple**2).mean(), 1e-9)), float(saved.sum() / error)


# --- models ----------------------------------------------------------------------------------------------------------


def unit_frame(points: np.ndarray) -> np.ndarray:
    """``H_fixed_to_unit`` (3, 3): the ellipse of the points' scatter, enlarged to cover them, becomes the unit circle."""
    centre = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((points - centre).T) + 1e-6 * np.eye(2))
    whiten = vectors @ np.diag(values**-0.5) @ vectors.T
    whiten /= np.percentile(np.linalg.norm((points - centre) @ whiten.T, axis=1), 98)
    H = np.eye(3)
    H[:2, :2], H[:2, 2] = whiten, -whiten @ centre
    return H


def affine_basis(points: np.ndarray) -> Basis:
    """Displacements by 1, x, y."""
    return Basis(np.column_stack([np.ones(len(points)), points]), np.zeros((3, 3)))


def quadratic_basis(points: np.ndarray, H_fixed_to_unit: np.ndarray) -> Basis:
    """Displacements by :func:`quadratic_terms`."""
    penalty = np.diag([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]) / CURVATURE_SPREAD_PX**2
    return Basis(quadratic_terms(warp_points(points, H_fixed_to_unit)), penalty)


def bent(
    H_fix_to_mov: np.ndarray, H_fixed_to_unit: np.ndarray, coefficients: np.ndarray
) -> QuadraticTransform:
    """An affine matrix after a quadratic displacement with coefficients (6, 2): ``H (p + d(p))``, which is quadratic."""
    H_unit_to_fixed = np.linalg.inv(H_fixed_to_unit)
    moved = coefficients.T.copy()
    moved[:, 0] += H_unit_to_fixed[:2, 2]
    moved[:, 1:3] += H_unit_to_fixed[:2, :2]
    return QuadraticTransform(H_fixed_to_unit, moved).rescaled(np.eye(3), H_fix_to_mov)


def cubic_b_spline(distance: np.ndarray) -> np.ndarray:
    """The uniform cubic B-spline at a distance from its control point, in control spacings."""
    x = np.abs(distance)
    return np.where(x < 1, 2 / 3 - x**2 + 0.5 * x**3, np.where(x < 2, (2 - x) ** 3 / 6, 0.0))


class Lattice(NamedTuple):
    """Control points over an image: the frame of ``DeformableTransform.H_fixed_to_lattice`` and their number in rows and columns,
    with the outer rings that stay 0."""

    H_fixed_to_lattice: np.ndarray
    shape: Size

    @classmethod
    def over(cls, size: Size) -> Lattice:
        """A lattice that covers an image."""
        spacing = (max(size) - 1) / CONTROLS_ACROSS
        H = np.diag([1 / spacing, 1 / spacing, 1.0])
        H[:2, 2] = 3.0
        rows, columns = (int(np.ceil((side - 1) / spacing)) + 7 for side in size)
        return cls(H, (rows, columns))

    def design(self, points: np.ndarray) -> np.ndarray:
        """Values (N, K) of all inner control points' splines at points (N, 2)."""
        x, y = warp_points(points, self.H_fixed_to_lattice).T
        rows, columns = (np.arange(2, side - 2) for side in self.shape)
        along_y, along_x = cubic_b_spline(y[:, None] - rows), cubic_b_spline(x[:, None] - columns)
        return (along_y[:, :, None] * along_x[:, None, :]).reshape(len(points), -1)

    def bending(self) -> np.ndarray:
        """Penalty (K, K) on bending, and a little on size."""
        n_rows, n_columns = (side - 4 for side in self.shape)
        bend_y, bend_x = (np.diff(np.eye(n + 4)[:, 2:-2], n=2, axis=0) for n in (n_rows, n_columns))
        slope_y, slope_x = (np.diff(np.eye(n + 2)[:, 1:-1], axis=0) for n in (n_rows, n_columns))
        return (
            np.kron(bend_y.T @ bend_y, np.eye(n_columns))
            + np.kron(np.eye(n_rows), bend_x.T @ bend_x)
            + 2 * np.kron(slope_y.T @ slope_y, slope_x.T @ slope_x)
            + 0.01 * np.eye(n_rows * n_columns)
        )

    def controls(self, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients (K, 2) as ``DeformableTransform.controls``."""
        rows, columns = self.shape
        return np.pad(coefficients.reshape(rows - 4, columns - 4, 2), ((2, 2), (2, 2), (0, 0)))


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
