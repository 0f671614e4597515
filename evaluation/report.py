"""``report.html`` of an evaluation: figures, curves, and every pair to look at, the worst first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from evaluation.cache import EvaluationRow
from evaluation.case_pictures import case_folder
from evaluation.statistics import grouped
from evaluation.stress import LEVEL_NAMES, UNCHANGED, Stress
from pictures.pages import COLOURS, ImageStore, chart, percent, pixels, write_page

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
AXES = {
    "rotation": "rotation of the moving image, degrees",
    "scale": "scale of the moving image",
    "overlap": "overlap left",
    "contrast": "contrast left",
    "noise": "noise, standard deviation",
    "blur": "blur, sigma in px at 512",
}
MAX_CURVE_PX = 25.0


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
        rows: of all sets, unions among them.
        metrics: content of metrics.json.
        pictures: folder of ``evaluation.case_pictures``; without it no pairs are shown.
        first: the method that orders the pairs.
        max_cases: pairs shown at most.
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
            record | {"stress": _stress(record).label()} for record in metrics["comparisons"]
        ],
    )


def _stress(record: dict[str, Any]) -> Stress:
    return Stress(**{name: record[name] for name in LEVEL_NAMES})


def _of_set(
    results: list[dict[str, Any]], set_name: str
) -> dict[Stress, dict[str, dict[str, Any]]]:
    """Results of a set by stress and method, mildest first."""
    found: dict[Stress, dict[str, dict[str, Any]]] = {}
    for record in results:
        if record["set"] == set_name:
            found.setdefault(_stress(record), {})[record["method"]] = record
    return dict(
        sorted(
            found.items(),
            key=lambda item: (
                sum(value != getattr(UNCHANGED, name) for name, value in asdict(item[0]).items()),
                *asdict(item[0]).values(),
            ),
        )
    )


def headline(results: list[dict[str, Any]], set_name: str, first: str) -> dict[str, Any]:
    """The one line that a reader wants of a set: the first method on the mildest stress."""
    stress, by_method = next(
        item for item in _of_set(results, set_name).items() if first in item[1]
    )
    return {"set": set_name, "stress": stress.label(), "record": by_method[first]}


def condition_tables(results: list[dict[str, Any]], set_name: str) -> list[dict[str, Any]]:
    """One table per stress: a row per method, a cell per figure with its interval."""

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
        for stress, by_method in _of_set(results, set_name).items()
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
        for stress, by_method in _of_set(results, set_name).items()
    ]


# --- charts -----------------------------------------------------------------------------------------------------------


def _style(methods: list[str], method: str) -> dict[str, Any]:
    dash = {"oracle": "dash", "identity": "dot"}.get(method, "solid")
    return {
        "color": "#777777" if dash != "solid" else COLOURS[methods.index(method) % len(COLOURS)],
        "dash": dash,
        "width": 2,
    }


def draw_charts(
    rows: list[EvaluationRow], results: list[dict[str, Any]], set_name: str, methods: list[str]
) -> list[go.Figure]:
    """Cumulative errors, error against angle, and success along every stress that was varied."""
    mine = [row for row in rows if row.set == set_name]
    stresses = set(row.stress for row in mine)
    figures = []
    if UNCHANGED in stresses:
        figures.append(
            cumulative_errors(
                [row for row in mine if row.stress == UNCHANGED],
                methods,
                "cumulative error, as given",
            )
        )
    if len(stresses) > 1:
        figures.append(
            cumulative_errors(mine, methods, f"cumulative error, all {len(stresses)} conditions")
        )
    for name in LEVEL_NAMES:
        along = {
            stress: by_method
            for stress, by_method in _of_set(results, set_name).items()
            if all(
                value == getattr(UNCHANGED, other)
                for other, value in asdict(stress).items()
                if other != name
            )
        }
        if len(along) > 1:
            figures.append(success_along(along, name, methods))
            if name == "rotation":
                figures.append(error_along(along, name, methods))
    return figures


def cumulative_errors(rows: list[EvaluationRow], methods: list[str], title: str) -> go.Figure:
    """Share of pairs with a mean error below x; a failed pair is below nothing."""
    figure = chart(
        title,
        "mean error, px at 512",
        "share of pairs",
        yaxis_range=[-0.02, 1.02],
        yaxis_tickformat=".0%",
        xaxis_range=[0, MAX_CURVE_PX],
    )
    for method in methods:
        errors = np.sort([row.error.mean for row in rows if row.method == method])
        if len(errors):
            shown = errors[errors <= MAX_CURVE_PX]
            heights = np.arange(1, len(shown) + 1) / len(errors)
            figure.add_scatter(
                x=[0.0, *shown, MAX_CURVE_PX],
                y=[0.0, *heights, len(shown) / len(errors)],
                name=method,
                mode="lines",
                line=_style(methods, method) | {"shape": "hv"},
            )
    return figure


def success_along(
    along: dict[Stress, dict[str, dict[str, Any]]], name: str, methods: list[str]
) -> go.Figure:
    """Success rate over the levels of one stress, with its interval."""
    figure = chart(
        f"success and {name}",
        AXES[name],
        "median error < 5 px",
        yaxis_range=[-0.04, 1.04],
        yaxis_tickformat=".0%",
    )
    for method in methods:
        points = sorted(
            (
                getattr(stress, name),
                *(by_method[method][f"success_median5{end}"] for end in ("", "_low", "_high")),
            )
            for stress, by_method in along.items()
            if method in by_method
        )
        if points:
            levels, rates, low, high = (np.array(values) for values in zip(*points, strict=True))
            figure.add_scatter(
                x=levels,
                y=rates,
                name=method,
                mode="lines+markers",
                line=_style(methods, method),
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": high - rates,
                    "arrayminus": rates - low,
                    "thickness": 1,
                    "width": 3,
                },
            )
    return figure


def error_along(
    along: dict[Stress, dict[str, dict[str, Any]]], name: str, methods: list[str]
) -> go.Figure:
    """Median error over the levels of one stress; where half of the pairs failed it is infinite, and drawn on the upper edge."""
    figures = [
        record["median_of_medians"] for by_method in along.values() for record in by_method.values()
    ]
    top = 2.0 * max([10.0, *(value for value in figures if math.isfinite(value))])
    # A turned canvas is larger, so that the same pixel counts less: the oracle's curve shows by how much.
    unit = "px at 512 of the turned canvas (log)" if name == "rotation" else "px at 512 (log)"
    figure = chart(f"median error and {name}", AXES[name], unit, yaxis_type="log")
    for method in methods:
        points = sorted(
            (getattr(stress, name), by_method[method]["median_of_medians"])
            for stress, by_method in along.items()
            if method in by_method
        )
        # An exact landmark set leaves the oracle no error at all, which a logarithm cannot show.
        heights = [max(value, 0.05) if math.isfinite(value) else top for _, value in points]
        figure.add_scatter(
            x=[level for level, _ in points],
            y=heights,
            name=method,
            mode="lines+markers",
            line=_style(methods, method),
            text=[pixels(value) for _, value in points],
            hovertemplate="%{x:g}: %{text}<extra>" + method + "</extra>",
        )
    figure.add_annotation(
        text="half of the pairs failed",
        x=0.5,
        xref="paper",
        y=math.log10(top),
        showarrow=False,
        yshift=12,
        font={"size": 11, "color": "#777777"},
    )
    return figure


# --- pairs to look at -------------------------------------------------------------------------------------------------


def _badness(row: EvaluationRow | None) -> float:
    return row.error.mean if row else -1.0


def collect_cases(
    rows: list[EvaluationRow], pictures: Path, first: str, max_cases: int, images: ImageStore
) -> list[dict[str, Any]]:
    """The pairs that the page shows, by the error of the first method, the worst first.

    Where there are more than ``max_cases``, every pair comes with its worst condition before any comes with a second; every pair
    comes once, even if that is more than ``max_cases`` (unless that is 0).
    """
    found: dict[tuple[str, str, Stress], dict[str, EvaluationRow]] = {}
    for (_, _, stress), group in grouped(rows).items():
        for row in group:
            if (
                case_folder(pictures, row.set, row.id, stress.slug()) / "unregistered.jpg"
            ).is_file():
                found.setdefault((row.set, row.id, stress), {})[row.method] = row
    worst_first = sorted(found, key=lambda key: -_badness(found[key].get(first)))
    rank: dict[tuple[str, str], int] = {}
    turns = []
    for key in worst_first:
        turns.append(rank.setdefault(key[:2], 0))
        rank[key[:2]] += 1
    shown = max(max_cases, len(rank)) if max_cases else 0
    chosen = [
        key for _, key in sorted(zip(turns, worst_first, strict=True), key=lambda item: item[0])
    ][:shown]
    return [
        _case(key, found[key], case_folder(pictures, *key[:2], key[2].slug()), images)
        for key in worst_first
        if key in set(chosen)
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
                "error": _badness(row) if math.isfinite(_badness(row)) else None,
                "caption": describe(row),
            }
            for method, row in by_method.items()
        },
    }


def describe(row: EvaluationRow) -> str:
    """A line about a result."""
    seconds = f" · {row.seconds:.2f} s" if row.seconds else ""
    if row.status == "failed":
        return f"failed: {row.reason}{seconds}"
    matches = f" · {row.n_inliers} of {row.n_matches} matches agree" if row.n_matches else ""
    return f"median {row.error.median:.1f} px, mean {row.error.mean:.1f}, max {row.error.max:.1f}{matches}{seconds}"
