"""The most likely transform among several looks at a pair."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geometry.estimation import Plausibility, TransformEstimate, implausible_because
from geometry.matrices import compose
from geometry.points import warp_points
from registration.affine_refinement import refine_affine
from registration.candidates import Candidate, estimate_from_matches
from registration.confidence import confidence_of
from registration.matcher import Matcher, MatchSettings
from registration.ridges import RidgePair

# Guided matches that exceed accident by so much leave the ridges the last pixel to settle, and no search for more.
MANY_SIGNIFICANCE = 12.0


class Judged(NamedTuple):
    """A candidate with what the ridges say of it: ``H_fix_to_mov`` in original pixels, refined (None when there is none), how
    far the ridges agree under it, and the confidence in it."""

    candidate: Candidate
    H_fix_to_mov: np.ndarray | None
    agreement: float
    confidence: float


def judge(
    candidate: Candidate,
    ridges: RidgePair,
    transform: str,
    settings: MatchSettings,
    plausibility: Plausibility,
) -> Judged:
    """Refine a candidate on the ridges, and ask them whether it is right.

    Args:
        ridges: of the images at their full working size, whatever copies of them were matched.
        plausibility: limits on the refined matrix; one beyond them is not refined.
    """
    matches, H_working = candidate.matches, candidate.estimate.H_fix_to_mov
    if H_working is None:
        return Judged(candidate, None, 0.0, 0.0)
    H_fix_to_mov = compose(
        matches.fixed.frame.H_image_to_working,
        H_working,
        np.linalg.inv(matches.moving.frame.H_image_to_working),
    )
    H_fixed_to_ridges, H_moving_to_ridges = (
        image.frame.H_image_to_working for image in ridges.images
    )
    H_ridges = compose(np.linalg.inv(H_fixed_to_ridges), H_fix_to_mov, H_moving_to_ridges)
    if settings.refine:
        guided = matches.fixed_descriptors is not None
        rough = transform == "affine" and not (
            guided and candidate.significance >= MANY_SIGNIFICANCE
        )
        refined = refine_affine(ridges, H_ridges) if rough else ridges.refine(H_ridges, transform)
        fixed_points = warp_points(
            matches.fixed_points[candidate.estimate.inliers],
            compose(np.linalg.inv(matches.fixed.frame.H_image_to_working), H_fixed_to_ridges),
        )
        if not implausible_because(
            refined, fixed_points, len(fixed_points), ridges.ridges[0].shape, plausibility
        ):
            H_ridges = refined
        H_fix_to_mov = compose(H_fixed_to_ridges, H_ridges, np.linalg.inv(H_moving_to_ridges))
    agreement = ridges.agreement(H_ridges)
    return Judged(
        candidate,
        H_fix_to_mov / H_fix_to_mov[2, 2],
        agreement,
        confidence_of(candidate.significance, agreement),
    )


def search(
    matcher: Matcher,
    ridges: RidgePair,
    transform: str,
    plausibility: Plausibility,
    smaller: bool = True,
) -> Judged:
    """The most likely of the matcher's candidates for a pair; further ones are not computed once one is sure.

    One that is less likely than ``min_confidence`` comes back failed, with the reason. ``smaller`` as in ``Matcher.candidates``.
    """
    settings, best = matcher.settings, None
    for matches in matcher.candidates(*ridges.images, smaller):
        candidate = estimate_from_matches(matches, settings, transform, plausibility)
        judged = judge(candidate, ridges, transform, settings, plausibility)
        if best is None or _rank(judged) > _rank(best):
            best = judged
        if best.confidence >= settings.sure_confidence:
            break
    if best.H_fix_to_mov is None or best.confidence >= settings.min_confidence:
        return best
    reason = (
        f"the matches ({best.candidate.significance:.1f} standard deviations above accident) and the vessels laid on each "
        f"other ({best.agreement:.1f} above displaced ones) do not bear the transform out"
    )
    estimate = TransformEstimate("failed", reason, None, best.candidate.estimate.inliers)
    return Judged(best.candidate._replace(estimate=estimate), None, best.agreement, 0.0)


def _rank(judged: Judged) -> tuple[bool, float, float, int]:
    candidate = judged.candidate
    return (
        judged.H_fix_to_mov is not None,
        judged.confidence,
        candidate.significance,
        candidate.estimate.n_inliers,
    )
