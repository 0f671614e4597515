"""The evaluations of the demo, and its last table."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest
import yaml
from helpers import read_table, run_main

import evaluate
from evaluation.stress import Stress
from examples import demo


def _write_metrics(folder, rates: dict[tuple[str, float], float]) -> None:
    records = [
        {"method": method, "success_median5": rate, **asdict(Stress(rotation=angle))}
        for (method, angle), rate in rates.items()
    ]
    # Another degradation of the same rotation, which is not in the table.
    records.append({"method": "superretina", "success_median5": 0.11, **asdict(Stress(blur=1.0))})
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"results": records}), encoding="utf-8")


def test_the_table_shows_both_networks_in_both_views(tmp_path):
    _write_metrics(
        tmp_path / "cffa_bare",
        {
            ("superretina-bare", 0.0): 1.0,
            ("superretina-bare", 45.0): 0.75,
            ("untrained-bare", 30.0): 0.0,
        },
    )
    _write_metrics(tmp_path / "cffa", {("superretina", 15.0): 0.5, ("untrained", 0.0): 0.625})
    lines = demo.learning_table(tmp_path, ["cffa"]).splitlines()
    assert [line.replace(" %", "%").split() for line in lines] == [
        ["set", "view", "network", "15°", "30°", "45°", "0°"],
        ["cffa", "bare", "trained", "–", "–", "75%", "100%"],
        ["cffa", "bare", "untrained", "–", "0%", "–", "–"],
        ["cffa", "whole", "pipeline", "trained", "50%", "–", "–", "–"],
        ["cffa", "whole", "pipeline", "untrained", "–", "–", "–", "62%"],
    ]


@pytest.mark.slow
def test_the_demo_evaluates_both_views(
    generated_root, numbered_root, untrained_weights, monkeypatch, tmp_path
):
    run_folder, results = tmp_path / "cffa" / "demo", tmp_path / "results"
    run_folder.mkdir(parents=True)
    shutil.copy(untrained_weights, run_folder / "best.pth")
    split = {"train": ["1", "2", "3", "4"], "val": ["5"], "test": ["6"]}
    (run_folder / "split.yaml").write_text(yaml.safe_dump(split), encoding="utf-8")

    def run_here(script: str, *arguments: object) -> None:
        assert script == "evaluate.py"
        options = ("--device", "cpu", "--no_pictures")
        assert run_main(evaluate, monkeypatch, *arguments, *options) == 0

    monkeypatch.setattr(demo, "run", run_here)
    monkeypatch.setattr(demo, "ROTATIONS", (0, 45))
    demo.evaluate(run_folder, generated_root, [numbered_root[0]], results)
    for name in ("generated_test", "cffa"):
        rows = read_table(results / f"{name}_bare" / "pairs.csv")
        assert {row["method"] for row in rows} == {
            "superretina-bare",
            "untrained-bare",
            "identity",
            "oracle",
        }
    rows = read_table(results / "cffa" / "pairs.csv")
    assert {row["method"] for row in rows} == {"superretina", "untrained", "identity", "oracle"}
    assert {float(row["rotation"]) for row in rows if row["method"] == "untrained"} == set(
        demo.UNTRAINED_ROTATIONS
    )
    table = demo.learning_table(results, ["generated_test", "cffa"]).splitlines()
    assert len(table) == 9 and not any("–" in line for line in table if " bare " in line)
