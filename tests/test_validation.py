"""The validation of a training run: which pairs, what is measured, who measures it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.aligned_pairs import AlignedPairs
from dataset.samples import Sample, discover_samples
from dataset.views import ViewGeometry
from evaluation.keypoint_metrics import count_right_matches, detector_scores
from geometry.estimation import Plausibility
from geometry.matrices import affine_about, image_centre
from geometry.points import warp_points
from registration.keypoint_matcher import KeypointMatchSettings, SuperRetinaMatcher
from registration.matcher import Matcher
from registration.trained_matchers import build_model
from tests.helpers import SMALL_LOFTR, SMALL_MODEL
from training.run_state import scores_the_bare_view
from training.validation import ValidationSettings, Validator, spread_over_eyes
from training.validation_scores import PairScore, summarise_generated, summarise_real
from utils.config import build, to_plain
from utils.errors import InputError

SIZE = (256, 512)  # of the moving image: a pixel is a px at 512


def sample(eye: int, mode: str = "cffa", visit: str = "A") -> Sample:
    path = Path("none.png")
    return Sample(f"{mode}_{eye}_{visit}", str(eye), mode, path, path, path)


def score_of(error: float, mode: str = "cffa", number: int = 0, **figures) -> PairScore:
    values = {"mse": 0.1, "n_matches": 10, "n_inliers": 5, "status": "ok", "reason": ""} | figures
    right = figures.pop("n_right", {1: 0, 3: 0, 5: 0})
    return PairScore(number, f"{mode}_{number}", mode, error, **(values | {"n_right": right}))


# --- figures of keypoints and matches ---


def test_detector_scores_of_a_known_case():
    """Five fixed and four moving keypoints; three pairs 0, 1 and 2 px apart, one 4 px apart."""
    H = affine_about(30, 1.1, 0.0, image_centre((200, 300)), image_centre(SIZE))
    fixed = np.array([[50.0, 40.0], [120.0, 60.0], [80.0, 150.0], [200.0, 100.0], [250.0, 30.0]])
    moving = warp_points(fixed, H)[:4] + [[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [4.0, 0.0]]
    scores = detector_scores(fixed, moving, H, SIZE)
    assert scores.repeatability == pytest.approx((3 + 3) / (5 + 4))
    assert scores.localisation_px == pytest.approx(1.0)
    assert scores.fixed_repeated.tolist() == [True, True, True, False, False]


def test_detector_scores_are_in_px_at_512_and_count_missing_keypoints():
    fixed = np.array([[10.0, 10.0]])
    near = fixed + [5.0, 0.0]  # 5 px of an image of 1024 px are 2.5 px at 512
    assert detector_scores(fixed, near, np.eye(3), (512, 1024)).localisation_px == pytest.approx(
        2.5
    )
    assert detector_scores(fixed, near, np.eye(3), (512, 512)).repeatability == 0
    nothing = detector_scores(fixed, np.zeros((0, 2)), np.eye(3), SIZE)
    assert nothing.repeatability == 0 and math.isnan(nothing.localisation_px)


def test_right_matches_are_counted_by_threshold():
    fixed = np.array([[10.0, 10.0], [20.0, 10.0], [30.0, 10.0], [40.0, 10.0]])
    moving = fixed + [[0.5, 0.0], [0.0, 2.0], [4.0, 0.0], [30.0, 0.0]]
    assert count_right_matches(fixed, moving, np.eye(3), SIZE) == {1: 1, 3: 2, 5: 3}


def test_summary_of_known_scores():
    """Failures count; the accuracy is a mean over pairs, the precision one over matches."""
    scores = [
        score_of(1.0, n_matches=10, n_right={1: 2, 3: 5, 5: 10}, repeatability=0.4),
        score_of(math.inf, n_matches=30, n_right={1: 0, 3: 3, 5: 6}, repeatability=0.2),
        score_of(7.0, "cfoct", n_matches=0),
    ]
    summary = summarise_generated(scores)
    assert summary["rate"] == pytest.approx(1 / 3) and summary["corner_error"] == 7.0
    assert summary["AUC@10"] == pytest.approx((0.9 + 0.0 + 0.3) / 3)
    assert summary["MMA@3"] == pytest.approx((0.5 + 0.1 + 0.0) / 3)
    assert summary["precision"] == pytest.approx(8 / 40)
    assert summary["repeatability"] == pytest.approx(0.3), "of the pairs where it is measured"
    assert summary["rate_cffa"] == 0.5 and summary["rate_cfoct"] == 0.0
    assert "repeatability_cfoct" not in summary
    assert "rate_cffa" not in summarise_generated(scores[:2]), "one kind of pair only"
    real = summarise_real([score_of(2.0, "real"), score_of(math.inf, "real")])
    assert real == {"landmark_error": math.inf, "AUC@10_real": pytest.approx(0.4), "rate_real": 0.5}
    turned = [replace(score_of(error, "real"), rotation=30.0) for error in (9.0, 7.0)]
    both = summarise_real([score_of(2.0, "real"), score_of(1.0, "real"), *turned])
    assert (both["rate_real"], both["rate_real_0deg"], both["rate_real_30deg"]) == (0.5, 1.0, 0.0)
    assert summarise_real([]) == {}


# --- which pairs ---


@pytest.mark.parametrize("n_pairs", [3, 6, 7, 20])
def test_pairs_are_spread_over_all_eyes_and_modes(n_pairs):
    samples = [
        sample(eye, mode, visit) for eye in range(6) for mode in ("cffa", "cfoct") for visit in "AB"
    ]
    indices = spread_over_eyes(samples, n_pairs)
    shown = [samples[index % len(samples)] for index in indices]
    assert len(set(indices)) == n_pairs
    uses = [sum(each.eye == str(eye) for each in shown) for eye in range(6)]
    assert max(uses) - min(uses) <= 1
    modes = [sum(each.mode == mode for each in shown) for mode in ("cffa", "cfoct")]
    assert abs(modes[0] - modes[1]) <= 1


def test_pairs_beyond_the_samples_are_other_views_of_them():
    samples = [sample(1), sample(2)]
    assert sorted(spread_over_eyes(samples, 5)) == [0, 1, 2, 3, 4]


# --- the validator ---


@pytest.fixture(scope="module")
def views(generated_root) -> AlignedPairs:
    samples, _ = discover_samples(generated_root, ["cffa"])
    whole = ViewGeometry(img_size=None, long_side=192, rotation_deg=20, shear=0.0, mirror=False)
    return AlignedPairs(samples, whole, None, seed=1)


def keypoint_matcher() -> SuperRetinaMatcher:
    torch.manual_seed(0)
    return SuperRetinaMatcher(build_model(SMALL_MODEL), KeypointMatchSettings(long_side=192))


def validator_of(matcher: Matcher, views: AlignedPairs, **settings) -> Validator:
    checks = ValidationSettings(pairs=5, pictures=1, **settings)
    return Validator(matcher, views, [], checks, Plausibility())


def test_processes_share_the_pairs_and_agree_with_one_process(views, tmp_path):
    validator = validator_of(keypoint_matcher(), views)
    whole = validator.score(0, tmp_path / "whole")
    parts = [validator.score(0, tmp_path / "parts", rank, 2) for rank in (1, 0)]
    assert [len(part) for part in parts] == [2, 3]
    merged = validator.report([score for part in parts for score in part])
    assert merged == validator.report(whole) and merged.score == merged.summary["AUC@10"]
    pictures = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(pictures) == 4
    assert pictures == sorted(path.name for path in (tmp_path / "parts").iterdir())


def test_validation_is_bare_and_leaves_the_settings_of_the_matcher_alone(views, tmp_path):
    """One look at each image: describe() is called twice a pair, and nothing is refined."""
    matcher, looks = keypoint_matcher(), []
    validator = validator_of(matcher, views)
    describe = type(matcher).describe

    class Counting(type(matcher)):
        def describe(self, working, role):
            looks.append(role)
            return describe(self, working, role)

    validator.matcher.__class__ = Counting
    validator.score(0, tmp_path)
    assert looks == ["fixed", "moving"] * 5
    assert matcher.settings.try_turns and matcher.settings.refine
    assert not validator.matcher.settings.refine


def test_a_matcher_without_a_detector_has_no_detector_figures(views, tmp_path):
    from registration.loftr_matcher import LoFTRMatcher, LoFTRMatchSettings

    torch.manual_seed(0)
    matcher = LoFTRMatcher(build_model(SMALL_LOFTR), LoFTRMatchSettings(long_side=192))
    validator = validator_of(matcher, views)
    summary = validator.report(validator.score(0, tmp_path)).summary
    assert "repeatability" not in summary and "MMA@3" in summary
    with pytest.raises(InputError, match="repeatability is not measured for loftr"):
        chosen = validator_of(matcher, views, figure="repeatability")
        chosen.report(chosen.score(0, tmp_path))


def test_the_best_score_of_an_earlier_version_is_not_kept():
    """It was that of the whole pipeline; the bare view would never exceed it."""
    now = {"config": {"settings": {"validation": to_plain(ValidationSettings())}}}
    earlier = {"config": {"settings": {"validation": {"views": 24, "pictures": 4}}}}
    assert scores_the_bare_view(now)
    assert not scores_the_bare_view(earlier) and not scores_the_bare_view({"config": {}})


def test_settings_are_checked():
    with pytest.raises(InputError, match="validation.select: 'loss' .* choose from generated"):
        ValidationSettings(select="loss")
    with pytest.raises(InputError, match="validation.figure: 'loss' .* choose from AUC@10"):
        ValidationSettings(figure="loss")
    with pytest.raises(InputError, match="'MMA@3' is unknown or not measured for .* real"):
        ValidationSettings(select="real", figure="MMA@3")
    with pytest.raises(InputError, match="real_rotations must name at least one"):
        ValidationSettings(real_rotations=())
    with pytest.raises(InputError, match="validation.every must be at least 1"):
        ValidationSettings(every=0)
    with pytest.raises(InputError, match="unknown key views"):
        build(ValidationSettings, {"views": 3}, "old.yaml")
    old = build(ValidationSettings, {"views": 3, "pictures": 1}, "old.pth", from_checkpoint=True)
    assert old == ValidationSettings(pictures=1)
