"""The confidence: its model, its fit to kept evidence, and the rates that are checked."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import SMALL_LOFTR, SMALL_MODEL, run_main

import benchmarks.confidence
from benchmarks.confidence_evidence import (
    CopyEvidence,
    EvidenceFile,
    PairEvidence,
    degraded_pairs,
)
from benchmarks.confidence_fit import (
    CORRECT_PX,
    check,
    draw_reliability,
    fit_model,
    good_thresholds,
    outcome_of,
    reliability,
)
from registration.confidence_model import ConfidenceModel
from registration.keypoint_matcher import KeypointMatchSettings
from registration.loftr_matcher import LoFTRMatchSettings
from registration.trained_matchers import build_model, describe_model, load_matcher
from utils.checkpoint import save_checkpoint
from utils.errors import InputError

MODEL = ConfidenceModel(
    bias=-5.0,
    per_significance=0.5,
    per_agreement=1.0,
    max_significance=10.0,
    max_agreement=8.0,
)


def pair_of(*copies, same_eye=True, key="pair"):
    """A pair whose copies have these (significance, agreement, error)."""
    evidence = tuple(
        CopyEvidence(index, significance, agreement, 20, 40, error)
        for index, (significance, agreement, error) in enumerate(copies)
    )
    return PairEvidence(key, "val", "cffa", "as given", same_eye, evidence)


def test_model_is_logistic_within_its_limits():
    assert MODEL.probability(4.0, 3.0) == pytest.approx(0.5)
    assert MODEL.probability(4.0, 4.0) == pytest.approx(1 / (1 + np.exp(-1)))
    assert MODEL.probability(99.0, 0.0) == MODEL.probability(10.0, 0.0)
    assert MODEL.probability(0.0, 99.0) == MODEL.probability(0.0, 8.0)
    assert MODEL.probability(0.0, -1e6) == pytest.approx(0.0), "no overflow"


@pytest.mark.parametrize(
    "network, settings",
    [(SMALL_MODEL, KeypointMatchSettings()), (SMALL_LOFTR, LoFTRMatchSettings())],
)
def test_checkpoints_carry_the_model_and_older_ones_get_that_of_their_matcher(
    network, settings, tmp_path
):
    weights = {"model": build_model(network).state_dict()}
    content = describe_model(
        network, replace(settings, confidence=replace(settings.confidence, bias=-9.0))
    )
    save_checkpoint(tmp_path / "new.pth", content | weights)
    assert load_matcher(tmp_path / "new.pth")[0].settings.confidence.bias == -9.0
    del content["match_settings"]["confidence"]
    save_checkpoint(tmp_path / "old.pth", content | weights)
    loaded = load_matcher(tmp_path / "old.pth")[0].settings
    assert loaded.confidence == settings.confidence and loaded == settings


def test_matchers_have_their_own_coefficients():
    keypoints, loftr = KeypointMatchSettings().confidence, LoFTRMatchSettings().confidence
    assert keypoints.probability(6.0, 4.0) != loftr.probability(6.0, 4.0)


def test_the_most_likely_copy_is_chosen_and_a_sure_one_ends_the_search():
    pair = pair_of((3.0, 1.0, 200.0), (9.0, 6.0, 1.0), (10.0, 8.0, 300.0))
    assert outcome_of(pair, MODEL, 0.99).right, "the second copy is sure"
    assert not outcome_of(pair, MODEL, 1.0).right, "all copies are searched"
    nothing = outcome_of(pair_of(), MODEL, 0.99)
    assert nothing.evidence is None and nothing.confidence == 0.0 and not nothing.right


def sample(n=400, seed=0):
    """Pairs whose results are right with the probability that ``MODEL`` gives."""
    rng = np.random.default_rng(seed)
    pairs = []
    for significance, agreement in zip(rng.uniform(0, 10, n), rng.uniform(-2, 8, n), strict=True):
        right = rng.random() < MODEL.probability(significance, agreement)
        pairs.append(pair_of((significance, agreement, 1.0 if right else 100.0)))
    return pairs


def test_fit_recovers_planted_coefficients_and_is_calibrated_on_others():
    fitted = fit_model(sample(4000), replace(MODEL, bias=0.0), 1.0)
    assert fitted.bias == pytest.approx(MODEL.bias, abs=0.6)
    assert fitted.per_significance == pytest.approx(MODEL.per_significance, abs=0.06)
    assert fitted.per_agreement == pytest.approx(MODEL.per_agreement, abs=0.12)
    assert check(sample(4000, seed=1), fitted, 0.5, 1.0)["calibration_error"] < 0.02
    too_sure = replace(fitted, bias=0.0)
    assert check(sample(4000, seed=1), too_sure, 0.5, 1.0)["calibration_error"] > 0.1


def test_fit_is_finite_where_the_evidence_separates_all_pairs():
    right = [pair_of((8.0 + k % 3, 7.0, 1.0)) for k in range(50)]
    wrong = [pair_of((1.0 + k % 3, 0.0, np.inf), same_eye=False) for k in range(50)]
    fitted = fit_model(right + wrong, MODEL, 1.0)
    assert abs(fitted.bias) < 30 and fitted.per_significance >= 0 and fitted.per_agreement >= 0
    checked = check(right + wrong, fitted, 0.5, 1.0)
    assert checked["false_ok"] == 0 and checked["right_lost"] == 0 and checked["brier"] < 0.01
    low, high = good_thresholds(right + wrong, fitted, 1.0)
    assert low < 0.5 < high
    with pytest.raises(InputError, match="both are needed"):
        fit_model(right, MODEL, 1.0)


def test_rates_count_what_they_say():
    found = (10.0, 8.0)
    pairs = [
        *(pair_of((*found, 1.0)) for _ in range(3)),
        pair_of((*found, CORRECT_PX + 1)),  # of one eye, wrong: false ok
        pair_of((*found, np.inf), same_eye=False),  # of different eyes: false ok
        pair_of((1.0, 0.0, 1.0)),  # right, but unlikely: lost
        pair_of((1.0, 0.0, 100.0)),  # wrong and rejected
        pair_of(),  # no matrix: one of the wrong pairs, never ok
    ]
    checked = check(pairs, MODEL, 0.5, 0.999)
    assert (checked["false_ok"], checked["false_ok_of"]) == (2, 4)
    assert (checked["right_lost"], checked["right_lost_of"]) == (1, 4)
    low, high = checked["false_ok_interval"]
    assert low == pytest.approx(0.0676, abs=1e-3) and high == pytest.approx(0.9324, abs=1e-3)
    assert sum(item["n"] for item in checked["bins"]) == 7
    assert good_thresholds(pairs, MODEL, 0.999) is None, (
        "two wrong pairs are as likely as right ones"
    )


def test_reliability_of_known_numbers():
    bins = reliability(np.array([0.01, 0.02, 0.97, 1.0]), np.array([0.0, 1.0, 1.0, 1.0]))
    assert [(item["n"], item["right"]) for item in bins] == [(2, 1), (2, 2)]
    assert bins[1]["mean_confidence"] == pytest.approx(0.985) and bins[1]["interval"][1] == 1.0
    figure = draw_reliability({"fitting eyes": {"bins": bins}, "checking eyes": {"bins": bins}})
    assert [axes.get_title() for axes in figure.axes[:2]] == ["fitting eyes", "checking eyes"]


def test_kept_evidence_is_read_again_and_that_of_other_weights_refused(tmp_path):
    path, pair = tmp_path / "val.jsonl", pair_of((3.0, 1.0, np.inf), same_eye=False)
    path.write_text('{"weights": "a"}\n' + pair.to_json() + "\n")
    assert EvidenceFile(path, {"weights": "a"}).pairs == {"val/pair": pair}
    with pytest.raises(InputError, match="other weights, data or settings"):
        EvidenceFile(path, {"weights": "b"})


def test_pairs_are_degraded_and_combined_within_their_eyes(generated_root, tmp_path):
    split = tmp_path / "split.yaml"
    split.write_text("train: ['1', '2']\nval: ['3', '4', '5']\ntest: ['6']\n")
    pairs = degraded_pairs(generated_root, split, "val", "cffa", draws=2, n_wrong=5)
    same = [pair for pair in pairs if pair.same_eye]
    assert len(same) == 3 * 2 * 2 and len(pairs) == len(same) + 5
    assert {pair.load.eye for pair in pairs} <= {"3", "4", "5"}
    assert any(pair.stress == "as given" for pair in same)
    assert any(pair.stress != "as given" for pair in same)
    for pair in (same[0], pairs[-1]):
        loaded = pair.load()
        assert loaded.key == pair.load.key and bool(len(loaded.fixed_landmarks)) == pair.same_eye


@pytest.mark.slow
def test_confidence_is_fitted_from_pairs(
    generated_root, untrained_weights, monkeypatch, tmp_path, capsys
):
    split, out = tmp_path / "split.yaml", tmp_path / "out"
    split.write_text("train: ['1']\nval: ['2', '3', '4']\ntest: ['5', '6']\n")
    arguments = ["--data", generated_root, "--split", split, "--weights", untrained_weights]
    arguments += ["--modes", "cffa", "--draws", 1, 1, "--wrong", 2, 2, "--out", out]
    torch.manual_seed(0)
    code = run_main(benchmarks.confidence, monkeypatch, *arguments)
    # An untrained network may find no right matrix: then the command reports an error.
    text = capsys.readouterr()
    assert code == 0 or (code == 2 and "both are needed" in text.err)
    kept = {name: (out / name).read_text() for name in ("val.jsonl", "test.jsonl")}
    assert [content.count("\n") for content in kept.values()] == [1 + 6 + 2, 1 + 4 + 2]
    # Evidence with a planted separation replaces that of the network; it is not registered again.
    for name, content in kept.items():
        header, *lines = content.splitlines()
        values = [json.loads(line) for line in lines]
        for item in values:
            same = item["same_eye"]
            item["copies"] = [[0, 12.0, 8.0, 50, 60, 0.5] if same else [0, 2.0, 0.5, 9, 60, np.inf]]
        lines = [header, *map(json.dumps, values)]
        (out / name).write_text("\n".join(lines) + "\n")
    assert run_main(benchmarks.confidence, monkeypatch, *arguments) == 0
    text = capsys.readouterr().out
    assert "checking eyes: false ok 0 of 2" in text and "right lost 0 of 4" in text
    record = json.loads((out / "confidence.json").read_text())
    assert record["checked"]["fitted"]["test"]["false_ok"] == 0
    assert (out / "reliability.png").stat().st_size > 1000
