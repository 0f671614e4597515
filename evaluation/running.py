"""Run methods on sets of pairs, and sum up what came out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.cache import EvaluationRow, PairCache
from evaluation.case_pictures import case_folder, write_outcome, write_unregistered
from evaluation.method import Method, Outcome
from evaluation.sets import EvaluationPair, EvaluationSet, PairLoader, wrong_pairs
from evaluation.stress import UNCHANGED, Stress, apply_stress
from geometry.accuracy import PairError, pair_error

ALL_REAL = "all real pairs"
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


# --- running ----------------------------------------------------------------------------------------------------------


def score(
    set_name: str, name: str, pair: EvaluationPair, stress: Stress, outcome: Outcome, checksum: str
) -> EvaluationRow:
    """The row of a method on a (stressed) pair; without landmarks the error is not a number."""
    error = PairError(math.nan, math.nan, math.nan)
    if len(pair.fixed_landmarks):
        error = pair_error(
            outcome.fix_to_mov, pair.fixed_landmarks, pair.moving_landmarks, pair.moving.shape
        )
    matrix = () if outcome.H_fix_to_mov is None else tuple(map(float, outcome.H_fix_to_mov.ravel()))
    return EvaluationRow(
        set_name,
        name,
        pair.key,
        pair.eye,
        stress,
        outcome.status,
        outcome.reason,
        error,
        len(outcome.fixed_points),
        int(outcome.inliers.sum()),
        outcome.seconds,
        matrix,
        checksum,
    )


def evaluate_set(
    pairs: EvaluationSet,
    methods: dict[str, Method],
    stresses: list[Stress],
    cache: PairCache,
    seed: int,
    pictures: Path | None,
) -> None:
    """Run every method on every pair under every stress, except what the cache holds; the cache is written after each pair."""
    for load in tqdm(pairs.loaders, desc=pairs.name, unit="pair"):
        original = load()
        checksum = original.checksum()
        for stress in stresses:
            folder = pictures and case_folder(pictures, pairs.name, original.key, stress.slug())
            todo = [
                name
                for name in methods
                if cache.get(pairs.name, name, original.key, stress, checksum) is None
                or (folder and not (folder / "unregistered.jpg").is_file())
            ]
            if not todo:
                continue
            pair = apply_stress(original, stress, seed)
            for name in todo:
                outcome = methods[name].run(pair)
                cache.add(score(pairs.name, name, pair, stress, outcome, checksum))
                if folder:
                    write_outcome(folder, name, pair, outcome)
            if folder:
                write_unregistered(folder, pair)
        cache.write()


def evaluate_wrong_pairs(
    sets: list[EvaluationSet], methods: dict[str, Method], n_pairs: int, seed: int, cache: PairCache
) -> None:
    """Run every method that can say "failed" on images of different eyes."""
    able = {name: method for name, method in methods.items() if not method.is_yardstick}
    for pairs in sets:
        loaders: list[PairLoader] = wrong_pairs(pairs.loaders, n_pairs, seed)
        evaluate_set(EvaluationSet(pairs.name, loaders), able, [UNCHANGED], cache, seed, None)


def with_union(rows: Iterable[EvaluationRow], real_names: list[str]) -> list[EvaluationRow]:
    """The rows, and where there are several sets of real pairs, all of those again as one set."""
    rows = list(rows)
    together = (
        [replace(row, set=ALL_REAL) for row in rows if row.set in real_names]
        if len(real_names) > 1
        else []
    )
    return rows + together


# --- what it leaves ---------------------------------------------------------------------------------------------------


def format_table(summary: list[dict]) -> str:
    """The table for the terminal."""
    width = max(len(row["method"]) for row in summary) + 2
    lines = []
    for set_name in dict.fromkeys(row["set"] for row in summary):
        lines.append(
            f"\n{set_name}\n{'method':<{width}}{'moving image':<38}{'pairs':>6}"
            + "".join(f"{t:>10}" for _, t in TABLE)
        )
        for row in sorted(
            (row for row in summary if row["set"] == set_name),
            key=lambda row: _stress_of(row).label(),
        ):
            lines.append(
                f"{row['method']:<{width}}{_stress_of(row).label():<38}{row['pairs']:>6.0f}"
                + "".join(f"{row[name]:>10.3f}" for name, _ in TABLE)
            )
    return "\n".join(lines)


def _stress_of(record: dict[str, Any]) -> Stress:
    return Stress(**{name: record[name] for name in asdict(UNCHANGED)})


def without_infinities(value: Any) -> Any:
    """For JSON, which knows no infinity: null in its place."""
    if isinstance(value, dict):
        return {name: without_infinities(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
