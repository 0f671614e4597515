"""Charts of the evaluation report: cumulative errors, and curves over the levels of a stress."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import plotly.graph_objects as go

from evaluation.cache import EvaluationRow
from evaluation.stress import LEVEL_NAMES, UNCHANGED, Stress
from evaluation.summary import stress_of
from pictures.pages import COLOURS, chart, pixels

AXES = {
    "rotation": "rotation of the moving image, degrees",
    "scale": "scale of the moving image",
    "overlap": "overlap left",
    "contrast": "contrast left",
    "noise": "noise, standard deviation",
    "blur": "blur, sigma in px at 512",
}
MAX_CURVE_PX = 25.0  # end of the cumulative error curve, px at 512; that of the mAUC
MIN_SHOWN_PX = 0.05  # smaller errors are drawn here: a logarithmic axis has no 0

# Records of metrics.json by method, by stress.
RecordsByStress = dict[Stress, dict[str, dict[str, Any]]]


def records_of_set(results: list[dict[str, Any]], set_name: str) -> RecordsByStress:
    """Records of a set by stress and method, the stress with the fewest changes first."""
    found: RecordsByStress = {}
    for record in results:
        if record["set"] == set_name:
            found.setdefault(stress_of(record), {})[record["method"]] = record
    return dict(
        sorted(
            found.items(),
            key=lambda item: (
                sum(value != getattr(UNCHANGED, name) for name, value in asdict(item[0]).items()),
                *asdict(item[0]).values(),
            ),
        )
    )


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
    """Cumulative errors, and success over the levels of every stress that was varied.

    Args:
        rows: of all sets.
        results: records of metrics.json.
        set_name: the set to draw.
        methods: in the order of their colours.
    """
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
            for stress, by_method in records_of_set(results, set_name).items()
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
    """Share of pairs with a mean error below x, failed pairs included in the total.

    Args:
        rows: of one set.
        methods: in the order of their colours.
        title: of the chart.
    """
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


def success_along(along: RecordsByStress, name: str, methods: list[str]) -> go.Figure:
    """Success rate over the levels of one stress, with its interval.

    Args:
        along: records of the stresses that differ in this level only.
        name: of the level.
        methods: in the order of their colours.
    """
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


def error_along(along: RecordsByStress, name: str, methods: list[str]) -> go.Figure:
    """Median error over the levels of one stress.

    If half of the pairs failed, the median is infinite and drawn at the upper edge.

    Args:
        along: records of the stresses that differ in this level only.
        name: of the level.
        methods: in the order of their colours.
    """
    figures = [
        record["median_of_medians"] for by_method in along.values() for record in by_method.values()
    ]
    top = 2.0 * max([10.0, *(value for value in figures if math.isfinite(value))])
    # The canvas of a rotated image is larger, so one pixel is a smaller error in px at 512.
    unit = "px at 512 of the rotated canvas (log)" if name == "rotation" else "px at 512 (log)"
    figure = chart(f"median error and {name}", AXES[name], unit, yaxis_type="log")
    for method in methods:
        points = sorted(
            (getattr(stress, name), by_method[method]["median_of_medians"])
            for stress, by_method in along.items()
            if method in by_method
        )
        heights = [max(value, MIN_SHOWN_PX) if math.isfinite(value) else top for _, value in points]
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
