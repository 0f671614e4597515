"""Table of the study of learning from real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks.documents import markdown_table
from benchmarks.study_record import Key, Values
from evaluation.metrics import bootstrap_weights, interval

LIMIT_PX = 5.0  # a pair counts as registered below this error, px at 512
# Of every scored pair, over runs and columns: its eye, and whether it was registered.
Successes = list[tuple[str, float]]


def successes(
    results: Mapping[Key, Values],
    runs: list[tuple[Key, list[str]]],
    columns: list[str],
) -> Successes:
    """Successes of all pairs of some runs and columns.

    Args:
        results: errors of each pair, by variant and seed.
        runs: recorded keys, with the eye of each real pair.
        columns: names of the values.
    """
    found: Successes = []
    for key, eyes in runs:
        for column in columns:
            errors = results[key][column]
            # Generated pairs are told apart by their number: there is one draw of them.
            names = eyes if len(eyes) == len(errors) else list(map(str, range(len(errors))))
            found += [
                (name, float(error < LIMIT_PX)) for name, error in zip(names, errors, strict=True)
            ]
    return found


def table(
    results: Mapping[Key, Values],
    ways: list[str],
    runs_of: Callable[[str], list[tuple[Key, list[str]]]],
    columns: Mapping[str, list[str]],
) -> str:
    """Success rates of each way of learning, and the gain over the first of them.

    Args:
        results: errors of each pair, by variant and seed.
        ways: rows; the first is what the others are compared with.
        runs_of: the runs of a way, see :func:`successes`.
        columns: recorded values that each column of the table joins, by its heading.

    Returns:
        Markdown; a gain has its 95 % interval where the same runs of both are recorded.
    """
    rows: dict[str, dict[str, str]] = {}
    for way in ways:
        recorded = [index for index, (key, _) in enumerate(runs_of(way)) if key in results]
        cells = {"runs": str(len(recorded))}
        for title, names in columns.items():
            own = successes(results, [runs_of(way)[index] for index in recorded], names)
            peers = [runs_of(ways[0])[index] for index in recorded]
            base = successes(results, [run for run in peers if run[0] in results], names)
            cells[title] = _cell(own, base, way == ways[0])
        rows[way] = cells
    return markdown_table("way", rows)


def _cell(own: Successes, base: Successes, is_base: bool) -> str:
    """The rate in percent, and the gain with its interval over eyes."""
    if not own:
        return "–"
    rates = np.array([success for _, success in own])
    if is_base or [eye for eye, _ in own] != [eye for eye, _ in base]:
        return f"{100 * rates.mean():.0f}"
    gains = 100 * (rates - [success for _, success in base])
    weights = bootstrap_weights([eye for eye, _ in own])
    low, high = interval(weights @ gains / weights.sum(axis=1))
    text = f"{100 * rates.mean():.0f} ({gains.mean():+.0f}, {low:+.0f} to {high:+.0f})"
    return text.replace("-", "−")
