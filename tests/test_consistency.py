"""A pair without landmarks is believed if three registrations of it agree."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from geometry.curved_transforms import QuadraticTransform
from geometry.matrices import affine_about, compose, image_centre, size_of_image, turn_about_centre
from geometry.transforms import MatrixTransform
from registration import consistency
from registration.consistency import ConsistencySettings, common_points, register_consistently
from utils.errors import InputError

FIXED = np.full((600, 800), 0.5, np.float32)
MOVING = np.full((512, 400), 0.4, np.float32)
H_TRUE = affine_about(5.0, 0.5, 0.0, image_centre(FIXED.shape), image_centre(MOVING.shape))
SETTINGS = ConsistencySettings()


class FakePipeline:
    """Stands for ``register_pair``; the three registrations can be made wrong or fail.

    Args:
        shifts: error of each registration, pixels (x, y) of its own moving image; a text fails with
            that reason.
        confidence: of all of them.
    """

    def __init__(self, direct=(0, 0), swapped=(0, 0), turned=(0, 0), confidence=0.95) -> None:
        self.shifts = {"direct": direct, "swapped": swapped, "turned": turned}
        self.confidence, self.calls = confidence, []

    def __call__(self, matcher, fixed, moving, transform, plausibility):
        H_turn, canvas = turn_about_centre(size_of_image(MOVING), SETTINGS.turn_deg)
        name, H = "direct", H_TRUE
        if fixed is MOVING:
            name, H = "swapped", np.linalg.inv(H_TRUE)
        elif moving is not MOVING:
            name, H = "turned", compose(H_TRUE, H_turn)
            assert moving.shape == canvas
        self.calls.append(name)
        shift = self.shifts[name]
        if isinstance(shift, str):
            return SimpleNamespace(transform=None, reason=shift, confidence=0.0)
        H = H.copy()
        H[:2, 2] += shift
        return SimpleNamespace(transform=MatrixTransform(H), reason="", confidence=self.confidence)


def register(monkeypatch, settings=SETTINGS, **wrong):
    pipeline = FakePipeline(**wrong)
    monkeypatch.setattr(consistency, "register_pair", pipeline)
    return register_consistently(None, FIXED, MOVING, settings), pipeline.calls


def test_a_pair_whose_three_registrations_agree_is_accepted(monkeypatch):
    found, calls = register(monkeypatch)
    assert found.accepted and found.reason == "" and calls == ["direct", "swapped", "turned"]
    assert found.kind == "affine" and found.confidence == 0.95
    assert np.allclose(found.transform.H_fix_to_mov, H_TRUE)
    assert found.disagreement_px < 1e-6
    # The least tolerance: 3 px where the long side of the fixed image, 800 px, is 512.
    assert found.tolerance_file_px == pytest.approx(3.0 * 800 / 512)


@pytest.mark.parametrize(
    "wrong, calls, reason",
    [
        ({"direct": "no matches"}, 1, "failed: no matches"),
        ({"confidence": 0.55}, 1, "confidence 0.55 below 0.8"),
        ({"swapped": "no matches"}, 2, "swapped images: failed: no matches"),
        ({"turned": "no matches"}, 3, "turned image: failed: no matches"),
    ],
)
def test_the_first_failed_check_ends_it_with_its_reason(monkeypatch, wrong, calls, reason):
    found, made = register(monkeypatch, **wrong)
    assert not found.accepted and found.reason == reason and len(made) == calls
    assert math.isnan(found.tolerance_file_px)
    assert (found.transform is None) == ("direct" in wrong)


def test_disagreement_of_either_repetition_refuses(monkeypatch):
    # 28 fixed px are 14 moving px, for the scale is 0.5; the moving image has a long side of 512.
    found, calls = register(monkeypatch, swapped=(28, 0))
    assert not found.accepted and found.reason == "swapped images disagree by 14 px"
    assert calls == ["direct", "swapped"]
    found, _ = register(monkeypatch, turned=(6, 8))
    assert not found.accepted and found.reason == "turned image disagrees by 10 px"
    assert found.disagreement_px == pytest.approx(10.0)


def test_a_small_disagreement_is_accepted_and_becomes_the_tolerance(monkeypatch):
    found, _ = register(monkeypatch, swapped=(2, 0), turned=(3, 4))
    assert found.accepted and found.disagreement_px == pytest.approx(5.0)
    assert found.tolerance_file_px == pytest.approx(10.0, rel=1e-3)  # fixed px, scale 0.5
    strict = replace(SETTINGS, max_disagreement_px=4.0)
    assert not register(monkeypatch, settings=strict, turned=(3, 4))[0].accepted


def curved(H_own_to_turned: np.ndarray, bend_px: float) -> QuadraticTransform:
    """H_TRUE bent by so many moving px at the edge of the unit circle, into the turned image."""
    H_unit = np.array([[1 / 500, 0, -400 / 500], [0, 1 / 500, -300 / 500], [0, 0, 1]])
    linear = (H_TRUE @ np.linalg.inv(H_unit))[:2]
    coefficients = np.zeros((2, 6))
    coefficients[:, :3] = linear[:, [2, 0, 1]]
    coefficients[0, 3] = bend_px
    coefficients = H_own_to_turned[:2, :2] @ coefficients
    coefficients[:, 0] += H_own_to_turned[:2, 2]
    return QuadraticTransform(H_unit, coefficients)


@pytest.mark.parametrize("bend_px, accepted", [(12.0, True), (40.0, False)])
def test_curved_transforms_are_compared_point_by_point(monkeypatch, bend_px, accepted):
    """Both are bent by 12 px; only where the turned one is bent otherwise do they disagree."""

    def register_pair(matcher, fixed, moving, transform, plausibility):
        H_turn, _ = turn_about_centre(size_of_image(MOVING), SETTINGS.turn_deg)
        found = curved(np.eye(3), 12.0) if moving is MOVING else curved(H_turn, bend_px)
        if fixed is MOVING:
            # The fitted inverse of the curved map; its own inverse is the map again.
            forward = curved(np.eye(3), 12.0)
            found = SimpleNamespace(kind="quadratic", map=forward.map_back, map_back=forward.map)
        return SimpleNamespace(transform=found, reason="", confidence=0.95)

    monkeypatch.setattr(consistency, "register_pair", register_pair)
    found = register_consistently(None, FIXED, MOVING, SETTINGS)
    assert found.kind == "quadratic" and found.accepted is accepted
    assert found.reason == "" if accepted else found.reason.startswith("turned image disagrees")


@pytest.mark.parametrize("share", [0.06, 0.5, 1.0])
def test_points_without_counterpart_are_a_disagreement(monkeypatch, share):
    """A homography or a displacement field has no counterpart for some points: NaN."""
    pipeline = FakePipeline()

    def register_pair(matcher, fixed, moving, transform, plausibility):
        found = pipeline(matcher, fixed, moving, transform, plausibility)
        if fixed is MOVING:
            exact = found.transform

            def map_back(points):
                mapped = exact.map_back(points)
                mapped[: math.ceil(share * len(points))] = np.nan
                return mapped

            found.transform = SimpleNamespace(map_back=map_back)
        return found

    monkeypatch.setattr(consistency, "register_pair", register_pair)
    found = register_consistently(None, FIXED, MOVING, SETTINGS)
    assert not found.accepted and found.reason == "swapped images disagree by inf px"


def test_agreement_is_measured_in_the_common_field_of_view():
    disc = np.zeros((300, 400), np.float32)
    ys, xs = np.mgrid[:300, :400]
    disc[(ys - 150) ** 2 + (xs - 200) ** 2 < 120**2] = 0.5
    shift = MatrixTransform(np.array([[1.0, 0, 100], [0, 1, 0], [0, 0, 1]]))
    points = common_points(disc, disc, shift)
    assert len(points) > 50
    for centre in ((200, 150), (100, 150)):  # of the disc itself, and of the other's, in fixed px
        assert np.linalg.norm(points - centre, axis=1).max() < 125
    far = MatrixTransform(np.array([[1.0, 0, 1000], [0, 1, 0], [0, 0, 1]]))
    assert len(common_points(disc, disc, far)) == 0


def test_images_without_common_field_are_refused(monkeypatch):
    found, calls = register(monkeypatch, direct=(5000, 0))
    assert not found.accepted and "too little in common" in found.reason and calls == ["direct"]


def test_the_distance_of_two_transforms_is_in_moving_px_at_512(monkeypatch):
    found, _ = register(monkeypatch)
    H = H_TRUE.copy()
    H[0, 2] += 7.0
    assert found.distance_px(MatrixTransform(H)) == pytest.approx(7.0)
    failed, _ = register(monkeypatch, direct="no matches")
    assert failed.distance_px(MatrixTransform(H)) == math.inf


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_confidence": 1.5},
        {"min_confidence": math.nan},
        {"turn_deg": 0.0},
        {"turn_deg": 200.0},
        {"max_disagreement_px": 0.0},
        {"min_tolerance_px": math.inf},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        ConsistencySettings(**wrong)
