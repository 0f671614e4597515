"""The benchmarks: their commands run, and their tables hold the right figures."""

from __future__ import annotations

import json
import time

import pytest

import benchmarks.train_step
import benchmarks.unlabelled_training
from benchmarks import ablations
from benchmarks.ablation_table import cell, draw_differences, half_width, table
from benchmarks.ablation_variants import BASE_CONFIG, BUDGET, STAGES, VARIANTS
from benchmarks.ablations import success_rates
from benchmarks.documents import MARKERS, markdown_table, write_into
from benchmarks.pairs import write_pairs
from benchmarks.register import StageClock
from evaluation.statistics import ALL_REAL
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
            "--counted",
            1,
            3,
        )
        == 0
    )
    costs, counts = (
        [line.split() for line in table.splitlines() if line.startswith("configs/")]
        for table in capsys.readouterr().out.split("\n\n")
    )
    operations = [float(row[3]) for row in costs]
    assert len(operations) == 3 and operations[2] > operations[1] > 0, "freezing saves arithmetic"
    joint = [int(cell.rstrip(",")) for cell in counts[0][1:]]
    assert len(counts) == 3 and 3000 < joint[0] <= joint[2] < 1.1 * joint[0] < 5000
    assert joint[1] == joint[3] == 1, "the reading of the figures"
    assert run_main(benchmarks.train_step, monkeypatch, "--steps", 0) == 2


@pytest.mark.slow
def test_benchmark_of_training_without_labels(generated_root, monkeypatch, capsys):
    """The shipped detector neither falls silent nor responds everywhere."""
    sizes = "--eyes 4 --scored 4 --steps 6 --batch_size 2 --img_size 96 --probability 0.1"
    command = f"--data {generated_root} {sizes}"
    assert run_main(benchmarks.unlabelled_training, monkeypatch, *command.split()) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == [
        f"{labels} labels, step {step}" for labels in ("with", "without") for step in (0, 3, 6)
    ]
    assert rows[0][1:] == rows[3][1:], "the same weights before"
    assert rows[2][1:] != rows[5][1:], "labels change the training"
    before, after = (float(rows[index][1]) for index in (3, 5))
    assert before > 0 and before / 3 < after < 3 * before
    assert run_main(benchmarks.unlabelled_training, monkeypatch, "--steps", 1) == 2


def test_every_variant_of_the_ablations_is_a_valid_config():
    base = merge_settings(read_config(BASE_CONFIG), BUDGET)
    for change in [*VARIANTS.values(), *STAGES]:
        build(SuperRetinaConfig, merge_settings(base, change), "ablation")
    assert [name for name in VARIANTS if name.startswith("no L_")] == [
        "no L_det",
        "no L_des",
        "no L_geo",
        "no L_pke",
    ]
    assert [stage.get("loss", {}).get("weights", {}).get("pke") for stage in STAGES] == [0, 0, None]
    assert sum(stage["train"]["epochs"] for stage in STAGES) == BUDGET["train"]["epochs"]


def test_success_rates_are_over_all_sets_of_an_evaluation(tmp_path):
    records = [
        {"set": name, "rotation": angle, "pairs": pairs, "success_median5": share}
        for name, angle, pairs, share in (
            ("cffa", 30.0, 6, 0.5),
            ("cfmono", 30.0, 2, 1.0),
            (ALL_REAL, 30.0, 8, 0.625),
            ("cffa", 0.0, 6, 1.0),
        )
    ]
    (tmp_path / "metrics.json").write_text(json.dumps({"results": records}))
    assert success_rates(tmp_path, "real") == {"real 0": [1.0], "real 30": [pytest.approx(5 / 8)]}


def test_ablation_table_has_the_mean_and_its_interval(tmp_path):
    results = {
        ("reference", 0): {"AUC@10": [0.5], "real 30": [0.25]},
        ("reference", 1): {"AUC@10": [0.6]},
        ("reference", 2): {"AUC@10": [0.7]},
        ("raw stem", 0): {"AUC@10": [0.1]},
        ("raw stem", 2): {"AUC@10": [0.2]},
    }
    # Standard deviation 0.1, t quantile 4.303 with two degrees of freedom.
    assert half_width([0.5, 0.6, 0.7]) == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert cell([50.0, 60.0, 70.0], 0) == "60 ± 25"
    assert cell([50.0, 70.0], 0) == "60" and cell([10.0], 1) == "10.0" and cell([], 0) == "–"
    lines = table(results).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| reference", "3"],
        ["| raw stem", "2"],
    ]
    # Seeds 0 and 2: -40 and -50.
    assert lines[2].endswith("|  |") and lines[3].endswith("| −45.0 |")
    assert " 60 ± 25 " in lines[2] and " 25 " in lines[2]
    draw_differences(tmp_path / "plot.png", results)
    assert read_gray(tmp_path / "plot.png").std() > 0.01


def test_the_ablations_keep_their_results(tmp_path, monkeypatch):
    """A recorded variant is not trained again; other settings are refused."""
    trained = []
    monkeypatch.setattr(ablations, "train_variant", lambda name, seed, _: trained.append(name))
    monkeypatch.setattr(ablations, "validate", lambda *_: {"AUC@10": [0.5]})
    monkeypatch.setattr(ablations, "test", lambda *_: {"test 30": [0.25]})
    record = ["--record", tmp_path / "record.json", "--save", tmp_path, "--seeds", 0]
    assert run_main(ablations, monkeypatch, *record, "--only", "triplet") == 0
    assert run_main(ablations, monkeypatch, *record, "--only", "triplet", "raw stem") == 0
    assert trained == ["reference", "triplet", "raw stem"]
    assert "| triplet | 1 | 25 |" in (tmp_path / "ablations/table.md").read_text()
    assert run_main(ablations, monkeypatch, *record, "--precision", "32") == 2


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
