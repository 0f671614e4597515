"""Similarity proposals from the matches of a pair, for guided matching."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from geometry.estimation import Plausibility, TransformEstimate, estimate_transform
from geometry.matrices import Size
from geometry.points import image_corners


@dataclass(frozen=True)
class ProposalConstants:
    """Constants of the proposals; all chosen by hand. Guided matching rejects wrong proposals."""

    min_inliers: int = 4  # least number of inliers of a proposal
    spread_factor: float = 0.5  # of the least spread of the inliers that a result needs
    max_proposals: int = 12  # further proposals, each tested by guided matching
    max_paired: int = 120  # matches of which all pairs are enumerated, the most similar ones
    min_distance: float = 0.1  # between the two points of a pair, relative to the long side
    min_difference_px: float = 20.0  # two proposals differ if a corner moves by more
    n_chunks: int = 8  # parts in which inliers are counted, to limit memory


PROPOSALS = ProposalConstants()


def propose_similarity(
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    fixed_size: Size,
    threshold_px: float,
    plausibility: Plausibility,
) -> TransformEstimate:
    """Robust similarity with lenient limits: a proposal for guided matching, not a result.

    Args:
        fixed_points, moving_points: (K, 2) float, working pixels (x, y); row i corresponds.
        fixed_size: (height, width) of the fixed working image.
        threshold_px: residual below which a match is an inlier, working pixels.
        plausibility: limits on a result, which are relaxed here.
    """
    lenient = replace(
        plausibility,
        min_inliers=min(PROPOSALS.min_inliers, plausibility.min_inliers),
        min_inlier_share=0.0,
        min_spread=PROPOSALS.spread_factor * plausibility.min_spread,
    )
    return estimate_transform(
        fixed_points, moving_points, fixed_size, "similarity", threshold_px, lenient
    )


def other_similarities(
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    fixed_size: Size,
    threshold_px: float,
    plausibility: Plausibility,
    rejected: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Similarities through any two matches, by decreasing number of inliers, pairwise different.

    With few correct matches the similarity with most inliers is often wrong and a correct one
    follows closely. Testing one costs a guided matching.

    Convention: points as complex numbers, so that a similarity is ``z -> a z + b``.

    Args:
        fixed_points, moving_points: (K, 2) float, working pixels (x, y); row i corresponds.
        fixed_size: (height, width) of the fixed working image.
        threshold_px: residual below which a match is an inlier, working pixels.
        plausibility: limits on the scale.
        rejected: (3, 3), a similarity that was tested before; None if there is none.

    Returns:
        At most ``PROPOSALS.max_proposals`` matrices (3, 3), fixed to moving working pixels.
    """
    fixed, moving = (points @ np.array([1.0, 1j]) for points in (fixed_points, moving_points))
    a, b = _similarities_of_pairs(fixed, moving, fixed_size, plausibility)
    counts = np.concatenate(
        [
            (np.abs(part_a[:, None] * fixed + part_b[:, None] - moving) < threshold_px).sum(axis=1)
            for part_a, part_b in zip(
                np.array_split(a, PROPOSALS.n_chunks),
                np.array_split(b, PROPOSALS.n_chunks),
                strict=True,
            )
        ]
    )
    known: list[tuple[complex, complex]] = []
    if rejected is not None:
        known.append(
            (complex(rejected[0, 0], rejected[1, 0]), complex(rejected[0, 2], rejected[1, 2]))
        )
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] >= PROPOSALS.min_inliers]
    return [
        np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag], [0.0, 0.0, 1.0]])
        for a, b in _different(a[order], b[order], known, fixed_size)
    ]


def _different(
    a: np.ndarray, b: np.ndarray, known: list[tuple[complex, complex]], fixed_size: Size
) -> list[tuple[complex, complex]]:
    """Greedy choice of similarities a, b (P,) complex that differ from each other and the known.

    Two differ if they map a corner of the fixed image to positions that are far apart.
    """
    corners = image_corners(fixed_size) @ np.array([1.0, 1j])
    chosen: list[tuple[complex, complex]] = []
    for each_a, each_b in zip(a, b, strict=True):
        if len(chosen) == PROPOSALS.max_proposals:
            break
        mapped = each_a * corners + each_b
        if all(
            np.abs(other_a * corners + other_b - mapped).max() > PROPOSALS.min_difference_px
            for other_a, other_b in known + chosen
        ):
            chosen.append((each_a, each_b))
    return chosen


def _similarities_of_pairs(
    fixed: np.ndarray, moving: np.ndarray, fixed_size: Size, plausibility: Plausibility
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients a, b (P,) complex of the similarities through each pair of distant matches.

    ``fixed`` and ``moving`` are (K,) complex, working pixels; implausible scales are left out.
    """
    first, second = np.triu_indices(len(fixed), 1)
    far = np.abs(fixed[second] - fixed[first]) > PROPOSALS.min_distance * max(fixed_size)
    first, second = first[far], second[far]
    a = (moving[second] - moving[first]) / (fixed[second] - fixed[first])
    plausible = (np.abs(a) >= plausibility.min_scale) & (np.abs(a) <= plausibility.max_scale)
    a, first = a[plausible], first[plausible]
    return a, moving[first] - a * fixed[first]
