"""Similarities that some matches agree with: where to look for more matches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from geometry.estimation import Plausibility, TransformEstimate, estimate_transform
from geometry.matrices import Size
from geometry.points import image_corners
from registration.matcher import MatchSettings

# Of proposals, which cost little: guided matching refutes the wrong ones.
MIN_PROPOSAL_INLIERS, MAX_PROPOSALS = 4, 12
MAX_PAIRED = 120  # matches of which any two make a proposal: the most alike
DIFFERENT_PX = 20.0  # at some corner, or two proposals are one


def propose_similarity(
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    fixed_size: Size,
    settings: MatchSettings,
    plausibility: Plausibility,
) -> TransformEstimate:
    """A similarity that a handful of matches agrees with: where to look for more, not yet a result.

    Args:
        fixed_points, moving_points: (K, 2), working pixels, row i corresponds.
        fixed_size: (height, width) of the fixed working image.
    """
    lenient = replace(
        plausibility,
        min_inliers=min(MIN_PROPOSAL_INLIERS, plausibility.min_inliers),
        min_inlier_share=0.0,
        min_spread=0.5 * plausibility.min_spread,
    )
    return estimate_transform(
        fixed_points,
        moving_points,
        fixed_size,
        "similarity",
        settings.proposal_threshold_px,
        lenient,
    )


def other_similarities(
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    fixed_size: Size,
    threshold_px: float,
    plausibility: Plausibility,
    refuted: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The similarities that most matches agree with among those through any two matches, clearly different ones only.

    Where hardly any match is right, the similarity with the most is often a wrong one, and the right one among the next: all that
    costs is to match again under each.

    Args:
        fixed_points, moving_points: (K, 2), working pixels, row i corresponds.
        refuted: a similarity (3, 3) that was tried already.

    Returns:
        At most ``MAX_PROPOSALS`` matrices (3, 3), the best first.
    """
    # Points as complex numbers: a similarity is then z -> a z + b.
    fixed, moving = (points @ np.array([1.0, 1j]) for points in (fixed_points, moving_points))
    first, second = np.triu_indices(len(fixed), 1)
    far = np.abs(fixed[second] - fixed[first]) > 0.1 * max(fixed_size)
    first, second = first[far], second[far]
    a = (moving[second] - moving[first]) / (fixed[second] - fixed[first])
    plausible = (np.abs(a) >= plausibility.min_scale) & (np.abs(a) <= plausibility.max_scale)
    a, first = a[plausible], first[plausible]
    b = moving[first] - a * fixed[first]
    counts = np.concatenate(
        [
            (np.abs(part_a[:, None] * fixed + part_b[:, None] - moving) < threshold_px).sum(axis=1)
            for part_a, part_b in zip(np.array_split(a, 8), np.array_split(b, 8), strict=True)
        ]
    )
    corners = image_corners(fixed_size) @ np.array([1.0, 1j])
    known = (
        []
        if refuted is None
        else [(complex(refuted[0, 0], refuted[1, 0]), complex(refuted[0, 2], refuted[1, 2]))]
    )
    chosen = list(known)
    for index in np.argsort(-counts, kind="stable"):
        if len(chosen) - len(known) == MAX_PROPOSALS or counts[index] < MIN_PROPOSAL_INLIERS:
            break
        here = a[index] * corners + b[index]
        if all(
            np.abs(other_a * corners + other_b - here).max() > DIFFERENT_PX
            for other_a, other_b in chosen
        ):
            chosen.append((a[index], b[index]))
    return [
        np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag], [0.0, 0.0, 1.0]])
        for a, b in chosen[len(known) :]
    ]
