"""Significance of a fit: how far its number of inliers exceeds that of a wrong transform."""

from __future__ import annotations

import math

from scipy.stats import norm

from geometry.estimation import TransformEstimate

MIN_VARIANCE = 1e-9  # of the number of accidental inliers; avoids a division by zero


def binomial_significance(n_inliers: int, n_matches: int, accident_rate: float) -> float:
    """Deviation of a number of inliers from its mean under a wrong transform.

    Args:
        n_inliers: number of inliers.
        n_matches: number of matches.
        accident_rate: probability that a match is an inlier of a wrong transform, [0, 1].

    Returns:
        Standard deviations of the binomial distribution.
    """
    expected = accident_rate * n_matches
    return (n_inliers - expected) / math.sqrt(max(expected * (1.0 - accident_rate), MIN_VARIANCE))


def significance_of(estimate: TransformEstimate, accident_rate: float) -> float:
    """Significance of an estimate, standard deviations; 0 without matches.

    Args:
        estimate: with its inliers.
        accident_rate: see :func:`binomial_significance`.
    """
    n_matches = len(estimate.inliers)
    if not n_matches:
        return 0.0
    return binomial_significance(estimate.n_inliers, n_matches, accident_rate)


def expected_maximum(n_hypotheses: int) -> float:
    """Expected maximum of n standard normals (Blom 1958), for multiple-comparison correction."""
    return float(norm.ppf((n_hypotheses - 0.375) / (n_hypotheses + 0.25)))
