"""The study of LoFTR v3: its photographs, its scores, its record and its cost figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import run_main

from benchmarks import loftr_study
from benchmarks.loftr_cost import compare_costs, measure_cost
from benchmarks.loftr_scores import (
    COLUMNS,
    PHOTOGRAPHS,
    cell,
    find_error,
    photograph_pairs,
    score,
    score_generated,
    score_real,
)
from benchmarks.study_record import StudyRecord
from dataset.real_pairs import load_real_pairs
from dataset.samples import discover_samples
from geometry.estimation import Plausibility
from geometry.matrices import turn_about_centre
from geometry.points import image_corners, warp_points
from registration.matcher import MatchSettings, WorkingMatches
from training.loftr_config import LoFTRConfig
from utils.checkpoint import save_checkpoint
from utils.config import build
from utils.errors import InputError


@pytest.fixture(scope="module")
def pairs():
    return photograph_pairs(views=1)


def test_photograph_pairs_agree_under_their_homography(pairs):
    assert len({pair.key for pair in pairs}) == len(PHOTOGRAPHS) == len(pairs)
    for pair in pairs:
        height, width = pair.fixed.shape
        points = (
            np.random.default_rng(0)
            .uniform([0.35 * width, 0.35 * height], [0.65 * width, 0.65 * height], (300, 2))
            .round()
        )
        mapped = warp_points(points, pair.H_fix_to_mov).round().astype(int)
        assert ((mapped >= 0) & (mapped < [width, height])).all(), pair.key
        x, y = points.astype(int).T
        seen, same = pair.fixed[y, x], pair.moving[mapped[:, 1], mapped[:, 0]]
        assert (
            np.median(np.abs(seen - same)) < 0.5 * np.median(np.abs(seen - np.roll(same, 7))) + 0.02
        ), pair.key


def test_photograph_pairs_depend_on_the_seed_only(pairs):
    again = photograph_pairs(views=1)
    assert all(np.array_equal(a.moving, b.moving) for a, b in zip(pairs, again, strict=True))
    assert not np.array_equal(photograph_pairs(views=1, seed=1)[0].moving, pairs[0].moving)


def small_config():
    model = {
        "stem": "ridge",
        "initial_dim": 8,
        "block_dims": [8, 8, 16],
        "heads": 2,
        "coarse_layers": 1,
    }
    return build(
        LoFTRConfig,
        {
            "model": model,
            "view": {"img_size": 64, "long_side": 96},
            "v3": {"freeze": ["backbone"], "train": {"batch_size": 2}},
        },
        "test",
    )


def test_cost_of_frozen_and_unfrozen_steps(generated_root):
    config = small_config()
    frozen, unfrozen = (
        measure_cost(config, freeze, str(generated_root), "cffa", 3)
        for freeze in (config.v3.freeze, ())
    )
    for cost in (frozen, unfrozen):
        assert cost.seconds > 0 and cost.memory_mb > 50
    assert "(100%)" in unfrozen.parameters and "(100%)" not in frozen.parameters


@pytest.mark.slow
def test_costs_are_measured_in_new_processes_and_compared(generated_root):
    text = compare_costs(small_config(), str(generated_root), "cffa", steps=3, repeats=1)
    head, _, frozen, unfrozen, _, sentence = text.splitlines()
    assert head == "|  | parameters | seconds per step | peak memory, MB |"
    assert frozen.startswith("| frozen |") and "(100%)" in unfrozen
    assert sentence.startswith("A frozen step is ") and sentence.endswith(" MB less.")


class TrueMatcher:
    """A matcher that returns exact matches under a given ``H_fix_to_mov`` (3, 3)."""

    def __init__(self, H_fix_to_mov):
        self.H, self.settings = (
            H_fix_to_mov,
            MatchSettings(long_side=128, refine=False, min_confidence=0.0),
        )

    def match_copies(self, fixed, moving, smaller_copies=True):
        points = np.stack(
            np.meshgrid(np.linspace(8, 118, 12), np.linspace(8, 118, 12)), -1
        ).reshape(-1, 2)
        H = moving.frame.H_image_to_working @ self.H @ np.linalg.inv(fixed.frame.H_image_to_working)
        yield WorkingMatches(
            points, warp_points(points, H), np.ones(len(points)), fixed, moving, points, points
        )


def test_errors_of_true_and_wrong_matrices_differ(generated_root, tmp_path):
    (tmp_path / "split.yaml").write_text("train: ['3']\nval: ['2']\ntest: ['1']\n")
    samples = [
        sample for sample in discover_samples(generated_root, ["cffa"])[0] if sample.eye == "1"
    ]
    assert len(samples) == 2
    wrong = score_generated(
        TrueMatcher(np.eye(3)), Plausibility(), generated_root, "cffa", tmp_path / "split.yaml"
    )
    assert len(wrong) == 4 and min(wrong) > 5
    pair = photograph_pairs(views=1)[0]
    corners = image_corners(pair.fixed.shape)
    error = find_error(
        TrueMatcher(pair.H_fix_to_mov),
        Plausibility(),
        pair.fixed,
        pair.moving,
        corners,
        warp_points(corners, pair.H_fix_to_mov),
        "homography",
    )
    assert error.max < 0.5
    assert cell([[error.mean, float("inf"), 7.0]]) == "1 of 3 (7.0 px)"


def test_a_cell_shows_the_pairs_of_every_seed():
    assert cell([[1.0, 2.0, 9.0], [0.5, 4.9, 4.0]]) == "2 + 3 of 6 (3.0 px)"
    assert cell([[math.inf, 5.0], [math.inf, math.inf]]) == "0 + 0 of 4 (inf px)"


def test_every_column_is_scored_in_its_view(monkeypatch, tmp_path):
    """Bare columns turn the copies and the refinement off, the others use the whole pipeline."""
    matcher = TrueMatcher(np.eye(3))
    monkeypatch.setattr("benchmarks.loftr_scores.load_matcher", lambda path: (matcher, None))

    def seen(*arguments):
        angle = arguments[-1] if isinstance(arguments[-1], int) else 0
        return [float(matcher.settings.try_turns), float(angle)]

    for kind in ("generated", "real", "photographs"):
        monkeypatch.setattr(f"benchmarks.loftr_scores.score_{kind}", seen)
    (tmp_path / "cffa").mkdir()
    errors = score(Path("run/latest.pth"), "data", "cffa", tmp_path)
    assert errors == {
        "generated, bare": [0.0, 0.0],
        "real 0°, bare": [0.0, 0.0],
        "real 30°, bare": [0.0, 30.0],
        "real 30°": [1.0, 30.0],
        "photographs, bare": [0.0, 0.0],
        "photographs": [1.0, 0.0],
    }
    assert list(errors) == [column.title for column in COLUMNS]
    without_real = score(Path("run/latest.pth"), "data", "cffa", tmp_path / "none")
    assert list(without_real) == ["generated, bare", "photographs, bare", "photographs"]


def test_the_record_keeps_errors_and_refuses_other_settings(tmp_path):
    path = tmp_path / "new" / "record.json"
    record = StudyRecord(path, {"epochs": 2, "scale": (0.8, 1.2)})
    assert record.results() == {}
    record.add("base", 0, {"real": [1.234, math.inf]})
    record.add("base", 1, {"real": [2.0]})
    again = StudyRecord(path, {"epochs": 2, "scale": (0.8, 1.2)})
    assert again.results() == {
        ("base", 0): {"real": [1.234, math.inf]},
        ("base", 1): {"real": [2.0]},
    }
    assert json.loads(path.read_text())["results"][0]["values"] == {"real": [1.234, None]}
    other = StudyRecord(path, {"epochs": 3, "scale": (0.8, 1.2)})
    for use in (other.check, other.results, lambda: other.add("v3", 0, {})):
        with pytest.raises(InputError, match="epochs was 2 and is now 3.*--overwrite"):
            use()
    again.drop([0])
    assert list(again.results()) == [("base", 1)]
    other.drop([0])
    assert other.results() == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 1, "results": 2}'])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(InputError, match="no record of this study"):
        StudyRecord(tmp_path / "record.json", {}).check()


@pytest.fixture()
def study(tmp_path, monkeypatch, generated_root):
    """Runs the script with a stand-in for training and scoring; returns what was trained."""
    trained, scored = [], []

    def run(script, *words):
        words = [str(word) for word in words]
        given = dict(zip(words, words[1:], strict=False))
        name, stage = given["--name"], given["--stage"]
        trained.append(name)
        seed, epochs = int(given["--seed"]), int(given["--epoch"])
        if stage == "v3":
            start = Path(given["--pretrained"])
            assert start.is_file() and start.parent.name == f"study_{seed}_base"
        settings = {"seed": seed, "stage": stage, stage: {"train": {"epochs": epochs}}}
        saved = {"settings": settings, "precision": given["--precision"], "data": given["--data"]}
        for checkpoint in ("latest.pth", "best.pth"):
            path = tmp_path / "save" / "cffa" / name / checkpoint
            save_checkpoint(path, {"epoch": epochs, "config": saved})

    def errors(checkpoint, data, mode, real):
        scored.append(f"{checkpoint.parent.name}/{checkpoint.name}")
        return {"photographs": [1.0, math.inf]}

    monkeypatch.setattr(loftr_study, "run", run)
    monkeypatch.setattr(loftr_study, "score", errors)

    def call(*arguments):
        trained.clear()
        scored.clear()
        code = run_main(
            loftr_study,
            monkeypatch,
            *("--data", generated_root, "--real", tmp_path / "none", "--save", tmp_path / "save"),
            *("--out", tmp_path / "out", "--record", tmp_path / "record.json"),
            *("--only", "accuracy", *arguments),
        )
        return code, list(trained), list(scored)

    return call


ROWS = ("base", "v3", "v3_masked_gradient", "full_fine_tuning", "v3_soft_mask", "v3_no_mask")


def test_the_study_trains_every_variant_with_every_seed_once(study, tmp_path):
    code, trained, scored = study("--seeds", 0, 1, "--epoch", 2, "--base_epoch", 3)
    assert code == 0 and trained == [f"study_{seed}_{row}" for seed in (0, 1) for row in ROWS]
    assert scored[:2] == ["study_0_base/best.pth", "study_0_v3/latest.pth"]
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert lines[0] == "| variant | photographs |" and len(lines) == 2 + len(ROWS)
    assert lines[3] == "| v3 | 1 + 1 of 4 (inf px) |"
    assert study("--seeds", 0, 1, "--epoch", 2, "--base_epoch", 3) == (0, [], [])


def test_a_study_resumes_from_its_record_without_checkpoints(study, tmp_path):
    budget = ("--epoch", 2, "--base_epoch", 3)
    assert study("--seeds", 0, *budget)[0] == 0
    record = json.loads((tmp_path / "record.json").read_text())
    record["results"] = [row for row in record["results"] if row["variant"] != "v3, soft mask"]
    (tmp_path / "record.json").write_text(json.dumps(record))
    (tmp_path / "save" / "cffa").rename(tmp_path / "gone")
    code, trained, scored = study("--seeds", 0, *budget)
    assert code == 0 and scored == ["study_0_v3_soft_mask/latest.pth"]
    assert trained == ["study_0_base", "study_0_v3_soft_mask"]


def test_other_settings_are_refused_unless_overwritten(study, tmp_path, capsys):
    assert study("--seeds", 0, 1, "--epoch", 2)[0] == 0
    assert study("--seeds", 0, "--epoch", 1) == (2, [], [])
    assert "epochs was 2 and is now 1" in capsys.readouterr().err
    code, trained, _ = study("--seeds", 0, "--epoch", 2, "--overwrite")
    assert code == 0 and trained == [f"study_0_{row}" for row in ROWS]
    assert study("--seeds", 1, "--epoch", 2) == (0, [], []), "the other seed stays recorded"
    code, trained, _ = study("--seeds", 0, "--epoch", 1, "--overwrite")
    assert code == 0 and trained == [f"study_0_{row}" for row in ROWS]
    # The runs of seed 1 have two epochs; the record, which is new, does not know them.
    assert study("--seeds", 1, "--epoch", 1)[:2] == (2, [])
    assert "this run has other settings: epochs was 2 and is now 1" in capsys.readouterr().err


def test_seeds_are_given_once(study, capsys):
    assert study("--seeds", 1, 1) == (2, [], []) and study("--seeds", -1) == (2, [], [])


@pytest.mark.parametrize("rotation", [0, 30])
def test_landmarks_of_real_pairs_are_rotated_with_their_images(numbered_root, rotation):
    root, truth = numbered_root
    for pair in load_real_pairs(root, "cffa"):
        H_turn, _ = turn_about_centre(pair.images()[1].shape, rotation)
        errors = score_real(TrueMatcher(H_turn @ truth[pair.key]), Plausibility(), [root], rotation)
        assert min(errors) < 0.5 and len(errors) == 3


def test_both_configs_fit_their_schema():
    for name in ("loftr_v3", "loftr_v3_lite"):
        with open(f"configs/{name}.yaml", encoding="utf-8") as handle:
            config = build(LoFTRConfig, yaml.safe_load(handle), name)
        assert (
            config.v3.freeze == ("backbone", "pos_encoding", "fine_preprocess")
            and config.base.freeze == ()
        )
        assert config.v3.loss.eps == 1e-4 and not config.v3.photometric
        assert config.v3.loss.mask and not config.v3.loss.mask_gradient
