"""The confidence in a matrix, from its matches and the agreement of the ridge maps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geometry.estimation import TransformEstimate
from registration.confidence_model import ConfidenceModel
from registration.guided_fit import Candidate
from registration.refinement import RefinedMatrix
from registration.ridges import RidgePair


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


def judge(
    candidate: Candidate,
    refined: RefinedMatrix | None,
    ridges: RidgePair,
    model: ConfidenceModel,
) -> Judged:
    """Measure the agreement of the ridge maps under a matrix, and the confidence in it.

    Args:
        candidate: the fit to the matches.
        refined: its refined matrix; None without one.
        ridges: of the full-size working images.
        model: of the matcher's settings.
    """
    if refined is None:
        return Judged(candidate=candidate, H_fix_to_mov=None, agreement=0.0, confidence=0.0)
    agreement = ridges.agreement(refined.H_working)
    return Judged(
        candidate=candidate,
        H_fix_to_mov=refined.H_fix_to_mov,
        agreement=agreement,
        confidence=model.probability(candidate.significance, agreement),
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
