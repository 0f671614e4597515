"""``report.html`` of a training run: curves, and the same validation pairs at several epochs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from pictures.pages import COLOURS, ImageStore, chart, write_page
from training.curves import History, curve_panels, panel_curves
from training.epoch_log import HEADER


class PictureKind(NamedTuple):
    """A picture that the validation writes as ``<sample>_<suffix>.png``.

    Attributes:
        suffix: of the file name.
        title: on the page.
        long_side: size at which the page embeds it, pixels.
    """

    suffix: str
    title: str
    long_side: int


PICTURE_KINDS = [
    PictureKind("fix_registered_checkerboard", "Checkerboard", 420),
    PictureKind("matches", "Matches", 720),
    PictureKind("keypoints", "Keypoints", 720),
]
MAX_EPOCHS = 8  # epochs side by side
MAX_SAMPLES = 6  # validation pairs on the page
PAIR_LINE = re.compile(r"^(\S+): (error .*)$")
# Figures at the top of the page: name in the history, title, format.
TILES = [
    ("val_rate", "generated pairs below 5 px, bare", "{:.0%}"),
    ("val_repeatability", "keypoints repeated within 3 px", "{:.0%}"),
    ("val_MMA@3", "matches right within 3 px", "{:.0%}"),
    ("val_rate_real", "real pairs below 5 px, bare", "{:.0%}"),
    ("val_mse", "MSE of the registered image", "{:.4f}"),
    ("total", "loss", "{:.3f}"),
]


def write_training_report(path: Path, history: History) -> None:
    """Write the page from the history of a run and the pictures in its ``epoch<N>`` folders.

    Args:
        path: of the page; its parent is the folder of the run.
        history: one record per epoch.
    """
    images, run_dir = ImageStore(), path.parent
    finished = [int(record["epoch"]) for record in history]
    epochs = pick_epochs([epoch for epoch in finished if (run_dir / f"epoch{epoch}").is_dir()])
    lines = read_pair_lines(run_dir / "validation_log.txt")
    samples = collect_samples(run_dir, epochs, lines, images)
    panels = curve_panels(history)
    write_page(
        path,
        "training.html.j2",
        images,
        [("Curves", [draw_chart(title, names, history) for title, names in panels.items()])],
        latest=tiles(history),
        samples=samples,
        title=f"Training run {'/'.join(path.resolve().parts[-3:-1])}",
        kinds=[(kind.suffix, kind.title) for kind in PICTURE_KINDS],
    )


def draw_chart(title: str, names: list[str], history: History) -> go.Figure:
    """A chart of figures over the epochs; infinite values and NaN are left out.

    Args:
        title: of the chart.
        names: of the figures.
        history: one record per epoch.
    """
    figure = chart(title, "epoch", "")
    for curve in panel_curves(title, names, history):
        x, y = zip(*curve.points, strict=True)
        figure.add_scatter(
            x=x,
            y=y,
            name=curve.label,
            mode="lines+markers",
            marker={"size": 5},
            line={"color": COLOURS[curve.colour % len(COLOURS)], "width": 2},
        )
    figure.update_layout(showlegend=True)
    return figure


def tiles(history: History) -> list[tuple[str, str, str]]:
    """Title, last value and first value of each figure in ``TILES`` that the run has.

    Args:
        history: one record per epoch.
    """
    found = []
    for name, title, form in TILES:
        values = [record[name] for record in history if name in record]
        if values:
            last, first = (
                form.format(value) if math.isfinite(value) else "failed"
                for value in (values[-1], values[0])
            )
            found.append((title, last, first))
    return found


def pick_epochs(epochs: list[int]) -> list[int]:
    """The first, the last, and evenly spaced epochs between, at most ``MAX_EPOCHS``.

    Args:
        epochs: ascending.
    """
    chosen = np.linspace(0, len(epochs) - 1, min(MAX_EPOCHS, len(epochs))).round().astype(int)
    return [epochs[index] for index in dict.fromkeys(chosen.tolist())]


def read_pair_lines(path: Path) -> dict[tuple[int, str], str]:
    """The line of each validation pair in ``validation_log.txt``, by (epoch, key).

    Args:
        path: of the log; a missing one gives no lines.
    """
    found: dict[tuple[int, str], str] = {}
    epoch = -1
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        if line.startswith(HEADER):
            epoch = int(line.split()[2])
        elif pair := PAIR_LINE.match(line):
            found[epoch, pair[1]] = " ".join(pair[2].split())
    return found


def collect_samples(
    run_dir: Path, epochs: list[int], lines: dict[tuple[int, str], str], images: ImageStore
) -> list[dict[str, Any]]:
    """The validation pairs that have pictures, with their pictures at every chosen epoch.

    Args:
        run_dir: folder of the run.
        epochs: shown side by side.
        lines: from :func:`read_pair_lines`.
        images: embeds the pictures.

    Returns:
        Per pair ``key`` and ``epochs``; per epoch ``epoch``, ``text`` and ``pictures`` by suffix.
    """
    if not epochs:
        return []
    suffix = "_matches.png"
    last = run_dir / f"epoch{epochs[-1]}"
    keys = sorted(path.name.removesuffix(suffix) for path in last.glob(f"*{suffix}"))

    def pictures(epoch: int, key: str) -> dict[str, str | None]:
        folder = run_dir / f"epoch{epoch}"
        return {
            kind.suffix: images.add(folder / f"{key}_{kind.suffix}.png", kind.long_side)
            for kind in PICTURE_KINDS
        }

    def row(epoch: int, key: str) -> dict[str, Any]:
        text = lines.get((epoch, key), "")
        return {"epoch": epoch, "text": text, "pictures": pictures(epoch, key)}

    return [
        {"key": key, "epochs": [row(epoch, key) for epoch in epochs]} for key in keys[:MAX_SAMPLES]
    ]
