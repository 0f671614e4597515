"""``report.html`` of a training run: its curves, and the same validation pairs after every epoch side by side."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from pictures.pages import COLOURS, ImageStore, chart, write_page

# Suffix of the pictures that a validation writes, what they show, and the size at which the page keeps them.
PICTURE_KINDS = [
    ("fix_registered_checkerboard", "Checkerboard", 420),
    ("matches", "Matches", 720),
    ("keypoints", "Keypoints", 720),
]
MAX_EPOCHS, MAX_SAMPLES = 8, 6
PAIR_LINE = re.compile(r"^(\S+): (error .*)$")


def write_training_report(
    path: Path, history: list[dict[str, float]], panels: dict[str, list[str]]
) -> None:
    """Write the page into a run's folder, from its history and the pictures in its ``epoch<N>`` folders.

    Args:
        path: of the page; its parent is the run's folder.
        history: one record per epoch.
        panels: names of the figures of each chart, by its title.
    """
    images, run_dir = ImageStore(), path.parent
    epochs = pick_epochs(
        [
            int(record["epoch"])
            for record in history
            if (run_dir / f"epoch{int(record['epoch'])}").is_dir()
        ]
    )
    lines = read_pair_lines(run_dir / "validation_log.txt")
    samples = collect_samples(run_dir, epochs, lines, images)
    charts = [curves(title, names, history) for title, names in panels.items()]
    write_page(
        path,
        "training.html.j2",
        images,
        [("Curves", charts)],
        latest=tiles(history),
        samples=samples,
        title=f"Training run {'/'.join(path.resolve().parts[-3:-1])}",
        kinds=[(suffix, title) for suffix, title, _ in PICTURE_KINDS],
    )


def curves(title: str, names: list[str], history: list[dict[str, float]]) -> go.Figure:
    """Figures of the run over the epochs; infinite values are left out."""
    figure = chart(title, "epoch", "")
    for index, name in enumerate(names):
        points = [
            (record["epoch"], record[name])
            for record in history
            if name in record and np.isfinite(record[name])
        ]
        if points:
            x, y = zip(*points, strict=True)
            figure.add_scatter(
                x=x,
                y=y,
                name=name.removeprefix("val_"),
                mode="lines+markers",
                marker={"size": 5},
                line={"color": COLOURS[index % len(COLOURS)], "width": 2},
            )
    figure.update_layout(showlegend=True)
    return figure


def tiles(history: list[dict[str, float]]) -> list[tuple[str, str, str]]:
    """The latest of the figures that matter, and what they were at first: (name, now, at first)."""
    wanted = [
        ("val_rate_generated", "generated pairs below 5 px", "{:.0%}"),
        ("val_corner_error", "median corner error, px", "{:.2f}"),
        ("val_rate_real", "real pairs below 5 px", "{:.0%}"),
        ("val_mse", "MSE of the registered image", "{:.4f}"),
        ("total", "loss", "{:.3f}"),
    ]
    found = []
    for name, title, form in wanted:
        values = [record[name] for record in history if name in record]
        if values:
            now, first = (
                form.format(value) if math.isfinite(value) else "failed"
                for value in (values[-1], values[0])
            )
            found.append((title, now, first))
    return found


def pick_epochs(epochs: list[int]) -> list[int]:
    """The first, the last, and evenly spread ones between, at most ``MAX_EPOCHS``."""
    chosen = np.linspace(0, len(epochs) - 1, min(MAX_EPOCHS, len(epochs))).round().astype(int)
    return [epochs[index] for index in dict.fromkeys(chosen.tolist())]


def read_pair_lines(path: Path) -> dict[tuple[int, str], str]:
    """What ``validation_log.txt`` says about each pair: by (epoch, key)."""
    found: dict[tuple[int, str], str] = {}
    epoch = -1
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        if line.startswith("== epoch "):
            epoch = int(line.split()[2])
        elif pair := PAIR_LINE.match(line):
            found[epoch, pair[1]] = " ".join(pair[2].split())
    return found


def collect_samples(
    run_dir: Path, epochs: list[int], lines: dict[tuple[int, str], str], images: ImageStore
) -> list[dict[str, Any]]:
    """The validated pairs that have pictures, with those of every chosen epoch."""
    if not epochs:
        return []
    suffix = f"_{PICTURE_KINDS[1][0]}.png"
    keys = sorted(
        path.name.removesuffix(suffix)
        for path in (run_dir / f"epoch{epochs[-1]}").glob(f"*{suffix}")
    )
    return [
        {
            "key": key,
            "epochs": [
                {
                    "epoch": epoch,
                    "text": lines.get((epoch, key), ""),
                    "pictures": {
                        kind: images.add(run_dir / f"epoch{epoch}" / f"{key}_{kind}.png", px)
                        for kind, _, px in PICTURE_KINDS
                    },
                }
                for epoch in epochs
            ],
        }
        for key in keys[:MAX_SAMPLES]
    ]
