"""Fit a matrix to the matches of a pair, with guided matching."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from geometry.estimation import Plausibility, TransformEstimate, estimate_transform
from registration.keypoint_matcher import KeypointMatchSettings, match_guided
from registration.matcher import MatchSettings, WorkingMatches
from registration.proposals import PROPOSALS, other_similarities, propose_similarity
from registration.significance import expected_maximum, significance_of


class Candidate(NamedTuple):
    """A matrix fitted to the matches of a pair, or of rotated or smaller copies of it.

    Attributes:
        estimate: of the matrix, in working pixels.
        matches: that it was fitted to.
        significance: of its inliers, standard deviations (:mod:`registration.significance`), with
            the multiple-comparison correction if several proposals were tested.
    """

    estimate: TransformEstimate
    matches: WorkingMatches
    significance: float

    @property
    def found(self) -> bool:
        """Whether there is a matrix."""
        return self.estimate.H_fix_to_mov is not None


def fit_matches(
    matches: WorkingMatches, settings: MatchSettings, matrix_kind: str, plausibility: Plausibility
) -> Candidate:
    """Fit a matrix to matches: one robust fit, or a proposal and guided matching.

    Guided matching needs descriptors and :class:`KeypointMatchSettings`. The proposal is a
    similarity, because its minimal sample has two correct matches, that of an affine three. Guided
    matching finds many more inliers under a correct proposal and hardly any under a wrong one. If
    it rejects the first proposal, further ones are tested. The narrower rounds add accuracy.

    Args:
        matches: of the pair, or of rotated or smaller copies of it.
        settings: of the matcher.
        matrix_kind: "similarity", "affine" or "homography".
        plausibility: limits on the matrix.
    """
    if (
        matches.fixed_descriptors is None
        or not isinstance(settings, KeypointMatchSettings)
        or not settings.guided_radii_px
    ):
        estimate = _fit(matches, settings, matrix_kind, plausibility)
        return Candidate(estimate, matches, significance_of(estimate, settings.accident_rate))
    # Guided matches are many, so that a low share of inliers is expected.
    limits = replace(plausibility, min_inlier_share=0.0)
    best = _fit_best_proposal(matches, settings, matrix_kind, limits)
    for radius_px in settings.guided_radii_px[1:]:
        if best.estimate.H_fix_to_mov is None:
            break
        guided = match_guided(best.matches, best.estimate.H_fix_to_mov, radius_px)
        estimate = _fit(guided, settings, matrix_kind, limits)
        best = best._replace(estimate=estimate, matches=guided)
    return best


def _fit(
    matches: WorkingMatches, settings: MatchSettings, matrix_kind: str, limits: Plausibility
) -> TransformEstimate:
    return estimate_transform(
        matches.fixed_points,
        matches.moving_points,
        matches.fixed.frame.size,
        matrix_kind,
        settings.inlier_threshold_px,
        limits,
    )


def _fit_best_proposal(
    matches: WorkingMatches,
    settings: KeypointMatchSettings,
    matrix_kind: str,
    limits: Plausibility,
) -> Candidate:
    """The fit in the wide guided round under the first proposal, or the best of further ones.

    ``limits`` apply to the fit; proposals have their own, more lenient ones.
    """

    def test(H_proposed: np.ndarray) -> Candidate:
        guided = match_guided(matches, H_proposed, settings.guided_radii_px[0])
        estimate = _fit(guided, settings, matrix_kind, limits)
        significance = significance_of(estimate, settings.accident_rate)
        checked = reject_insignificant(estimate, significance, settings.min_significance)
        return Candidate(checked, guided, significance)

    size = matches.fixed.frame.size
    threshold_px = settings.proposal_threshold_px
    proposal = propose_similarity(
        matches.fixed_points, matches.moving_points, size, threshold_px, limits
    )
    if proposal.H_fix_to_mov is None:
        first = Candidate(proposal, matches, 0.0)
    else:
        first = test(proposal.H_fix_to_mov)
    if first.found:
        return first
    most_similar = np.argsort(-matches.similarity, kind="stable")[: PROPOSALS.max_paired]
    others = other_similarities(
        matches.fixed_points[most_similar],
        matches.moving_points[most_similar],
        size,
        threshold_px,
        limits,
        proposal.H_fix_to_mov,
    )
    tested = [first, *map(test, others)]
    best = max(tested, key=lambda each: (each.found, each.significance))
    # Multiple-comparison correction: the best of several tests is significant by selection alone.
    return best._replace(significance=best.significance - expected_maximum(len(tested)))


def reject_insignificant(
    estimate: TransformEstimate, significance: float, min_significance: float
) -> TransformEstimate:
    """An estimate, turned into a failure where a wrong transform could have as many inliers.

    Args:
        estimate: with its inliers.
        significance: of the estimate, standard deviations.
        min_significance: least significance of an accepted estimate, standard deviations.
    """
    if estimate.H_fix_to_mov is None or significance >= min_significance:
        return estimate
    reason = (
        f"only {estimate.n_inliers} of {len(estimate.inliers)} nearby matches agree; a wrong "
        "transform could have as many"
    )
    return TransformEstimate(
        status="failed", reason=reason, H_fix_to_mov=None, inliers=estimate.inliers
    )
