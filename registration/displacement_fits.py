"""Displacement fields that are linear in their coefficients: robust fit and cross-validation.

:mod:`registration.displacement_models` has the models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from registration.patches import LocalMatches


@dataclass(frozen=True)
class FitConstants:
    """Constants of the robust fit and of the cross-validation; chosen by hand."""

    rounds: int = 10  # of reweighting
    start_scale_px: float = 6.0  # scale of the residuals in the first round
    annealing: float = 0.6  # largest reduction of the scale per round
    scale_per_median: float = 1.5  # scale relative to the median residual
    min_scale_px: float = 0.5  # least scale
    cutoff_scales: float = 3.0  # residual in scales above which the weight is 0
    folds: int = 5  # of the cross-validation
    blocks_across: int = 6  # blocks along the long side of the region of the matches
    max_residual_px: float = 1.5  # clip of the held-out residuals in the comparison of models
    ridge: float = 1e-9  # added to the diagonal of the normal equations


FITS = FitConstants()


class Basis(NamedTuple):
    """Basis functions of a displacement field, with a penalty.

    Attributes:
        design: (N, K) float64, values of the K functions at the points of the matches.
        penalty: (K, K) float64, quadratic penalty on the coefficients in x and in y, 1 / px^2.
    """

    design: np.ndarray
    penalty: np.ndarray


class Gain(NamedTuple):
    """Improvement of the held-out residuals by the richer of two models.

    Attributes:
        share: relative reduction of the mean squared residual.
        significance: of the reduction, standard errors over the blocks.
    """

    share: float
    significance: float


def fit_displacement(basis: Basis, matches: LocalMatches, weights: np.ndarray) -> np.ndarray:
    """Weighted least squares.

    Args:
        basis: of the displacement field.
        matches: the data.
        weights: (N,) in [0, 1], multiplied with the information of the matches.

    Returns:
        (K, 2) float64, coefficients in x and y, pixels.
    """
    n_terms = basis.design.shape[1]
    normal, right = np.zeros((n_terms, 2, n_terms, 2)), np.zeros((n_terms, 2))
    for row, column in np.ndindex(2, 2):
        weighted = basis.design * (matches.information[:, row, column] * weights)[:, None]
        normal[:, row, :, column] = basis.design.T @ weighted + (row == column) * (
            basis.penalty + FITS.ridge * np.eye(n_terms)
        )
        right[:, row] += weighted.T @ matches.displacements[:, column]
    return np.linalg.solve(normal.reshape(2 * n_terms, -1), right.ravel()).reshape(n_terms, 2)


def robust_weights(basis: Basis, matches: LocalMatches, rounds: int = FITS.rounds) -> np.ndarray:
    """Weights (N,) in [0, 1] of the matches: Tukey's biweight with an annealed scale.

    Args:
        basis: of the displacement field.
        matches: the data.
        rounds: of reweighting.
    """
    weights, scale = np.ones(len(matches.points)), FITS.start_scale_px
    for _ in range(rounds):
        predicted = basis.design @ fit_displacement(basis, matches, weights)
        residuals = residuals_of(predicted, matches.displacements, matches.information)
        median = float(np.median(residuals))
        scale = max(FITS.annealing * scale, FITS.scale_per_median * median, FITS.min_scale_px)
        weights = np.clip(1.0 - (residuals / (FITS.cutoff_scales * scale)) ** 2, 0.0, None) ** 2
    return weights


def residuals_of(
    predicted: np.ndarray, measured: np.ndarray, information: np.ndarray
) -> np.ndarray:
    """Residuals (N,) in pixels, weighted by direction with the information of each match.

    Args:
        predicted, measured: (N, 2), displacements, pixels.
        information: (N, 2, 2), of which only the shape counts, not the size.
    """
    gap = predicted - measured
    shape = information / (0.5 * np.trace(information, axis1=1, axis2=2))[:, None, None]
    return np.sqrt(np.maximum(np.einsum("na,nab,nb->n", gap, shape, gap), 0.0))


def zero_residuals(matches: LocalMatches) -> np.ndarray:
    """Residuals (N,) of a zero displacement, pixels, clipped like the held-out ones."""
    lengths = residuals_of(
        np.zeros_like(matches.displacements), matches.displacements, matches.information
    )
    return np.minimum(lengths, FITS.max_residual_px)


def blocks_of(points: np.ndarray, block_px: float) -> np.ndarray:
    """Index (N, 2) int of the square block in which each point lies.

    Cross-validation holds out whole blocks, because neighbouring patches overlap and are not
    independent.

    Args:
        points: (N, 2), pixels (x, y).
        block_px: side of a block, pixels.
    """
    return np.floor((points - points.min(axis=0)) / block_px).astype(int)


def blocks_across(points: np.ndarray) -> np.ndarray:
    """Blocks (N, 2) int that grow with the region of the points, for models with few parameters.

    Args:
        points: (N, 2), pixels (x, y).
    """
    return blocks_of(points, float(np.ptp(points, axis=0).max()) / FITS.blocks_across + 1e-6)


def held_out_residuals(
    basis: Basis, matches: LocalMatches, weights: np.ndarray, blocks: np.ndarray
) -> np.ndarray:
    """Residuals (N,) of each match under the fit to the other folds, pixels, clipped.

    Args:
        basis: of the displacement field.
        matches: the data.
        weights: (N,) in [0, 1].
        blocks: (N, 2) int, see :func:`blocks_of`; a fold is every fifth block, without neighbours.
    """
    folds = (blocks[:, 0] + 2 * blocks[:, 1]) % FITS.folds
    residuals = np.zeros(len(matches.points))
    for fold in range(FITS.folds):
        out = folds == fold
        if out.any():
            coefficients = fit_displacement(basis, matches, np.where(out, 0.0, weights))
            residuals[out] = residuals_of(
                basis.design[out] @ coefficients,
                matches.displacements[out],
                matches.information[out],
            )
    return np.minimum(residuals, FITS.max_residual_px)


def gain_of(simple: np.ndarray, rich: np.ndarray, blocks: np.ndarray) -> Gain:
    """Improvement by the richer of two models.

    Args:
        simple, rich: (N,), held-out residuals of either model, pixels.
        blocks: (N, 2) int, whose sums are taken as independent.
    """
    saved = simple**2 - rich**2
    _, index = np.unique(blocks, axis=0, return_inverse=True)
    sums = np.bincount(index.ravel(), saved)
    error = float(np.sqrt((sums**2).sum())) or 1e-9
    return Gain(
        share=float(saved.mean() / max((simple**2).mean(), 1e-9)),
        significance=float(saved.sum() / error),
    )
