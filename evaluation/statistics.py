"""Statistics of an evaluation from its rows: aggregates, paired comparisons, wrong pairs.

Failures count everywhere: a pair with an infinite error lowers every rate, every area and every
comparison.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from evaluation.cache import EvaluationRow
from evaluation.metrics import aggregate, bootstrap_weights, interval, pair_scores
from evaluation.stress import Stress

# Metrics whose differences are compared pair by pair.
COMPARED = ("success_median5", "AUC@10", "mAUC")
# Name of the union of the sets of real pairs.
ALL_REAL = "all real pairs"


def with_union(rows: Iterable[EvaluationRow], real_names: list[str]) -> list[EvaluationRow]:
    """The rows, and with several sets of real pairs, their rows again as one set.

    Args:
        rows: of all sets.
        real_names: names of the sets of real pairs.
    """
    rows = list(rows)
    if len(real_names) < 2:
        return rows
    return rows + [replace(row, set=ALL_REAL) for row in rows if row.set in real_names]


def grouped(rows: Iterable[EvaluationRow]) -> dict[tuple[str, str, Stress], list[EvaluationRow]]:
    """Rows by (set, method, stress), each group in the order of its pairs' names."""
    groups: dict[tuple[str, str, Stress], list[EvaluationRow]] = {}
    for row in rows:
        groups.setdefault((row.set, row.method, row.stress), []).append(row)
    return {key: sorted(group, key=lambda row: row.id) for key, group in groups.items()}


def summarise(rows: Iterable[EvaluationRow]) -> list[dict[str, Any]]:
    """Metrics per set, method and stress.

    Returns:
        One record each: the levels of the stress, the metrics of
        :func:`evaluation.metrics.aggregate` with their 95 % intervals over eyes, and the mean
        seconds per pair.
    """
    return [
        {
            "set": set_name,
            "method": method,
            **asdict(stress),
            **aggregate([row.error for row in group], [row.eye for row in group]),
            "seconds": float(np.mean([row.seconds for row in group])),
        }
        for (set_name, method, stress), group in grouped(rows).items()
    ]


def compare(rows: Iterable[EvaluationRow], first: str) -> list[dict[str, Any]]:
    """Compare one method with every other on the same pairs.

    Args:
        rows: of all sets and methods.
        first: the method that is compared with the others.

    Returns:
        One record per set, stress and other method, see :func:`_paired_difference`.
    """
    groups = grouped(rows)
    records = []
    for (set_name, method, stress), others in groups.items():
        mine = {row.id: row for row in groups.get((set_name, first, stress), [])}
        both = [(mine[row.id], row) for row in others if row.id in mine]
        if method != first and both:
            labels = {"set": set_name, **asdict(stress), "method": first, "other": method}
            records.append(labels | _paired_difference(both))
    return records


def _paired_difference(both: list[tuple[EvaluationRow, EvaluationRow]]) -> dict[str, Any]:
    """Differences of two methods on the same pairs.

    Args:
        both: rows of the first and of the other method, one tuple per pair.

    Returns:
        The differences (first minus other) of the metrics in ``COMPARED`` with 95 % intervals over
        eyes; the numbers of pairs on which the mean error of the first is smaller (``better``),
        larger (``worse``) or ``equal`` (both failed counts as equal); and ``p_sign``, the two-sided
        p value of the sign test. The sign test treats the pairs as independent, which pairs of one
        eye are not; the intervals account for it.
    """
    weights = bootstrap_weights([row.eye for row, _ in both])
    scores, other_scores = (pair_scores([pair[side].error for pair in both]) for side in (0, 1))
    record: dict[str, Any] = {"pairs": len(both)}
    for name in COMPARED:
        difference = scores[name] - other_scores[name]
        record[name] = float(difference.mean())
        record[f"{name}_low"], record[f"{name}_high"] = interval(
            weights @ difference / weights.sum(axis=1)
        )
    better = sum(row.error.mean < other.error.mean for row, other in both)
    worse = sum(row.error.mean > other.error.mean for row, other in both)
    return record | {
        "better": better,
        "worse": worse,
        "equal": len(both) - better - worse,
        "p_sign": float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
    }


def accepted_wrong_pairs(rows: Iterable[EvaluationRow]) -> list[dict[str, Any]]:
    """False acceptance rate: how often a method returned "ok" for images of different eyes.

    Returns:
        One record per set and method, with a 95 % interval over eyes.
    """
    records = []
    for (set_name, method, _), group in grouped(rows).items():
        accepted = np.array([row.status == "ok" for row in group], dtype=float)
        weights = bootstrap_weights([row.eye for row in group])
        low, high = interval(weights @ accepted / weights.sum(axis=1))
        records.append(
            {
                "set": set_name,
                "method": method,
                "pairs": len(group),
                "said_ok": int(accepted.sum()),
                "share_ok": float(accepted.mean()),
                "share_ok_low": low,
                "share_ok_high": high,
            }
        )
    return records
