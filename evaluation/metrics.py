"""Metrics over the errors of many pairs. A failed pair has an infinite error and counts in each.

All errors are in "px at 512": pixels of the moving image times 512 / max(height, width) of the
moving image.
"""

from __future__ import annotations

import numpy as np

from geometry.accuracy import PairError

N_BOOTSTRAP = 1000  # resamples of an interval


def area_under_curve(errors: np.ndarray, limit_px: float) -> float:
    """Normalised area under the cumulative error curve up to a limit.

    Args:
        errors: (N,) float, px at 512; infinite for a failed pair.
        limit_px: upper end of the curve, px at 512.

    Returns:
        The area in [0, 1]; 1 when every error is 0.
    """
    errors = np.asarray(errors, dtype=float)
    return float(np.clip(1.0 - errors / limit_px, 0.0, None).mean())


def median_with_failures(errors: np.ndarray) -> float:
    """Median that counts failed pairs.

    Args:
        errors: (N,) float, N >= 1; infinite for a failed pair.

    Returns:
        The median; infinite if at least half of the pairs failed.
    """
    ordered = np.sort(np.asarray(errors, dtype=float))
    middle = len(ordered) // 2
    if len(ordered) % 2 or not np.isfinite(ordered[middle]):
        return float(ordered[middle])
    return float(0.5 * (ordered[middle - 1] + ordered[middle]))


def pair_scores(pairs: list[PairError]) -> dict[str, np.ndarray]:
    """Contribution of each pair to the metrics that are means over pairs.

    ``success_median5`` (median error < 5), ``SR_ME`` (mean <= 5), ``SR_MAE`` (max <= 10),
    ``AUC@5``, ``AUC@10`` and ``AUC@20`` of the mean error, ``mAUC`` (mean over i = 1..25 of the
    share with mean error < i), ``failed_rate``.

    Returns:
        (N,) float64 in [0, 1] by the name of the metric.
    """
    mean, median, largest = (
        np.array([getattr(pair, name) for pair in pairs]) for name in ("mean", "median", "max")
    )
    scores = {"success_median5": median < 5, "SR_ME": mean <= 5, "SR_MAE": largest <= 10}
    scores |= {f"AUC@{limit}": np.clip(1.0 - mean / limit, 0.0, None) for limit in (5, 10, 20)}
    scores["mAUC"] = (mean[:, None] < np.arange(1, 26)).mean(axis=1)
    scores["failed_rate"] = ~np.isfinite(mean)
    return {name: np.asarray(values, dtype=float) for name, values in scores.items()}


def aggregate(
    pairs: list[PairError], eyes: list[str] | None = None, n_bootstrap: int = N_BOOTSTRAP
) -> dict[str, float]:
    """All metrics over pairs.

    Args:
        pairs: errors, at least one.
        eyes: eye of each pair, for the bootstrap intervals over eyes; no intervals when None.
        n_bootstrap: number of resamples; the seed is fixed.

    Returns:
        ``pairs``, the means of :func:`pair_scores`, ``median_of_medians``. With ``eyes`` also their
        number and, for each metric, ``<metric>_low`` and ``<metric>_high`` (95 % interval).
    """
    scores, medians = pair_scores(pairs), np.array([pair.median for pair in pairs])
    result = {"pairs": float(len(pairs))} | {
        name: float(values.mean()) for name, values in scores.items()
    }
    result["median_of_medians"] = median_with_failures(medians)
    if eyes is not None:
        weights = bootstrap_weights(eyes, n_bootstrap)
        result["eyes"] = float(len(set(eyes)))
        for name, values in scores.items():
            result[f"{name}_low"], result[f"{name}_high"] = interval(
                weights @ values / weights.sum(axis=1)
            )
        resampled = weighted_medians(medians, weights)
        result["median_of_medians_low"], result["median_of_medians_high"] = interval(resampled)
    return result


def bootstrap_weights(eyes: list[str], n_bootstrap: int = N_BOOTSTRAP) -> np.ndarray:
    """How often each pair occurs when whole eyes are resampled with replacement.

    Errors of the pairs of one eye are correlated, so resampling single pairs would give too narrow
    intervals. The seed is fixed.

    Args:
        eyes: eye of each of the N pairs.
        n_bootstrap: number of resamples.

    Returns:
        (n_bootstrap, N) int.
    """
    names, index_of_pair = np.unique(np.array(eyes), return_inverse=True)
    drawn = np.random.default_rng(0).integers(0, len(names), (n_bootstrap, len(names)))
    times = np.stack([np.bincount(draw, minlength=len(names)) for draw in drawn])
    return times[:, index_of_pair]


def weighted_medians(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """:func:`median_with_failures` of resampled values.

    Args:
        values: (N,) float; infinite for a failed pair.
        weights: (B, N) int, how often each value occurs in each resample.

    Returns:
        (B,) float64.
    """
    order = np.argsort(values)
    ordered, counted = values[order], np.cumsum(weights[:, order], axis=1)
    total = counted[:, -1]
    lower, upper = (
        ordered[(counted <= rank[:, None]).sum(axis=1)] for rank in ((total - 1) // 2, total // 2)
    )
    return np.where(
        np.isfinite(upper), 0.5 * lower + 0.5 * np.where(np.isfinite(upper), upper, 0.0), upper
    )


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """95 % interval of a metric.

    Args:
        resampled: (B,) float, the metric of each resample. It may be infinite, so the limits are
            order statistics without interpolation.

    Returns:
        The lower and the upper limit.
    """
    low, high = np.percentile(resampled, [2.5, 97.5], method="inverted_cdf")
    return float(low), float(high)
