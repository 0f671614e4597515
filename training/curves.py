"""Training curves of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dataset.view_sources import FORMS
from loss.forms import term_and_form
from utils.files import write_bytes_atomically

LOSS_TERMS = "loss terms"
KEYPOINT_EXPANSION = "keypoint expansion"
# The engine logs how many samples contributed nothing to each loss term under this prefix, so the
# terms of any objective are found by it.
EMPTY_PREFIX = "empty_"
OF_FORMS = "each form of sample: "  # one panel per term
MAX_COLUMNS = 4  # panels in a row
PANEL_HEIGHT = 3.75  # inches

History = list[dict[str, float]]  # one record per epoch: "epoch", figures, "val_" figures


def curve_panels(history: History) -> dict[str, list[str]]:
    """Names of the figures of each panel, by the title of the panel; panels without data are left
    out.

    Args:
        history: one record per epoch.
    """
    known = {name: None for record in history for name in record}
    terms = [name.removeprefix(EMPTY_PREFIX) for name in known if name.startswith(EMPTY_PREFIX)]

    def starting_with(*prefixes: str) -> list[str]:
        return sorted(
            name for name in known if name.startswith(tuple(f"val_{p}" for p in prefixes))
        )

    panels = {
        LOSS_TERMS: ["total", *terms],
        **{OF_FORMS + term: _of_forms(history, term) for term in terms},
        "MSE of the registered image": ["val_mse"],
        "bare view: success rates, AUC": starting_with("rate", "AUC"),
        "right matches, repeatability": starting_with("repeatability", "MMA", "precision"),
        "errors, px at 512": [
            "val_corner_error",
            "val_landmark_error",
            *starting_with("localisation"),
        ],
        KEYPOINT_EXPANSION: [
            "pke_passed",
            "pke_labels",
            "pke_repeated",
            "map_places",
            "map_admitted",
            "val_new_keypoints",
        ],
        "cells per batch: matched, right at first choice": ["vessel_matches", "right_matches"],
        "learning rate": ["lr"],
    }
    return {title: names for title, names in panels.items() if set(known) & set(names)}


def _of_forms(history: History, term: str) -> list[str]:
    """Names of the figures of a term for each form that ever had a sample.

    None for a single form, because its curve is that of the term.
    """
    names = [name for name in (f"{term}_{form}" for form in FORMS) if form_points(history, name)]
    return names if len(names) > 1 else []


def form_points(history: History, name: str) -> list[tuple[float, float]]:
    """(epoch, value) of a figure ``<term>_<form>``, without the epochs that had no such sample.

    These are logged as exactly 0, which would look like a perfect loss.

    Args:
        history: one record per epoch.
        name: of the figure.
    """
    return [(epoch, value) for epoch, value in finite_points(history, name) if value != 0.0]


class Curve(NamedTuple):
    """A curve of a panel.

    Attributes:
        label: for the legend.
        colour: number of its colour in a list of colours.
        points: (epoch, value); at least one.
    """

    label: str
    colour: int
    points: list[tuple[float, float]]


def panel_curves(title: str, names: list[str], history: History) -> list[Curve]:
    """The curves of a panel of :func:`curve_panels`; figures without a finite value are left out.

    Args:
        title: of the panel.
        names: of its figures.
        history: one record per epoch.
    """
    curves = []
    for index, name in enumerate(names):
        if title.startswith(OF_FORMS):
            form = term_and_form(name)[1]  # it has one colour in all panels
            curves.append(Curve(form, FORMS.index(form), form_points(history, name)))
        else:
            curves.append(Curve(name.removeprefix("val_"), index, finite_points(history, name)))
    return [curve for curve in curves if curve.points]


def finite_points(history: History, name: str) -> list[tuple[float, float]]:
    """(epoch, value) of a figure, without infinite values and NaN.

    Args:
        history: one record per epoch.
        name: of the figure.
    """
    return [
        (record["epoch"], record[name])
        for record in history
        if name in record and np.isfinite(record[name])
    ]


def draw_curves(path: Path, history: History) -> None:
    """Write a picture of every figure of the run over the epochs, one panel per group.

    Args:
        path: of the picture.
        history: one record per epoch.
    """
    panels = curve_panels(history)
    # Two rows, and more of them where a row would be too crowded.
    rows = max(2, -(-len(panels) // MAX_COLUMNS))
    columns = max(1, -(-len(panels) // rows))
    # Without pyplot: no global state, no window system.
    figure = Figure(figsize=(13, PANEL_HEIGHT * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, title, panel_curves(title, names, history))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    write_bytes_atomically(path, buffer.getvalue())


def _draw_panel(axis: Axes, title: str, curves: list[Curve]) -> None:
    for curve in curves:
        epochs, values = zip(*curve.points, strict=True)
        colour = f"C{curve.colour}"
        axis.plot(epochs, values, label=curve.label, marker="o", markersize=3, color=colour)
    axis.set(title=title, xlabel="epoch")
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=8)
    if title == LOSS_TERMS and any(np.max(line.get_ydata()) > 0 for line in axis.lines):
        axis.set_yscale("log")  # the descriptor loss is ten times the others
    if title == KEYPOINT_EXPANSION and axis.lines:
        axis.set_yscale("symlog")
