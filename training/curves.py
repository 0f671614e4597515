"""Training curves of a run."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from training.report import write_training_report
from utils.files import write_bytes_atomically


def curve_panels(history: list[dict[str, float]]) -> dict[str, list[str]]:
    """Names of the figures of each panel that this run has, by its title."""
    panels = {
        "loss terms": ["total", "det", "des", "geo", "pke", "coarse", "fine"],
        "validation: MSE of the registered image": ["val_mse"],
        "validation: success rates": sorted(
            {k for record in history for k in record if k.startswith("val_rate")}
        ),
        "validation: median error (px at 512)": ["val_corner_error", "val_landmark_error"],
        "keypoint expansion": ["pke_passed", "pke_labels", "map_places", "map_admitted"],
        "cells per batch: matched, right at first choice": ["vessel_matches", "right_matches"],
        "learning rate": ["lr"],
    }
    known = set().union(*history)
    return {title: names for title, names in panels.items() if known & set(names)}


def draw_curves(path: Path, history: list[dict[str, float]]) -> None:
    """Draw every figure of the run over the epochs, one panel per group; beside it write ``report.html``, the same curves with
    the pictures of the epochs.

    Args:
        history: one record per epoch with "epoch" and any of the figures below; infinite values are left out.
    """
    # Drawn without pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = curve_panels(history)
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, max(1, -(-len(panels) // 2)), squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            points = [
                (record["epoch"], record[name])
                for record in history
                if name in record and np.isfinite(record[name])
            ]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    markersize=3,
                    label=name.removeprefix("val_"),
                )
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
        if title == "keypoint expansion" and axis.lines:
            axis.set_yscale("symlog")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    write_bytes_atomically(path, buffer.getvalue())
    write_training_report(path.with_name("report.html"), history, panels)
