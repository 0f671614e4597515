"""The confidence in a matrix, from its matches and the agreement of the ridge maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geometry.estimation import TransformEstimate
from registration.guided_fit import Candidate
from registration.refinement import RefinedMatrix
from registration.ridges import RidgePair


@dataclass(frozen=True)
class ConfidenceModel:
    """Logistic model of the confidence, see :func:`confidence_of`; coefficients chosen by hand."""

    bias: float = -4.8  # log-odds without evidence
    per_significance: float = 0.7  # log-odds per standard deviation of the inliers
    per_agreement: float = 0.5  # log-odds per standard deviation of the ridge agreement
    max_significance: float = 15.0  # standard deviations; a higher significance counts as this


CONFIDENCE_MODEL = ConfidenceModel()


class Judged(NamedTuple):
    """A candidate with its refined matrix and the confidence in it.

    Attributes:
        candidate: the fit to the matches.
        H_fix_to_mov: (3, 3), original pixels, refined; None without a matrix.
        agreement: of the ridge maps under it (:func:`registration.ridges.ridge_agreement`),
            standard deviations; 0 without a matrix.
        confidence: probability that the matrix is right, [0, 1]; 0 without a matrix.
    """

    candidate: Candidate
    H_fix_to_mov: np.ndarray | None
    agreement: float
    confidence: float

    @property
    def rank(self) -> tuple[bool, float, float, int]:
        """Sorting key; the most reliable result has the largest one."""
        return (
            self.H_fix_to_mov is not None,
            self.confidence,
            self.candidate.significance,
            self.candidate.estimate.n_inliers,
        )


def confidence_of(significance: float, agreement: float) -> float:
    """Probability that a matrix is right, [0, 1].

    ``benchmarks/confidence.py`` fits the coefficients of this logistic model and prints the
    significance and agreement of right and wrong matrices of validation eyes. The coefficients in
    use are more lenient than the fit, which saw no noise; noise hides ridges first. The last line
    of its output gives the confidence of wrong matrices under them; the model card gives the share
    of accepted pairs of different eyes.

    Args:
        significance: of the inliers, standard deviations.
        agreement: of the ridge maps, standard deviations.
    """
    model = CONFIDENCE_MODEL
    log_odds = (
        model.bias
        + model.per_significance * min(significance, model.max_significance)
        + model.per_agreement * agreement
    )
    return 1.0 / (1.0 + math.exp(-log_odds))


def judge(candidate: Candidate, refined: RefinedMatrix | None, ridges: RidgePair) -> Judged:
    """Measure the agreement of the ridge maps under a matrix, and the confidence in it.

    Args:
        candidate: the fit to the matches.
        refined: its refined matrix; None without one.
        ridges: of the full-size working images.
    """
    if refined is None:
        return Judged(candidate=candidate, H_fix_to_mov=None, agreement=0.0, confidence=0.0)
    agreement = ridges.agreement(refined.H_working)
    return Judged(
        candidate=candidate,
        H_fix_to_mov=refined.H_fix_to_mov,
        agreement=agreement,
        confidence=confidence_of(candidate.significance, agreement),
    )


def reject_unlikely(judged: Judged, min_confidence: float) -> Judged:
    """A result, turned into a failure with a reason where its confidence is too low.

    Args:
        judged: the most reliable result of a pair.
        min_confidence: least confidence of an accepted matrix, [0, 1].
    """
    if judged.H_fix_to_mov is None or judged.confidence >= min_confidence:
        return judged
    candidate = judged.candidate
    reason = (
        f"the confidence in the transform is too low: the inliers are {candidate.significance:.1f} "
        f"standard deviations above chance, the aligned vessels {judged.agreement:.1f} above "
        "displaced ones"
    )
    failed = TransformEstimate(
        status="failed", reason=reason, H_fix_to_mov=None, inliers=candidate.estimate.inliers
    )
    return Judged(
        candidate=candidate._replace(estimate=failed),
        H_fix_to_mov=None,
        agreement=judged.agreement,
        confidence=0.0,
    )
