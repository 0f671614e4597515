"""The logistic model of the confidence in a matrix; its coefficients belong to a matcher."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import expit


@dataclass(frozen=True)
class ConfidenceModel:
    """Logistic model of the probability that a matrix is right, from the evidence for it.

    The defaults are those of the keypoint matcher; a matcher with other evidence has a subclass
    with its own. All numbers, the limits included, are the maximum-likelihood fit that
    ``benchmarks/confidence.py`` prints for the fitting eyes (docs/measured.md gives the command,
    and the rates on other eyes).

    Attributes:
        bias: log-odds without evidence.
        per_significance: log-odds per standard deviation of significance.
        per_agreement: log-odds per standard deviation of agreement.
        max_significance, max_agreement: standard deviations; higher values count as these.
    """

    bias: float = -8.61
    per_significance: float = 1.483
    per_agreement: float = 1.061
    max_significance: float = 10.0
    max_agreement: float = 4.0

    def probability(self, significance: float, agreement: float) -> float:
        """Confidence in a matrix, [0, 1].

        Args:
            significance: of the inliers, standard deviations.
            agreement: of the ridge maps, standard deviations.
        """
        log_odds = (
            self.bias
            + self.per_significance * min(significance, self.max_significance)
            + self.per_agreement * min(agreement, self.max_agreement)
        )
        return float(expit(log_odds))
