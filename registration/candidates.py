"""A transform from the matches of one look at a pair."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from geometry.estimation import Plausibility, TransformEstimate, estimate_transform
from registration.confidence import refuse_accidents, significance_of
from registration.keypoint_matcher import match_under
from registration.matcher import MatchSettings, WorkingMatches
from registration.proposals import MAX_PAIRED, other_similarities, propose_similarity


class Candidate(NamedTuple):
    """A transform in working pixels, the matches that it was made from, and their :func:`significance`, less what the best of
    several proposals has by accident alone."""

    estimate: TransformEstimate
    matches: WorkingMatches
    significance: float


def estimate_from_matches(
    matches: WorkingMatches, settings: MatchSettings, transform: str, plausibility: Plausibility
) -> Candidate:
    """Fit a transform, match again under it, and fit again.

    The first fit only proposes: a handful of agreeing matches is enough, and a similarity, which needs two right matches at
    a time where an affine needs three. The second decides: guided matching finds many more under a right proposal and
    hardly any under a wrong one; where it refutes the proposal, it tries the next ones. Further, narrower rounds add accuracy. A
    matcher without descriptors cannot be guided: its first fit decides.
    """

    def fit(current: WorkingMatches, limits: Plausibility) -> TransformEstimate:
        return estimate_transform(
            current.fixed_points,
            current.moving_points,
            current.fixed.frame.size,
            transform,
            settings.inlier_threshold_px,
            limits,
        )

    if matches.fixed_descriptors is None or not settings.guided_radii_px:
        estimate = fit(matches, plausibility)
        return Candidate(estimate, matches, significance_of(estimate, settings))
    limits = replace(plausibility, min_inlier_share=0.0)

    def decide(H_proposed: np.ndarray) -> Candidate:
        guided = match_under(matches, H_proposed, settings.guided_radii_px[0])
        estimate = fit(guided, limits)
        significance = significance_of(estimate, settings)
        return Candidate(refuse_accidents(estimate, significance, settings), guided, significance)

    size = matches.fixed.frame.size
    proposal = propose_similarity(
        matches.fixed_points, matches.moving_points, size, settings, plausibility
    )
    best = (
        Candidate(proposal, matches, 0.0)
        if proposal.H_fix_to_mov is None
        else decide(proposal.H_fix_to_mov)
    )
    if best.estimate.H_fix_to_mov is None:
        most_alike = np.argsort(-matches.similarity, kind="stable")[:MAX_PAIRED]
        others = other_similarities(
            matches.fixed_points[most_alike],
            matches.moving_points[most_alike],
            size,
            settings.proposal_threshold_px,
            plausibility,
            proposal.H_fix_to_mov,
        )
        tried = [best, *map(decide, others)]
        best = max(
            tried, key=lambda each: (each.estimate.H_fix_to_mov is not None, each.significance)
        )
        # The best of many accidents looks less like one than the first did; Blom's mean of the largest of n normal values.
        expected = float(norm.ppf((len(tried) - 0.375) / (len(tried) + 0.25)))
        best = best._replace(significance=best.significance - expected)
    for radius_px in settings.guided_radii_px[1:]:
        if best.estimate.H_fix_to_mov is None:
            break
        guided = match_under(best.matches, best.estimate.H_fix_to_mov, radius_px)
        best = Candidate(fit(guided, limits), guided, best.significance)
    return best
