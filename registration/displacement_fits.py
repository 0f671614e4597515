"""Displacements that are linear in their coefficients, fitted to patches and tested on patches that were held out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geometry.curved_transforms import QuadraticTransform, quadratic_terms
from geometry.matrices import Size
from geometry.points import warp_points
from registration.patches import LocalMatches

CURVATURE_SPREAD_PX = 6.0  # how large quadratic terms are at the edge of what matched, a priori
CONTROLS_ACROSS = 13  # along the long side: 40 px at the usual working size
FOLDS = 5
BLOCKS_ACROSS = 6  # of what matched, where the quadratic map is tried
CLIP_PX = 1.5  # residuals count at most as this much where models are compared


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
