"""Every figure of an evaluation, from its rows alone: aggregates with intervals, comparisons pair by pair, wrong pairs.

Failures count everywhere: an infinite error is a loss in every rate, every area and every comparison.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.stats import binomtest

from evaluation.cache import EvaluationRow
from evaluation.metrics import aggregate, bootstrap_weights, interval, pair_scores
from evaluation.stress import Stress

COMPARED = ("success_median5", "AUC@10", "mAUC")


def grouped(rows: Iterable[EvaluationRow]) -> dict[tuple[str, str, Stress], list[EvaluationRow]]:
    """Rows by (set, method, stress), each group in the order of its pairs' names."""
    groups: dict[tuple[str, str, Stress], list[EvaluationRow]] = {}
    for row in rows:
        groups.setdefault((row.set, row.method, row.stress), []).append(row)
    return {key: sorted(group, key=lambda row: row.id) for key, group in groups.items()}


def summarise(rows: Iterable[EvaluationRow]) -> list[dict[str, Any]]:
    """One record per set, method and stress: the stress levels, all figures of ``evaluation.metrics.aggregate`` with their 95 %
    intervals over eyes, and the mean seconds per pair."""
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

    Returns:
        One record per set, stress and other method: the differences (first minus other) of the figures in ``COMPARED`` with
        95 % intervals over eyes, and on how many pairs which of the two has the smaller mean error (``better``, ``worse``,
        ``equal``; both failed is equal) with the two-sided p value of the sign test. Pairs of one eye are not independent, so
        read ``p_sign`` beside the interval, which knows that.
    """
    groups = grouped(rows)
    records = []
    for (set_name, method, stress), others in groups.items():
        mine = {row.id: row for row in groups.get((set_name, first, stress), [])}
        both = [(mine[row.id], row) for row in others if row.id in mine]
        if method == first or not both:
            continue
        weights = bootstrap_weights([row.eye for row, _ in both])
        scores, other_scores = (pair_scores([pair[side].error for pair in both]) for side in (0, 1))
        record: dict[str, Any] = {
            "set": set_name,
            **asdict(stress),
            "method": first,
            "other": method,
            "pairs": len(both),
        }
        for name in COMPARED:
            difference = scores[name] - other_scores[name]
            record[name] = float(difference.mean())
            record[f"{name}_low"], record[f"{name}_high"] = interval(
                weights @ difference / weights.sum(axis=1)
            )
        better = sum(row.error.mean < other.error.mean for row, other in both)
        worse = sum(row.error.mean > other.error.mean for row, other in both)
        record |= {
            "better": better,
            "worse": worse,
            "equal": len(both) - better - worse,
            "p_sign": float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        }
        records.append(record)
    return records


def accepted_wrong_pairs(rows: Iterable[EvaluationRow]) -> list[dict[str, Any]]:
    """How often a method said "ok" to images of different eyes: one record per set and method, with a 95 % interval over
    eyes. 0 is right."""
    records = []
    for (set_name, method, _), group in grouped(rows).items():
        said_ok = np.array([row.status == "ok" for row in group], dtype=float)
        weights = bootstrap_weights([row.eye for row in group])
        low, high = interval(weights @ said_ok / weights.sum(axis=1))
        records.append(
            {
                "set": set_name,
                "method": method,
                "pairs": len(group),
                "said_ok": int(said_ok.sum()),
                "share_ok": float(said_ok.mean()),
                "share_ok_low": low,
                "share_ok_high": high,
            }
        )
    return records
