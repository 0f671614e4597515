"""The content of metrics.json, and the table on the terminal."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from evaluation.cache import EvaluationRow
from evaluation.statistics import accepted_wrong_pairs, compare, summarise
from evaluation.stress import LEVEL_NAMES, Stress

# Rules of the evaluation, written to metrics.json. They are part of the settings of kept results:
# any change of the text invalidates all kept results.
RULES = {
    "failure_rule": "no transform returned; scored as infinite in every figure",
    "unit": "moving pixels * 512 / max(height, width) of the moving image as the method sees it; "
    "turning enlarges its canvas, so errors at 45 degrees count up to 1.41 times less; a crop "
    "makes them count more",
    "thresholds": "median < 5, mean <= 5 (SR_ME), max <= 10 (SR_MAE), AUC of the mean error up to "
    "5, 10 and 20, mAUC over 1..25 px",
    "aggregation": "mean over pairs, each counted once; median of the pairs' medians",
    "interval": "95 % bootstrap over eyes, 1000 resamples, seeded",
}
# Columns of the table on the terminal: metric and title.
TABLE = [
    ("success_median5", "median<5"),
    ("SR_ME", "SR_ME"),
    ("SR_MAE", "SR_MAE"),
    ("AUC@5", "AUC@5"),
    ("AUC@10", "AUC@10"),
    ("AUC@20", "AUC@20"),
    ("mAUC", "mAUC"),
    ("failed_rate", "failed"),
    ("median_of_medians", "med.med."),
    ("seconds", "s/pair"),
]


def collect_metrics(
    rows: list[EvaluationRow],
    wrong_rows: Iterable[EvaluationRow],
    first: str,
    settings: dict[str, Any],
    not_run: dict[str, str],
) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        rows: of all sets, with their union.
        wrong_rows: of the wrong pairs.
        first: the method that is compared with the others.
        settings: everything that the results depend on.
        not_run: for each method that could not run, the reason.
    """
    return {
        "settings": settings,
        "not_run": not_run,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "results": summarise(rows),
        "comparisons": compare(rows, first),
        "wrong_pairs": accepted_wrong_pairs(wrong_rows),
    }


def without_infinities(value: Any) -> Any:
    """The value with null in place of infinity and not-a-number, which JSON lacks."""
    if isinstance(value, dict):
        return {name: without_infinities(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def stress_of(record: dict[str, Any]) -> Stress:
    """The stress of a record of metrics.json."""
    return Stress(**{name: record[name] for name in LEVEL_NAMES})


def format_table(summary: list[dict[str, Any]], wrong_pairs: list[dict[str, Any]]) -> str:
    """The table for the terminal.

    Args:
        summary: records of :func:`evaluation.statistics.summarise`.
        wrong_pairs: records of :func:`evaluation.statistics.accepted_wrong_pairs`.
    """
    width = max(len(row["method"]) for row in summary) + 2
    titles = "".join(f"{title:>10}" for _, title in TABLE)
    lines = []
    for set_name in dict.fromkeys(row["set"] for row in summary):
        lines.append(f"\n{set_name}\n{'method':<{width}}{'moving image':<38}{'pairs':>6}{titles}")
        of_set = [row for row in summary if row["set"] == set_name]
        for row in sorted(of_set, key=lambda row: stress_of(row).label()):
            figures = "".join(f"{row[name]:>10.3f}" for name, _ in TABLE)
            lines.append(
                f"{row['method']:<{width}}{stress_of(row).label():<38}{row['pairs']:>6.0f}{figures}"
            )
    lines += [
        f"{row['set']}, wrong pairs: {row['method']} returned ok for {row['said_ok']} "
        f"of {row['pairs']}"
        for row in wrong_pairs
    ]
    return "\n".join(lines)
