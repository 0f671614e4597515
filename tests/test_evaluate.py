"""evaluate.py with an untrained network: tables, metrics, kept results, other settings."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import yaml
from helpers import read_table, run_main

import evaluate
from evaluation.statistics import ALL_REAL
from registration.registrar import Registrar


@pytest.fixture
def run_evaluate(untrained_weights, monkeypatch, tmp_path):
    """Runs evaluate.py with untrained weights; returns the rows and the content of metrics.json."""

    def run(*arguments: object) -> tuple[list[dict[str, str]], dict]:
        out = tmp_path / "out"
        assert (
            run_main(
                evaluate,
                monkeypatch,
                *arguments,
                "--out",
                out,
                "--weights",
                untrained_weights,
                "--device",
                "cpu",
            )
            == 0
        )

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        return read_table(out / "pairs.csv"), json.loads(
            (out / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse
        )

    return run


@pytest.mark.slow
def test_evaluation_of_real_pairs(run_evaluate, numbered_root, tmp_path, capsys):
    rows, metrics = run_evaluate(
        "--real", numbered_root[0], "--mode", "cffa", "--rotations", 0, 30, 90, "--scales", 1.0, 0.8
    )
    assert len(rows) == 3 * 3 * 2 * 3
    for column in (
        "id",
        "rotation",
        "scale",
        "status",
        "mean",
        "median",
        "max",
        "n_matches",
        "n_inliers",
        "seconds",
    ):
        assert column in rows[0]
    assert {row["method"] for row in rows} == {"superretina", "identity", "oracle"}
    _check_errors(rows)
    _check_metrics(rows, metrics)
    printed = capsys.readouterr().out
    assert "oracle" in printed and "median<5" in printed and "metrics.json" in printed
    pictures = tmp_path / "out" / "pictures"
    n_cases = 3 * 3 * 2
    assert len(list(pictures.rglob("superretina_matches.jpg"))) == n_cases
    assert len(list(pictures.rglob("oracle_registered.jpg"))) == n_cases
    assert (tmp_path / "out" / "report.html").stat().st_size > 1e6


def _check_errors(rows: list[dict[str, str]]) -> None:
    """The oracle is exact, failures are infinite, and the error of the identity grows by 90 deg."""
    oracle = [row for row in rows if row["method"] == "oracle"]
    assert len(oracle) == 18 and max(float(row["max"]) for row in oracle) < 0.01, (
        "exact landmarks, at every rotation and scale"
    )
    for row in rows:
        assert (row["status"] == "failed") == (float(row["mean"]) == math.inf)
        assert float(row["median"]) <= float(row["max"])
    identity = {
        (row["id"], row["rotation"]): float(row["mean"])
        for row in rows
        if row["method"] == "identity" and row["scale"] == "1.0"
    }
    assert all(
        identity[key, "90.0"] > identity[key, "0.0"] + 20
        for key, rotation in identity
        if rotation == "0.0"
    )


def _check_metrics(rows: list[dict[str, str]], metrics: dict) -> None:
    """The metrics are those of the rows, and the settings are recorded."""
    summary = {(r["method"], r["rotation"], r["scale"]): r for r in metrics["results"]}
    assert len(summary) == 3 * 3 * 2 and summary["oracle", 90, 1.0]["success_median5"] == 1.0
    assert all(
        0 <= r["AUC@5"] <= r["AUC@10"] <= r["AUC@20"] <= 1 and r["pairs"] == 3
        for r in metrics["results"]
    )
    failed = [
        row
        for row in rows
        if row["method"] == "superretina"
        and row["rotation"] == "90.0"
        and row["scale"] == "1.0"
        and row["status"] == "failed"
    ]
    assert summary["superretina", 90, 1.0]["failed_rate"] == pytest.approx(len(failed) / 3)
    assert (
        metrics["settings"]["rotations"] == [0, 30, 90]
        and "infinite" in metrics["settings"]["failure_rule"]
    )
    assert metrics["settings"]["methods"]["superretina"]["match"]["long_side"] == 192


@pytest.mark.slow
def test_evaluation_of_the_cfocta_layout(run_evaluate, cfocta_root, tmp_path):
    rows, _ = run_evaluate(
        "--real", cfocta_root[0], "--mode", "cfocta", "--rotations", 15, "--no_pictures"
    )
    assert {row["id"] for row in rows} == set(cfocta_root[1]) and not (
        tmp_path / "out" / "pictures"
    ).exists()
    assert max(float(row["max"]) for row in rows if row["method"] == "oracle") < 0.01


@pytest.mark.slow
def test_evaluation_of_generated_pairs(run_evaluate, generated_root, tmp_path):
    (tmp_path / "split.yaml").write_text(
        yaml.safe_dump({"train": ["1", "2", "3", "4"], "val": ["5"], "test": ["6"]}),
        encoding="utf-8",
    )
    rows, metrics = run_evaluate(
        "--generated",
        generated_root,
        "--generated_mode",
        "cffa",
        "cfocta",
        "--split",
        tmp_path / "split.yaml",
        "--draws",
        2,
        "--rotations",
        0,
        180,
        "--no_pictures",
    )
    # Eye 6: two visits in two modes, two draws each, at two rotations, by three methods.
    assert {row["eye"] for row in rows} == {"6"} and len(rows) == 8 * 2 * 3
    assert len({row["id"] for row in rows}) == 8
    assert max(float(row["max"]) for row in rows if row["method"] == "oracle") < 0.01
    assert (
        min(
            float(row["mean"])
            for row in rows
            if row["method"] == "identity" and row["rotation"] == "180.0"
        )
        > 50
    )
    assert {r["pairs"] for r in metrics["results"]} == {8}


@pytest.mark.slow
def test_pictures_of_near_angles_do_not_overwrite_each_other(run_evaluate, numbered_root, tmp_path):
    run_evaluate("--real", numbered_root[0], "--rotations", 0.2, 0.4)
    assert len(list((tmp_path / "out" / "pictures").rglob("superretina_matches.jpg"))) == 3 * 2


@pytest.mark.slow
def test_results_are_kept_and_not_computed_again(run_evaluate, numbered_root, monkeypatch):
    rows, _ = run_evaluate(
        "--real", numbered_root[0], "--rotations", 0, "--compare", "superretina", "oracle"
    )

    def fail(*arguments: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(Registrar, "register", fail)
    more, metrics = run_evaluate(
        "--real",
        numbered_root[0],
        "--rotations",
        0,
        "--compare",
        "superretina",
        "oracle",
        "identity",
    )
    assert (
        more[:6] == rows and {row["method"] for row in more[6:]} == {"identity"} and len(more) == 9
    )
    assert {(r["method"], r["other"]) for r in metrics["comparisons"]} == {
        ("superretina", "oracle"),
        ("superretina", "identity"),
    }


@pytest.mark.slow
def test_results_of_other_settings_are_not_mixed(
    run_evaluate, numbered_root, untrained_weights, monkeypatch, tmp_path, capsys
):
    rows, _ = run_evaluate("--real", numbered_root[0], "--rotations", 0, "--no_pictures")
    given = (
        "--real",
        numbered_root[0],
        "--rotations",
        0,
        "--no_pictures",
        "--out",
        tmp_path / "out",
        "--weights",
        untrained_weights,
        "--device",
        "cpu",
    )
    for change in (
        ("--img_size", 128),
        ("--seed", 1),
        ("--mode", "cffa", "--fixed_role", "02"),
        ("--transform", "similarity"),
    ):
        assert run_main(evaluate, monkeypatch, *given, *change) == 2
        assert "other settings" in capsys.readouterr().err
        assert read_table(tmp_path / "out" / "pairs.csv") == rows
    assert run_main(evaluate, monkeypatch, *given, "--img_size", 128, "--overwrite") == 0


@pytest.mark.slow
def test_stress_wrong_pairs_and_several_sets_in_one_run(
    run_evaluate, numbered_root, generated_root, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("evaluation.methods.loftr.DEFAULT_WEIGHTS", tmp_path / "gone.pth")
    (tmp_path / "split.yaml").write_text(
        yaml.safe_dump({"train": ["1"], "val": ["2", "3", "4"], "test": ["5", "6"]}),
        encoding="utf-8",
    )
    rows, metrics = run_evaluate(
        "--real",
        numbered_root[0],
        "--generated",
        generated_root,
        "--split",
        tmp_path / "split.yaml",
        "--draws",
        1,
        "--compare",
        "superretina",
        "sift",
        "identity",
        "loftr",
        "--stress",
        "overlap",
        "--wrong_pairs",
        2,
        "--no_pictures",
    )
    assert {(row["overlap"], row["noise"]) for row in rows} == {
        (level, "0.0") for level in ("1.0", "0.75", "0.5", "0.35")
    }
    assert len(rows) == (3 + 4) * 4 * 3 and {row["set"] for row in rows} == {"cffa", "generated"}
    assert "no weights" in metrics["not_run"]["loftr"] and "no weights" in capsys.readouterr().out
    wrong = read_table(tmp_path / "out" / "wrong_pairs.csv")
    assert {row["method"] for row in wrong} == {"superretina", "sift"}, (
        "references return ok for any pair"
    )
    assert {(r["set"], r["method"], r["pairs"]) for r in metrics["wrong_pairs"]} == {
        (name, method, 2) for name in ("cffa", "generated") for method in ("superretina", "sift")
    }
    assert all(row["mean"] == "nan" for row in wrong)


def test_several_folders_of_real_pairs_are_also_scored_together(
    run_evaluate, numbered_root, tmp_path
):
    shutil.copytree(numbered_root[0], tmp_path / "cfmono")
    _, metrics = run_evaluate(
        "--real",
        numbered_root[0],
        tmp_path / "cfmono",
        "--rotations",
        0,
        "--no_pictures",
        "--compare",
        "identity",
        "oracle",
    )
    assert {(r["set"], r["method"], r["pairs"]) for r in metrics["results"]} == {
        (name, method, pairs)
        for method in ("identity", "oracle")
        for name, pairs in (("cffa", 3), ("cfmono", 3), (ALL_REAL, 6))
    }
