"""The benchmarks: their commands run, and their tables hold the right figures."""

from __future__ import annotations

import json
import time

import pytest

import benchmarks.train_step
from benchmarks.ablations import BASE_CONFIG, BUDGET, STAGED_WEIGHTS, VARIANTS, score, table
from benchmarks.documents import MARKERS, markdown_table, write_into
from benchmarks.pairs import write_pairs
from benchmarks.register import StageClock
from evaluation.statistics import ALL_REAL
from loss.joint_objective import ObjectiveSettings
from tests.helpers import run_main
from training.superretina_step import SuperRetinaConfig
from utils.config import build, merge_settings, read_config
from utils.errors import InputError
from utils.image_files import read_gray


def test_time_of_a_stage_excludes_the_stages_that_it_calls():
    clock = StageClock()

    def wait(seconds):
        time.sleep(seconds)

    inner = clock.timed(wait, "inner")

    def outer():
        inner(0.08)
        inner(0.08)
        time.sleep(0.05)

    clock.timed(outer, "outer")()
    assert clock.calls == {"inner": 2, "outer": 1}
    assert 0.15 < clock.seconds["inner"] and 0.04 < clock.seconds["outer"] < 0.14


@pytest.mark.slow
def test_benchmark_of_the_registration(untrained_weights, monkeypatch, tmp_path, capsys):
    out = tmp_path / "figures.json"
    monkeypatch.setattr("evaluation.methods.loftr.DEFAULT_WEIGHTS", tmp_path / "gone.pth")
    assert (
        run_main(
            benchmarks.register,
            monkeypatch,
            "--weights",
            untrained_weights,
            "--pairs",
            2,
            "--side",
            192,
            "--sizes",
            96,
            160,
            "--compare",
            "superretina",
            "sift",
            "loftr",
            "--out",
            out,
        )
        == 0
    )
    figures = json.loads(out.read_text())
    stages = figures["stages"]
    assert sum(row["share"] for name, row in stages.items() if name != "whole") == pytest.approx(
        1.0
    )
    assert stages["network"]["calls"] >= 2 and stages["reading"]["calls"] == 2
    assert (
        figures["methods"]["superretina"]["ratio"] == 1.0
        and figures["methods"]["sift"]["seconds"] > 0
    )
    assert "no weights" in figures["methods"]["loftr"]["missing"]
    assert [row["side"] for row in figures["sizes"]] == [96, 160]
    assert "robust fit" in capsys.readouterr().out


def test_written_pairs_have_the_requested_size(tmp_path):
    for pair in write_pairs(tmp_path, None, 2, 128, seed=1):
        assert max(read_gray(pair.fixed).shape) == max(read_gray(pair.moving).shape) == 128


@pytest.mark.slow
def test_benchmark_of_the_training_step(monkeypatch, capsys):
    configs = [
        "configs/superretina_lite.yaml",
        "configs/loftr_v3_lite.yaml",
        "configs/loftr_v3_lite.yaml:unfrozen",
    ]
    assert (
        run_main(
            benchmarks.train_step,
            monkeypatch,
            "--configs",
            *configs,
            "--img_size",
            64,
            "--batch_size",
            1,
            "--steps",
            1,
        )
        == 0
    )
    table = capsys.readouterr().out
    operations = [
        float(line.split()[3]) for line in table.splitlines() if line.startswith("configs/")
    ]
    assert len(operations) == 3 and operations[2] > operations[1] > 0, "freezing saves arithmetic"
    assert run_main(benchmarks.train_step, monkeypatch, "--steps", 0) == 2


def test_ablations_merge_their_settings_and_count_pairs():
    base = {"model": {"stem": "ridge", "widths": [1, 2]}, "seed": 0}
    assert merge_settings(base, {"model": {"stem": "raw"}}) == {
        "model": {"stem": "raw", "widths": [1, 2]},
        "seed": 0,
    }
    assert base["model"]["stem"] == "ridge"
    for change in VARIANTS.values():
        build(
            SuperRetinaConfig,
            merge_settings(merge_settings(read_config(BASE_CONFIG), BUDGET), change),
            "ablation",
        )
    assert {name for name in VARIANTS if name.startswith("no ")} == {
        f"no {term}" for term in ObjectiveSettings().weights
    }
    assert [stage["pke"] for stage in STAGED_WEIGHTS] == [0.0, 0.0, 0.5]
    records = [
        {"set": name, "rotation": 30.0, "pairs": pairs, "success_median5": share}
        for name, pairs, share in (
            ("cffa", 6, 0.5),
            ("cfmono", 2, 1.0),
            ("generated", 10, 0.9),
            (ALL_REAL, 8, 0.625),
        )
    ]
    assert score(records, "real", 30.0) == "5/8" and score(records, "generated", 30.0) == "9/10"
    assert score(records, "generated", 0.0) == "-"
    assert table({"reference": records}).splitlines() == [
        "| variant | generated, 0° | real, 0° | real, 30° | real, 45° |",
        "|---|---|---|---|---|",
        "| reference | - | - | 5/8 | - |",
    ]


def test_table_is_written_between_the_markers(tmp_path):
    doc = tmp_path / "doc.md"
    doc.write_text(f"Before.\n{MARKERS[0]}\nold\n{MARKERS[1]}\nAfter.\n")
    text = markdown_table("variant", {"base": {"a": "1", "b": "2"}, "v3": {"a": "3", "b": "4"}})
    assert text.splitlines() == [
        "| variant | a | b |",
        "|---|---|---|",
        "| base | 1 | 2 |",
        "| v3 | 3 | 4 |",
    ]
    for _ in range(2):
        write_into(doc, text)
        assert doc.read_text() == f"Before.\n{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}\nAfter.\n"
    doc.write_text("nothing")
    with pytest.raises(InputError, match="lacks the lines"):
        write_into(doc, text)
