"""Statistics from rows, and the cache of rows: failures, paired comparison, mixed settings."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from evaluation.cache import EvaluationRow, PairCache, read_rows
from evaluation.metrics import aggregate, bootstrap_weights, median_with_failures, weighted_medians
from evaluation.statistics import accepted_wrong_pairs, compare, summarise
from evaluation.stress import UNCHANGED, Stress
from geometry.accuracy import FAILED, PairError
from utils.errors import InputError

LOWER_IS_BETTER = ("failed_rate", "median_of_medians")


def row(
    method: str, index: int, error: float, stress: Stress = UNCHANGED, eye: str | None = None
) -> EvaluationRow:
    """A row whose mean, median and max are ``error``; infinite is failed."""
    failed = math.isinf(error)
    return EvaluationRow(
        set="set",
        method=method,
        id=f"pair{index}",
        eye=eye or f"eye{index}",
        stress=stress,
        status="failed" if failed else "ok",
        reason='no, "really"' if failed else "",
        error=FAILED if failed else PairError(error, error, error),
        n_matches=20,
        n_inliers=0 if failed else 12,
        seconds=0.5,
        matrix=() if failed else (1.0, 0.0, error, 0.0, 1.0, 1 / 3, 0.0, 0.0, 1.0),
        checksum="abc",
    )


@pytest.mark.parametrize("good, fair", [(0.0, 2.0), (3.5, 4.0)])
def test_failing_on_half_is_worse_in_every_aggregate_than_being_mediocre_on_all(good, fair):
    """Even if the other half is perfect, against errors as large as those of manual landmarks."""
    rows = [row("mediocre", i, fair) for i in range(10)] + [
        row("half", i, good if i % 2 else math.inf) for i in range(10)
    ]
    figures = {record["method"]: record for record in summarise(rows)}
    names = [name for name in aggregate([FAILED]) if name != "pairs"]
    assert len(names) == 9
    for name in names:
        sign = -1 if name in LOWER_IS_BETTER else 1
        assert sign * figures["half"][name] < sign * figures["mediocre"][name], name
    (record,) = compare(rows, "half")
    assert (
        record["success_median5"] == -0.5
        and record["mAUC"] < 0
        and record["worse"] == 5
        and record["better"] == 5
    )


def test_comparison_is_pair_by_pair():
    """A small constant gain is found although the errors vary much more between pairs."""
    errors = np.linspace(1, 9, 12)
    rows = [row("first", i, e) for i, e in enumerate(errors)] + [
        row("other", i, e + 0.5) for i, e in enumerate(errors)
    ]
    rows += [row("other", 99, 0.1)]
    (record,) = compare(rows, "first")
    assert record["pairs"] == 12 and (record["better"], record["worse"], record["equal"]) == (
        12,
        0,
        0,
    )
    assert record["p_sign"] == pytest.approx(2 * 0.5**12)
    difference = np.clip((10 - errors) / 10, 0, None) - np.clip((9.5 - errors) / 10, 0, None)
    assert record["AUC@10"] == pytest.approx(difference.mean())
    assert record["AUC@10_low"] > 0, "the interval of the difference excludes 0"
    both_failed = compare([row("first", 0, math.inf), row("other", 0, math.inf)], "first")[0]
    assert both_failed["equal"] == 1 and both_failed["p_sign"] == 1.0


def test_every_figure_has_an_interval_around_it():
    errors = [0.5, 1, 2, 3, 4, 6, 8, 12, math.inf, math.inf]
    record = summarise([row("a", i, e) for i, e in enumerate(errors)])[0]
    for name in (
        "success_median5",
        "SR_ME",
        "SR_MAE",
        "AUC@5",
        "AUC@10",
        "AUC@20",
        "mAUC",
        "failed_rate",
        "median_of_medians",
    ):
        assert record[f"{name}_low"] < record[name] < record[f"{name}_high"], name
    assert record["eyes"] == 10 and record["seconds"] == 0.5


def test_intervals_are_over_eyes():
    by_pair = summarise([row("a", i, 1.0 if i % 2 else math.inf) for i in range(40)])[0]
    by_eye = summarise(
        [row("a", i, 1.0 if i % 2 else math.inf, eye=str(i % 2)) for i in range(40)]
    )[0]
    assert by_pair["success_median5_low"] > 0.3 and (
        by_eye["success_median5_low"],
        by_eye["success_median5_high"],
    ) == (0, 1)


def test_weighted_medians_are_those_of_the_resample():
    values = np.array([3.0, math.inf, 1.0, 7.0, 2.0])
    weights = bootstrap_weights(list("aabcd"), 200)
    assert (weights[:, 0] == weights[:, 1]).all() and weights.shape == (200, 5)
    for weight, found in zip(weights, weighted_medians(values, weights), strict=True):
        assert found == median_with_failures(np.repeat(values, weight))


def test_wrong_pairs_are_counted_by_status():
    rows = [
        replace(
            row("a", i, 1.0 if i < 3 else math.inf), error=PairError(math.nan, math.nan, math.nan)
        )
        for i in range(12)
    ]
    (record,) = accepted_wrong_pairs(rows)
    assert (
        record["said_ok"] == 3
        and record["share_ok"] == 0.25
        and record["share_ok_low"] < 0.25 < record["share_ok_high"]
    )


# --- the cache --------------------------------------------------------------------------------


def filled(folder, **protocol) -> PairCache:
    cache = PairCache(folder, {"seed": 1} | protocol)
    cache.declare_set("set", {"data": "here"})
    for name in ("a", "b"):
        cache.declare_method(name, {"threshold": [1, 2]})
    for each in (row("a", 0, 1.25, Stress(rotation=30, contrast=0.333)), row("b", 0, math.inf)):
        cache.add(each)
    cache.write()
    return cache


def test_rows_come_back_as_they_were(tmp_path):
    cache = filled(tmp_path)
    assert read_rows(tmp_path / "pairs.csv") == list(cache.rows.values())
    again = PairCache(tmp_path, {"seed": 1})
    again.declare_method("a", {"threshold": (1, 2)})
    found = again.get("set", "a", "pair0", Stress(rotation=30, contrast=0.333), "abc")
    assert found.matrix[5] == 1 / 3 and again.get("set", "a", "pair0", UNCHANGED, "abc") is None


def test_other_settings_are_refused_and_not_mixed(tmp_path):
    filled(tmp_path)
    with pytest.raises(InputError, match="seed was 1 and is now 2"):
        PairCache(tmp_path, {"seed": 2})
    cache = PairCache(tmp_path, {"seed": 1})
    with pytest.raises(InputError, match="threshold"):
        cache.declare_method("a", {"threshold": [1, 3]})
    with pytest.raises(InputError, match="data was 'here'"):
        cache.declare_set("set", {"data": "elsewhere"})
    with pytest.raises(InputError, match="images and landmarks"):
        cache.get("set", "b", "pair0", UNCHANGED, "another checksum")
    cache.declare_method("c", {"threshold": [9]})
    assert PairCache(tmp_path, {"seed": 2}, overwrite=True).rows == {}


def test_rows_of_unknown_origin_are_refused(tmp_path):
    filled(tmp_path)
    (tmp_path / "pairs.settings.json").unlink()
    with pytest.raises(InputError, match="settings.json"):
        PairCache(tmp_path, {"seed": 1})
    settings = {"protocol": {"seed": 1}, "sets": {}, "methods": {}}
    (tmp_path / "pairs.settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "pairs.csv").write_text("method,id\na,b\n", encoding="utf-8")
    with pytest.raises(InputError, match="pairs.csv"):
        PairCache(tmp_path, {"seed": 1})
