"""How likely a transform is right."""

from __future__ import annotations

import math

from geometry.estimation import TransformEstimate
from registration.matcher import MatchSettings

# Of the logistic model of the confidence, see confidence_of.
CONFIDENCE_BIAS, CONFIDENCE_PER_SIGNIFICANCE, CONFIDENCE_PER_AGREEMENT = -4.8, 0.7, 0.5
MAX_SIGNIFICANCE = 15.0  # more adds nothing to it


def binomial_significance(n_inliers: int, n_matches: int, accident_rate: float) -> float:
    """By how many standard deviations a number of agreeing matches exceeds that of accidents (binomial)."""
    expected = accident_rate * n_matches
    return (n_inliers - expected) / math.sqrt(max(expected * (1.0 - accident_rate), 1e-9))


def significance_of(estimate: TransformEstimate, settings: MatchSettings) -> float:
    n_matches = len(estimate.inliers)
    return (
        binomial_significance(estimate.n_inliers, n_matches, settings.accident_rate)
        if n_matches
        else 0.0
    )


def refuse_accidents(
    estimate: TransformEstimate, significance: float, settings: MatchSettings
) -> TransformEstimate:
    """Turn an estimate into a failure when as many matches would agree with a wrong transform."""
    if estimate.H_fix_to_mov is None or significance >= settings.min_significance:
        return estimate
    reason = f"only {estimate.n_inliers} of {len(estimate.inliers)} nearby matches agree; as many could by accident"
    return TransformEstimate("failed", reason, None, estimate.inliers)


def confidence_of(significance: float, agreement: float) -> float:
    """Probability that a matrix is right, from the significance of its matches and the agreement of the ridges.

    Logistic. ``benchmarks/confidence.py`` fits the coefficients and prints what right and wrong matrices of validation eyes
    show. Those in use are more lenient than its fit, which knows no noise: that hides ridges sooner than junctions. Its last
    line says how high wrong matrices come under them; the model card, how many pairs of different eyes pass.
    """
    evidence = (
        CONFIDENCE_BIAS
        + CONFIDENCE_PER_SIGNIFICANCE * min(significance, MAX_SIGNIFICANCE)
        + CONFIDENCE_PER_AGREEMENT * agreement
    )
    return 1.0 / (1.0 + math.exp(-evidence))
