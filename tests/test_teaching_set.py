"""Which real pairs teach: decisions, retries, leaving, and the state in a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_equal_nested

from geometry.curved_transforms import QuadraticTransform
from geometry.matrices import translation_matrix
from geometry.transforms import MatrixTransform, Transform
from loss.agreement import Agreement
from registration.consistency import ConsistentRegistration
from training.teaching_set import ACCEPTED, LEFT, REFUSED, WAITING, TeachingSet, TeachingSettings
from utils.errors import InputError

POINTS = np.random.default_rng(0).uniform(0, 500, (40, 2))
TEACHER = Agreement("generated_1", "generated", 100, 30, 0.2)
UNTRAINED = TEACHER._replace(n_right=0)


def shifted(x: float) -> Transform:
    return MatrixTransform(translation_matrix((x, 0.0)))


def registered(transform: Transform | None, reason: str = "") -> ConsistentRegistration:
    kind = "" if transform is None else transform.kind
    return ConsistentRegistration(
        not reason, reason, transform, kind, 0.9, 2.0, 3.5, POINTS, (512, 512)
    )


def make_set() -> TeachingSet:
    return TeachingSet({"marked": (shifted(1.0), 4.0)}, ["a", "b"], TeachingSettings(retry_every=3))


def show(teaching: TeachingSet, key: str, n_right: int, n_views: int = 16, known=TEACHER) -> None:
    """Views of a pair, each with a known sample in the same step."""
    form = teaching.records[key].form
    for _ in range(n_views):
        teaching.observe([known, Agreement(key, form, 100, n_right, 0.2)])


def show_and_judge(teaching: TeachingSet, key: str, n_right: int, known=TEACHER) -> list[str]:
    """Three epochs with views of a pair; all lines of the judgements.

    In the first the known samples are too few for a judgement; doubt is needed in both others.
    """
    lines = []
    for epoch in (1, 2, 3):
        show(teaching, key, n_right, known=known)
        lines += teaching.judge(epoch)
    return lines


def test_landmark_pairs_teach_from_the_start_and_the_others_wait():
    teaching = make_set()
    assert list(teaching.accepted()) == ["marked"] and teaching.due(0) == ["a", "b"]
    transform, tolerance = teaching.accepted()["marked"]
    assert tolerance == 4.0 and np.allclose(transform.map(POINTS), POINTS + [1, 0])
    with pytest.raises(ValueError, match="landmarks"):
        teaching.take("marked", registered(shifted(0)), 1)
    with pytest.raises(InputError, match="twice"):
        TeachingSet({"a": (shifted(0), 1.0)}, ["a"])


def test_accepted_registrations_teach_and_refused_ones_are_tried_again_after_some_epochs():
    teaching = make_set()
    teaching.take("a", registered(shifted(5.0)), 1)
    teaching.take("b", registered(shifted(9.0), "confidence 0.5 below 0.8"), 1)
    assert teaching.accepted().keys() == {"marked", "a"} and teaching.accepted()["a"][1] == 3.5
    record = teaching.records["b"]
    assert (record.status, record.reason) == (REFUSED, "confidence 0.5 below 0.8")
    assert record.transform is None
    assert [teaching.due(epoch) for epoch in (2, 3, 4)] == [[], [], ["b"]]
    teaching.refuse("b", "b.png: cannot be read", 4)
    assert teaching.records["b"].tries == 2 and teaching.due(5) == []
    teaching.take("b", registered(shifted(2.0)), 7)
    assert teaching.records["b"].status == ACCEPTED and teaching.due(100) == []


def test_a_wrong_landmark_pair_leaves_for_good():
    teaching = make_set()
    lines = show_and_judge(teaching, "marked", 0)
    assert len(lines) == 1 and lines[0].startswith("marked (landmarks) leaves")
    assert teaching.records["marked"].status == LEFT and "marked" not in teaching.accepted()
    assert "marked" not in teaching.due(100)
    shown = teaching.records["marked"].views
    show(teaching, "marked", 50)  # views in flight are ignored
    assert teaching.records["marked"].views == shown and teaching.judge(3) == []


def test_a_faint_right_pair_stays():
    teaching = make_set()
    assert show_and_judge(teaching, "marked", 1) == []  # 1 % right, 0.2 % by chance
    assert teaching.records["marked"].status == ACCEPTED


def test_an_untrained_network_judges_nothing_and_its_views_do_not_count_later():
    teaching = make_set()
    assert show_and_judge(teaching, "marked", 0, known=UNTRAINED) == []
    record = teaching.records["marked"]
    assert teaching.reference == 0 and record.evidence.views == 0 and record.views == 48
    # Trained now; the pair is right.
    assert show_and_judge(teaching, "marked", 20) == []


def test_no_pair_leaves_after_the_network_has_collapsed():
    teaching = make_set()
    show(teaching, "marked", 0)
    teaching.judge(1)
    teaching.observe([UNTRAINED] * 2000)
    assert teaching.reference == 0 and teaching.judge(2) == []


def test_views_of_single_images_are_the_reference_without_generated_ones():
    teaching = make_set()
    assert len(show_and_judge(teaching, "marked", 0, TEACHER._replace(form="self"))) == 1


def test_a_wrong_registered_pair_is_tried_again_but_not_with_the_same_transform():
    teaching = make_set()
    teaching.take("a", registered(shifted(50.0)), 0)
    assert len(show_and_judge(teaching, "a", 0)) == 1
    record = teaching.records["a"]
    assert (record.status, record.group, record.epoch) == (REFUSED, LEFT, 3)
    assert "matches disagree" in record.reason and teaching.due(5) == ["b"]
    assert teaching.due(6) == ["a", "b"]
    teaching.take("a", registered(shifted(54.0)), 6)  # within 6 px of the one that left
    assert (
        teaching.records["a"].status == REFUSED and "same transform" in teaching.records["a"].reason
    )
    teaching.take("a", registered(shifted(60.0)), 9)
    assert teaching.records["a"].status == ACCEPTED
    assert teaching.records["a"].views == 0 and teaching.judge(10) == [], "evidence starts anew"


def used_set() -> TeachingSet:
    teaching = make_set()
    curved = QuadraticTransform(np.eye(3), np.array([[0, 1, 0, 0, 0, 0.001], [0, 0, 1, 0, 0, 0]]))
    teaching.take("a", registered(curved), 0)
    teaching.take("b", registered(None, "failed: no matches"), 0)
    show_and_judge(teaching, "a", 0)
    show(teaching, "marked", 7, 5)
    return teaching


def test_the_state_survives_a_checkpoint(tmp_path):
    teaching, restored = used_set(), make_set()
    torch.save(teaching.state_dict(), tmp_path / "state.pth")
    restored.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert_equal_nested(restored.state_dict(), teaching.state_dict())
    for each in (teaching, restored):
        show_and_judge(each, "marked", 0)
        each.take("a", registered(shifted(3.0)), 9)
    assert_equal_nested(restored.state_dict(), teaching.state_dict())
    assert restored.statistics() == teaching.statistics()


def test_the_state_is_a_snapshot():
    teaching = used_set()
    state = teaching.state_dict()
    before = repr(state)
    show_and_judge(teaching, "marked", 0)
    teaching.take("a", registered(shifted(3.0)), 9)
    assert repr(state) == before


def test_the_state_of_other_pairs_is_refused():
    with pytest.raises(InputError, match="such as b"):
        TeachingSet({"marked": (shifted(1.0), 4.0)}, ["a"]).load_state_dict(make_set().state_dict())


def test_statistics_count_the_groups():
    teaching = used_set()
    figures = teaching.statistics()
    counts = [figures[name] for name in (ACCEPTED, REFUSED, LEFT, WAITING)]
    assert counts == [1, 1, 1, 0] and figures["share_known"] == pytest.approx(0.3, abs=0.01)
    assert figures["share_landmarks"] == pytest.approx(0.068, abs=0.005)
    assert "share_registered" not in figures


def test_an_accepted_result_needs_no_tolerance_of_a_refused_one():
    teaching = make_set()
    teaching.take("a", replace(registered(shifted(1.0), "no"), tolerance_file_px=9.0), 0)
    assert np.isnan(teaching.records["a"].tolerance_file_px)
