"""Figures of merit, one definition each. A failed pair has an infinite error and counts in every one of them.

All errors are in "px at 512": pixels of the moving image times 512 / max(height, width) of the moving image.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.geometry import Size, warp_points

REFERENCE_SIDE = 512.0


@dataclass(frozen=True)
class PairError:
    """Errors of one pair, px at 512; all infinite when the registration failed."""

    mean: float
    median: float
    max: float


FAILED = PairError(float("inf"), float("inf"), float("inf"))


def to_reference_px(moving_size: Size) -> float:
    """Factor from moving pixels to px at 512; ``moving_size`` is (height, width)."""
    return REFERENCE_SIDE / max(moving_size)


def pair_error(H_fix_to_mov: np.ndarray | None, fixed_landmarks: np.ndarray, moving_landmarks: np.ndarray,
               moving_size: Size) -> PairError:
    """Transfer error of landmarks.

    Convention: fixed landmarks are mapped by ``H_fix_to_mov`` and compared with the moving ones in the moving image.

    Args:
        H_fix_to_mov: (3, 3), or None for a failed registration.
        fixed_landmarks, moving_landmarks: (N, 2) pixels of each image.
        moving_size: (height, width) of the moving image.
    """
    if H_fix_to_mov is None:
        return FAILED
    distance = np.linalg.norm(warp_points(fixed_landmarks, H_fix_to_mov) - moving_landmarks, axis=1)
    distance = distance * to_reference_px(moving_size)
    return PairError(float(distance.mean()), float(np.median(distance)), float(distance.max()))


def image_corners(size: Size) -> np.ndarray:
    """Centres (x, y) of the four corner pixels: (4, 2)."""
    return np.array([[0, 0], [size[1] - 1, 0], [size[1] - 1, size[0] - 1], [0, size[0] - 1]], dtype=float)


def corner_error(H_estimated: np.ndarray | None, H_true: np.ndarray, fixed_size: Size, moving_size: Size) -> float:
    """Mean distance of the fixed image's corners under both matrices, px at 512; infinite when failed."""
    corners = image_corners(fixed_size)
    return pair_error(H_estimated, corners, warp_points(corners, H_true), moving_size).mean


def area_under_curve(errors: np.ndarray, limit_px: float) -> float:
    """Area under the cumulative error curve up to ``limit_px``, in [0, 1]; 1 when every error is 0."""
    errors = np.asarray(errors, dtype=float)
    return float(np.clip(1.0 - errors / limit_px, 0.0, None).mean())


def median_with_failures(errors: np.ndarray) -> float:
    """Median in which infinite errors count; infinite when at least half of the pairs failed."""
    ordered = np.sort(np.asarray(errors, dtype=float))
    middle = len(ordered) // 2
    if len(ordered) % 2 or not np.isfinite(ordered[middle]):
        return float(ordered[middle])
    return float(0.5 * (ordered[middle - 1] + ordered[middle]))


def aggregate(pairs: list[PairError], eyes: list[str] | None = None, n_bootstrap: int = 1000) -> dict[str, float]:
    """All aggregates over pairs.

    Args:
        pairs: at least one.
        eyes: eye of each pair, for the bootstrap interval over eyes; no interval when None.
        n_bootstrap: resamples, seeded.

    Returns:
        ``success_median5`` (median error < 5), ``SR_ME`` (mean <= 5), ``SR_MAE`` (max <= 10), ``AUC@5/10/20`` of the mean
        error, ``mAUC`` (mean over i = 1..25 of the share with mean error < i), ``failed_rate``, ``median_of_medians``,
        and ``success_median5_low/high`` (95 % interval).
    """
    mean, median, largest = (np.array([getattr(pair, name) for pair in pairs]) for name in ("mean", "median", "max"))
    result = {"pairs": float(len(pairs)), "success_median5": float((median < 5).mean()),
              "SR_ME": float((mean <= 5).mean()), "SR_MAE": float((largest <= 10).mean())}
    result |= {f"AUC@{limit}": area_under_curve(mean, limit) for limit in (5, 10, 20)}
    result["mAUC"] = float(np.mean([(mean < limit).mean() for limit in range(1, 26)]))
    result["failed_rate"] = float((~np.isfinite(mean)).mean())
    result["median_of_medians"] = median_with_failures(median)
    if eyes is not None:
        low, high = _bootstrap_over_eyes(median < 5, eyes, n_bootstrap)
        result |= {"success_median5_low": low, "success_median5_high": high}
    return result


def _bootstrap_over_eyes(success: np.ndarray, eyes: list[str], n_bootstrap: int) -> tuple[float, float]:
    """95 % interval of a success rate, drawing whole eyes: pairs of one eye succeed or fail together."""
    groups = [success[np.array(eyes) == eye] for eye in sorted(set(eyes))]
    rng = np.random.default_rng(0)
    rates = [np.concatenate([groups[i] for i in rng.integers(0, len(groups), len(groups))]).mean()
             for _ in range(n_bootstrap)]
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)
