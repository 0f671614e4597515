"""``report.html`` of an evaluation: metrics, charts, and pictures of the pairs, worst first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evaluation.cache import EvaluationRow
from evaluation.case_pictures import case_folder
from evaluation.charts import draw_charts, records_of_set
from evaluation.method import BARE_SUFFIX
from evaluation.statistics import grouped
from evaluation.stress import Stress
from evaluation.summary import stress_of
from pictures.pages import ImageStore, percent, pixels, write_page

# Metrics of the tables: name in metrics.json, title, format.
FIGURES = [
    ("success_median5", "median < 5 px", percent),
    ("SR_ME", "mean ≤ 5", percent),
    ("SR_MAE", "max ≤ 10", percent),
    ("AUC@5", "AUC@5", "{:.2f}".format),
    ("AUC@10", "AUC@10", "{:.2f}".format),
    ("AUC@20", "AUC@20", "{:.2f}".format),
    ("mAUC", "mAUC", "{:.2f}".format),
    ("failed_rate", "failed", percent),
    ("median_of_medians", "median px", pixels),
]


def write_evaluation_report(
    path: Path,
    rows: Iterable[EvaluationRow],
    metrics: dict[str, Any],
    pictures: Path | None,
    first: str,
    max_cases: int,
) -> None:
    """Write the page.

    Args:
        path: of the page.
        rows: of all sets, with their union.
        metrics: content of metrics.json.
        pictures: folder of :mod:`evaluation.case_pictures`; without it no pairs are shown.
        first: the method whose error orders the pairs.
        max_cases: number of pairs to show, see :func:`collect_cases`.
    """
    rows = list(rows)
    methods = list(dict.fromkeys([first, *(row.method for row in rows)]))
    sets = list(dict.fromkeys(row.set for row in rows))
    images = ImageStore()
    cases = collect_cases(rows, pictures, first, max_cases, images) if pictures else []
    n_cases = len(
        {(row.set, row.id, row.stress) for row in rows if row.set in metrics["settings"]["sets"]}
    )
    charts = [(name, draw_charts(rows, metrics["results"], name, methods)) for name in sets]
    write_page(
        path,
        "evaluation.html.j2",
        images,
        charts,
        title="Registration, evaluated",
        first=first,
        methods=methods,
        bare_methods=[name for name in methods if name.endswith(BARE_SUFFIX)],
        metrics=metrics,
        cases=cases,
        n_cases=n_cases,
        headline=[
            headline(metrics["results"], name, first)
            for name in sets
            if any(row.set == name and row.method == first for row in rows)
        ],
        tables=[(name, condition_tables(metrics["results"], name)) for name in sets],
        matrices=[(name, success_matrix(metrics["results"], name, methods)) for name in sets],
        comparisons=[
            record | {"stress": stress_of(record).label()} for record in metrics["comparisons"]
        ],
    )


def headline(results: list[dict[str, Any]], set_name: str, first: str) -> dict[str, Any]:
    """Record of the first method under the stress with the fewest changes."""
    stress, by_method = next(
        item for item in records_of_set(results, set_name).items() if first in item[1]
    )
    return {"set": set_name, "stress": stress.label(), "record": by_method[first]}


def condition_tables(results: list[dict[str, Any]], set_name: str) -> list[dict[str, Any]]:
    """One table per stress: a row per method, a cell per metric with its interval."""

    def cells(record: dict[str, Any]) -> list[dict[str, str]]:
        return [
            {
                "value": show(record[name]),
                "interval": f"{show(record[f'{name}_low'])} – {show(record[f'{name}_high'])}",
            }
            for name, _, show in FIGURES
        ]

    return [
        {
            "stress": stress.label(),
            "titles": [title for _, title, _ in FIGURES],
            "rows": [
                {
                    "method": method,
                    "pairs": int(record["pairs"]),
                    "eyes": int(record["eyes"]),
                    "cells": cells(record),
                    "seconds": f"{record['seconds']:.2f}",
                }
                for method, record in by_method.items()
            ],
        }
        for stress, by_method in records_of_set(results, set_name).items()
    ]


def success_matrix(
    results: list[dict[str, Any]], set_name: str, methods: list[str]
) -> list[dict[str, Any]]:
    """Success rate of every method under every stress; None where it was not run."""
    return [
        {
            "stress": stress.label(),
            "rates": [
                by_method[method]["success_median5"] if method in by_method else None
                for method in methods
            ],
        }
        for stress, by_method in records_of_set(results, set_name).items()
    ]


def _sort_error(row: EvaluationRow | None) -> float:
    """Mean error, px at 512; -1 without a result, which sorts last."""
    return row.error.mean if row else -1.0


def collect_cases(
    rows: list[EvaluationRow], pictures: Path, first: str, max_cases: int, images: ImageStore
) -> list[dict[str, Any]]:
    """The cases (a pair under a stress) that the page shows, by the error of the first method.

    If there are more than ``max_cases``, the worst case of every pair is chosen first, then the
    second worst of every pair, and so on. Every pair is shown at least once, even if that exceeds
    ``max_cases``.

    Args:
        rows: of all sets.
        pictures: folder of :mod:`evaluation.case_pictures`; cases without pictures are left out.
        first: the method whose error orders the cases, the worst first.
        max_cases: number of cases; 0 for none.
        images: takes the pictures.
    """
    found: dict[tuple[str, str, Stress], dict[str, EvaluationRow]] = {}
    for (_, _, stress), group in grouped(rows).items():
        for row in group:
            if (
                case_folder(pictures, row.set, row.id, stress.slug()) / "unregistered.jpg"
            ).is_file():
                found.setdefault((row.set, row.id, stress), {})[row.method] = row
    worst_first = sorted(found, key=lambda key: -_sort_error(found[key].get(first)))
    # Rank of each case among those of its pair: 0 for the worst.
    n_before: dict[tuple[str, str], int] = {}
    ranks = []
    for key in worst_first:
        ranks.append(n_before.setdefault(key[:2], 0))
        n_before[key[:2]] += 1
    n_shown = max(max_cases, len(n_before)) if max_cases else 0
    by_rank = sorted(zip(ranks, worst_first, strict=True), key=lambda item: item[0])
    chosen = {key for _, key in by_rank[:n_shown]}
    return [
        _case(key, found[key], case_folder(pictures, *key[:2], key[2].slug()), images)
        for key in worst_first
        if key in chosen
    ]


def _case(
    key: tuple[str, str, Stress],
    by_method: dict[str, EvaluationRow],
    folder: Path,
    images: ImageStore,
) -> dict[str, Any]:
    return {
        "set": key[0],
        "id": key[1],
        "stress": key[2].label(),
        "fixed": images.add(folder.parent / "fixed.jpg"),
        "before": images.add(folder / "unregistered.jpg"),
        "methods": {
            method: {
                "registered": images.add(folder / f"{method}_registered.jpg"),
                "matches": images.add(folder / f"{method}_matches.jpg"),
                "error": _sort_error(row) if math.isfinite(_sort_error(row)) else None,
                "caption": describe(row),
            }
            for method, row in by_method.items()
        },
    }


def describe(row: EvaluationRow) -> str:
    """The result of a method as one line of text."""
    seconds = f" · {row.seconds:.2f} s" if row.seconds else ""
    if row.status == "failed":
        return f"failed: {row.reason}{seconds}"
    matches = f" · {row.n_inliers} of {row.n_matches} matches agree" if row.n_matches else ""
    error = row.error
    errors = f"median {error.median:.1f} px, mean {error.mean:.1f}, max {error.max:.1f}"
    return f"{errors}{matches}{seconds}"
