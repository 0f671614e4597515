"""From two images to a transform: the pipeline of register.py, evaluate.py and the validation.

:func:`register_pair` composes the stages; :func:`find_matrix` is its loop over the copies of the
images. A new matcher implements :class:`registration.matcher.Matcher`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from geometry.estimation import Plausibility
from registration.confidence import Judged, judge, reject_unlikely
from registration.guided_fit import fit_matches
from registration.matcher import Matcher
from registration.refinement import refine_matrix
from registration.registered_pair import Registration
from registration.ridges import RidgePair
from registration.transform_choice import choose_transform, matrix_kind_of
from registration.working_frame import to_working_frame


def register_pair(
    matcher: Matcher,
    fixed: np.ndarray,
    moving: np.ndarray,
    transform: str = "affine",
    plausibility: Plausibility | None = None,
) -> Registration:
    """Register a moving image onto a fixed one.

    Convention: ``H_fix_to_mov`` takes fixed to moving pixels, (x, y), of the original images.

    Args:
        matcher: finds the matches.
        fixed, moving: (H, W) float in [0, 1]; the sizes may differ.
        transform: requested, one of ``registration.transform_choice.TRANSFORMS``.
        plausibility: limits on the matrix; the defaults when None.
    """
    start, limits = time.perf_counter(), plausibility or Plausibility()
    matrix_kind = matrix_kind_of(transform)
    # 1. Both fields of view at the working size; the ridge maps are computed from them.
    long_side = matcher.settings.long_side
    ridges = RidgePair(to_working_frame(fixed, long_side), to_working_frame(moving, long_side))
    # 2. to 6. Matches, proposal, guided fit, refinement, confidence.
    best = find_matrix(matcher, ridges, matrix_kind, limits)
    # 7. Curved transforms refine the matrix where held-out patches support them.
    choice, reason = None, best.candidate.estimate.reason
    if best.H_fix_to_mov is not None:
        choice = choose_transform(ridges, best.H_fix_to_mov, transform)
    elif matcher.settings.try_mirrored and is_mirrored(matcher, ridges, matrix_kind, limits):
        reason = "the moving image is mirrored: flip it and try again"
    # 8. The result in original pixels.
    matches = best.candidate.matches
    return Registration(
        status=best.candidate.estimate.status,
        reason=reason,
        H_fix_to_mov=best.H_fix_to_mov,
        fixed_points=matches.fixed.to_original(matches.fixed_points),
        moving_points=matches.moving.to_original(matches.moving_points),
        inliers=best.candidate.estimate.inliers,
        matches=matches,
        seconds=time.perf_counter() - start,
        significance=best.candidate.significance,
        agreement=best.agreement,
        confidence=best.confidence,
        transform=None if choice is None else choice.transform,
        transform_reason="" if choice is None else choice.reason,
    )


def find_matrix(
    matcher: Matcher,
    ridges: RidgePair,
    matrix_kind: str,
    plausibility: Plausibility,
    smaller_copies: bool = True,
) -> Judged:
    """The most reliable matrix over the images and their rotated and smaller copies.

    Args:
        matcher: finds the matches; its settings control all stages.
        ridges: of the full-size working images.
        matrix_kind: "similarity", "affine" or "homography".
        plausibility: limits on the matrix.
        smaller_copies: whether smaller copies are matched, if the settings allow it.

    Returns:
        The result with the highest confidence; failed, with a reason, if that is too low. Further
        copies are not matched once ``sure_confidence`` is reached.
    """
    settings, best = matcher.settings, None
    for judged in judged_copies(matcher, ridges, matrix_kind, plausibility, smaller_copies):
        if best is None or judged.rank > best.rank:
            best = judged
        if best.confidence >= settings.sure_confidence:
            break
    assert best is not None
    return reject_unlikely(best, settings.min_confidence)


def judged_copies(
    matcher: Matcher,
    ridges: RidgePair,
    matrix_kind: str,
    plausibility: Plausibility,
    smaller_copies: bool = True,
) -> Iterator[Judged]:
    """The result of the images as they are, then of each copy, computed when it is asked for.

    Args:
        matcher: finds the matches; its settings control all stages.
        ridges: of the full-size working images.
        matrix_kind: "similarity", "affine" or "homography".
        plausibility: limits on the matrix.
        smaller_copies: whether smaller copies are matched, if the settings allow it.
    """
    settings = matcher.settings
    # 2. Matches of the images, then of their copies, each computed when the loop reaches it.
    for matches in matcher.match_copies(*ridges.images, smaller_copies):
        # 3. and 4. Similarity proposals, guided matching and robust fit.
        candidate = fit_matches(matches, settings, matrix_kind, plausibility)
        # 5. Refinement on the ridge maps.
        refined = refine_matrix(candidate, ridges, matrix_kind, settings, plausibility)
        # 6. Confidence, from the inliers and the agreement of the ridge maps.
        yield judge(candidate, refined, ridges, settings.confidence)


def is_mirrored(
    matcher: Matcher, ridges: RidgePair, matrix_kind: str, plausibility: Plausibility
) -> bool:
    """Whether the pair can be registered after mirroring the moving image.

    It only decides the reason of a failure, so full-size copies suffice.

    Args:
        matcher: finds the matches.
        ridges: of the full-size working images.
        matrix_kind: "similarity", "affine" or "homography".
        plausibility: limits on the matrix.
    """
    fixed, moving = ridges.images
    mirrored = RidgePair(fixed, moving.mirrored())
    found = find_matrix(matcher, mirrored, matrix_kind, plausibility, smaller_copies=False)
    return found.H_fix_to_mov is not None
