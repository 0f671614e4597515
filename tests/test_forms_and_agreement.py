"""Terms of each form of sample in the log, and how well matches agree with a transform."""

from __future__ import annotations

import pytest
import torch
from loss_cases import KEY, features, pair_batch, run_pair

from loss.agreement import Agreement
from loss.common import Term
from loss.forms import form_figures, term_and_form
from model.super_retina_multimodal import ModelSettings
from training.curves import LOSS_TERMS, OF_FORMS, curve_panels, draw_curves, panel_curves
from training.epoch_log import training_text
from training.progress import EpochProgress, StepFigures
from training.report import draw_chart
from training.superretina_step import SuperRetinaConfig, SuperRetinaStep

PLACES = {"a": (30.0, 30.0), "b": (60.0, 44.0), "c": (70.0, 16.0)}


# --- forms ---


def example_terms() -> dict[str, Term]:
    values = torch.tensor([1.0, 2.0, 4.0, 0.0], requires_grad=True)
    return {"des": Term(values, torch.tensor([True, True, True, False]))}


def test_the_log_shows_the_mean_over_the_samples_of_a_form_that_contributed():
    forms = ("generated", "landmarks", "self")
    of_samples = ["landmarks", "generated", "landmarks", "landmarks"]
    values, n_valid = form_figures(example_terms(), of_samples, forms)
    assert list(values) == ["des_generated", "des_landmarks", "des_self"] == list(n_valid)
    assert [value.item() for value in values.values()] == [0.5, 1.25, 0.0], "sums over 4 samples"
    assert n_valid == {"des_generated": 1, "des_landmarks": 2, "des_self": 0}
    assert not any(value.requires_grad for value in values.values())
    progress = EpochProgress()
    step = StepFigures()
    for name, value in values.items():
        step.add(name, value.item(), n_valid[name] / 4)
    progress.add(step)
    assert progress.means() == {"des_generated": 2.0, "des_landmarks": 2.5, "des_self": 0.0}


def test_generated_samples_alone_have_no_such_figures():
    assert form_figures(example_terms(), ["generated"] * 4, ("generated",)) == ({}, {})
    with pytest.raises(ValueError, match="form landmarks in a run of generated"):
        form_figures(example_terms(), ["landmarks"] * 4, ("generated",))


def test_the_figures_of_forms_do_not_enter_the_total():
    batch = pair_batch(anchors=PLACES, form="generated")
    alone, several = (
        run_pair(features(PLACES), features(PLACES), batch, forms=forms)
        for forms in (("generated",), ("generated", "self"))
    )
    assert list(alone.losses) == ["det", "des", "geo", "pke", "geo_plan", "total"]
    assert list(several.losses)[6:] == [
        f"{term}_{form}" for form in ("generated", "self") for term in ("det", "des", "geo", "pke")
    ]
    assert torch.equal(alone.losses["total"], several.losses["total"])
    assert torch.equal(several.losses["geo"], several.losses["geo_generated"])
    assert several.losses["geo_self"] == 0 and several.n_valid["geo_self"] == 0


def test_log_and_curves_keep_the_forms_apart(tmp_path):
    terms = {"des": 1.5, "total": 2.0, "des_landmarks": 0.25, "des_self": 0.0, "empty_des": 1.0}
    assert training_text(terms, {}).splitlines() == [
        "des 1.5  total 2  empty_des 1",
        "landmarks:  des_landmarks 0.25",
        "self:  des_self 0",
    ]
    assert term_and_form("des_landmarks") == ("des", "landmarks")
    assert term_and_form("pke_passed") == ("pke_passed", "")
    history = [{"epoch": 1.0} | terms, {"epoch": 2.0} | terms | {"des_generated": 2.0}]
    panels = curve_panels(history)
    assert panels[LOSS_TERMS] == ["total", "des"]
    assert panels[OF_FORMS + "des"] == ["des_generated", "des_landmarks"], "no self contributed"
    curves = panel_curves(OF_FORMS + "des", ["des_generated", "des_landmarks"], history)
    assert curves[0] == ("generated", 0, [(2.0, 2.0)]), "without the epoch that had no sample"
    assert curves[1] == ("landmarks", 1, [(1.0, 0.25), (2.0, 0.25)])
    assert panel_curves(OF_FORMS + "des", ["des_self"], history) == []
    chart = draw_chart(OF_FORMS + "des", panels[OF_FORMS + "des"], history)
    assert [trace.name for trace in chart.data] == ["generated", "landmarks"], (
        "the same in the report"
    )
    assert list(curve_panels(history[:1])) == [LOSS_TERMS], "one form: the curve of the term"
    draw_curves(tmp_path / "curves.png", history)
    assert (tmp_path / "curves.png").stat().st_size > 0
    generated = [{"epoch": 1.0, "des": 1.5, "total": 2.0, "empty_des": 1.0}]
    assert list(curve_panels(generated)) == [LOSS_TERMS]


# --- agreement ---


def agreement(fixed: dict, moving: dict, **options: float) -> Agreement:
    result = run_pair(features(fixed), features(moving), pair_batch(**options))
    return result.observations.unpacked()[0].agreement


def test_matches_near_the_mapped_place_are_right():
    """a matches at its place, b 5 px away; c is shown at the place of another detection."""
    moving = {"a": (30.0, 30.0), "b": (65.0, 44.0), "c": (20.0, 56.0), "d": (70.0, 16.0)}
    found = agreement(PLACES, moving)
    assert found[:4] == (KEY, "landmarks", 3, 1)
    # Of 4 moving detections one is near the mapped a, none near b, and one (d) near c.
    assert found.expected_right == pytest.approx(1 / 4 + 0 + 1 / 4)
    tolerant = agreement(PLACES, moving, tolerance_px=6.0)
    assert tolerant.n_right == 2 and tolerant.expected_right == pytest.approx(3 / 4)


def test_a_wrong_transform_has_no_more_right_matches_than_expected_by_chance():
    moved = {"a": PLACES["b"], "b": PLACES["c"], "c": PLACES["a"]}
    found = agreement(PLACES, moved)
    assert found.n_matches == 3 and found.n_right == 0
    assert found.expected_right == pytest.approx(3 * 1 / 3)


def test_detections_outside_of_the_overlap_do_not_match():
    batch = pair_batch()
    batch["moving_fov"][..., 50:] = 0
    result = run_pair(features(PLACES), features(PLACES), batch)
    assert result.observations.unpacked()[0].agreement[2:] == (1, 1, 1.0)
    nothing = agreement(PLACES, {})
    assert nothing[2:] == (0, 0, 0.0)


def test_the_step_hands_on_the_agreements_and_updates_the_value_map():
    result = run_pair(features(PLACES), features(PLACES), pair_batch())
    config = SuperRetinaConfig(model=ModelSettings(widths=(8, 8, 8), descriptor_dim=8))
    seen: list[Agreement] = []
    step = SuperRetinaStep(config, config.build_model(), ("generated", "self"), seen.extend)
    step.learn(result.observations.unpacked())
    assert seen == [Agreement(KEY, "landmarks", 3, 3, 1.0)]
    assert step.value_map.statistics()["places"] == 3
    assert step.objective.forms == ("generated", "self")
    step.observe = None
    step.learn(result.observations.unpacked())
    assert len(seen) == 1
