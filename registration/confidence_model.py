"""The logistic model of the confidence in a matrix; its coefficients belong to a matcher."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ConfidenceModel:
    """Probability that a matrix is right, from the evidence for it.

    The log-odds are linear in both quantities, each limited to a range within which it was fitted.
    """

    bias: float = -4.8
    per_significance: float = 0.7
    per_agreement: float = 0.5
    max_significance: float = 15.0
    max_agreement: float = 1000.0

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
        return 1.0 / (1.0 + math.exp(-log_odds))
