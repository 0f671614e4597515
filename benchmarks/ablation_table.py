"""Table and plot of the ablation study."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.documents import markdown_table
from benchmarks.study_record import Key, Values
from utils.files import write_bytes_atomically

# Columns of the table: name of the figure, heading, factor, decimals.
COLUMNS = (
    ("test 30", "test eyes, 30°, %", 100, 0),
    ("real 15", "real, 15°, %", 100, 0),
    ("real 30", "real, 30°, %", 100, 0),
    ("real 45", "real, 45°, %", 100, 0),
    ("AUC@10", "AUC@10, %", 100, 0),
    ("MMA@3", "MMA@3, %", 100, 0),
    ("repeatability", "repeatability, %", 100, 0),
    ("localisation_px", "localisation, px", 1, 2),
    ("new_keypoints", "new keypoints", 1, 0),
)
# Figure by which defaults are chosen: the table gives its difference from the reference too.
CHOOSING = "AUC@10"
REFERENCE = "reference"
CONFIDENCE = 0.95  # of the intervals
MIN_SEEDS = 3  # of an interval; that of two values would be 13 times their standard error


def of_variant(results: dict[Key, Values], variant: str, column: str) -> dict[int, float]:
    """The figure of a column for each seed of a variant.

    Args:
        results: recorded values by variant and seed.
        variant: row of the table.
        column: name of the figure.
    """
    return {
        seed: values[column][0]
        for (name, seed), values in sorted(results.items())
        if name == variant and column in values
    }


def half_width(values: list[float]) -> float:
    """Half the width of the 95 % t interval of a mean; NaN for fewer than three values.

    Args:
        values: one for each seed.
    """
    if len(values) < MIN_SEEDS:
        return math.nan
    quantile = stats.t.ppf(0.5 + 0.5 * CONFIDENCE, len(values) - 1)
    return float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))


def table(results: dict[Key, Values]) -> str:
    """Markdown table: mean over the seeds, and half the 95 % interval of the mean.

    The last column is the difference of ``CHOOSING`` from the reference, between runs of one seed:
    its interval leaves out what all variants of a seed have in common.

    Args:
        results: recorded values by variant and seed; at least one.
    """
    rows: dict[str, dict[str, str]] = {}
    for variant in dict.fromkeys(name for name, _ in results):
        cells = {"seeds": str(len({seed for name, seed in results if name == variant}))}
        for column, title, factor, decimals in COLUMNS:
            values = [factor * v for v in of_variant(results, variant, column).values()]
            cells[title] = cell(values, decimals)
        gaps = [100 * gap for gap in differences(results, variant, CHOOSING)]
        cells[f"{CHOOSING}: difference"] = "" if variant == REFERENCE else cell(gaps, 1)
        rows[variant] = cells
    return markdown_table("variant", rows)


def differences(results: dict[Key, Values], variant: str, column: str) -> list[float]:
    """Differences from the reference, one for each seed that both have.

    Args:
        results: recorded values by variant and seed.
        variant: row of the table.
        column: name of the figure.
    """
    base = of_variant(results, REFERENCE, column)
    own = of_variant(results, variant, column)
    return [own[seed] - base[seed] for seed in own if seed in base]


def cell(values: list[float], decimals: int) -> str:
    """``mean ± half width`` of the values of the seeds; "–" without values.

    Args:
        values: one for each seed.
        decimals: of the numbers.
    """
    if not values:
        return "–"
    spread = half_width(values)
    text = f"{np.mean(values):.{decimals}f}".replace("-", "−")
    return text if math.isnan(spread) else f"{text} ± {spread:.{decimals}f}"


def draw_differences(path: Path, results: dict[Key, Values]) -> None:
    """Plot the difference of each variant from the reference: every seed, and the 95 % interval.

    Differences are taken between runs of the same seed.

    Args:
        path: of the picture.
        results: recorded values by variant and seed.
    """
    variants = [name for name in dict.fromkeys(name for name, _ in results) if name != REFERENCE]
    figure = Figure(figsize=(15, 1.5 + 0.32 * len(variants)), layout="constrained")
    FigureCanvasAgg(figure)
    shown = [column for column in COLUMNS if column[0] in ("test 30", "AUC@10", "MMA@3")]
    shown += [column for column in COLUMNS if column[0] in ("repeatability", "real 30")]
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, (column, title, factor, _) in zip(axes, shown, strict=True):
        for row, variant in enumerate(variants):
            gaps = [factor * gap for gap in differences(results, variant, column)]
            if gaps:
                axis.scatter(gaps, [row] * len(gaps), s=14, color="tab:blue")
                axis.errorbar(np.mean(gaps), row, xerr=half_width(gaps), fmt="k|", capsize=3)
        axis.axvline(0.0, color="0.6", linewidth=1)
        axis.set(title=f"{title}:\ndifference from the {REFERENCE}")
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
    axes[0].set_yticks(range(len(variants)), variants)
    axes[0].invert_yaxis()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    write_bytes_atomically(path, buffer.getvalue())
