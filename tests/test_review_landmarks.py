"""Landmarks of the review page: fits with known answers, snapping, saving, comparing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers import make_pair, run_main
from review_helpers import true_points, write_results_folder

from dataset.real_pairs import load_real_pairs
from geometry import apply_transform
from geometry.matrices import affine_about, translation_matrix
from geometry.point_files import read_points
from geometry.transform_files import read_transform
from geometry.transforms import MatrixTransform
from review_page.annotating import Annotator
from review_page.fitting import compare_annotators, fit_page, provisional_transform
from review_page.pair_data import Landmarks, PairMatches
from review_page.rendering import make_pyramid
from review_page.review_set import ReviewOptions, open_review_set
from review_page.snapping import locate_partner, ridge_image, snap_to_junction
from review_page.workspace import Workspace
from utils.errors import InputError

SIZE = (480, 640)
H_TRUE = affine_about(20.0, 0.9, 0.02, (320, 240), (300, 250))


def landmarks(count: int, noise_px: float = 0.0) -> Landmarks:
    rng = np.random.default_rng(3)
    fixed = rng.uniform([60, 60], [580, 420], (count, 2))
    return Landmarks(fixed, true_points(H_TRUE, fixed) + rng.normal(0, noise_px, (count, 2)))


# --- fits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["auto", "affine", "homography", "quadratic"])
def test_exact_landmarks_give_the_matrix(kind):
    found = fit_page(landmarks(9), SIZE, SIZE, kind)
    points = np.array([[100.0, 100.0], [300, 200], [500, 350]])
    np.testing.assert_allclose(found.transform.map(points), true_points(H_TRUE, points), atol=1e-4)
    assert found.residuals.max() < 1e-4 and found.left_out.max() < 1e-3


def test_a_wrong_landmark_is_named_by_its_left_out_error():
    marks = landmarks(8, 0.2)
    marks.moving[5] += [14.0, -9.0]
    summary = fit_page(marks, SIZE, SIZE, "affine").summary()
    assert summary["worst"] == 5
    assert summary["left_out"][5] > summary["residuals"][5] > 3 * summary["median"]


def test_three_landmarks_leave_nothing_to_measure():
    summary = fit_page(landmarks(3), SIZE, SIZE).summary()
    assert summary["left_out"] == [None] * 3 and summary["worst"] is None
    assert json.dumps(summary), "it can be sent"


def test_matches_that_agree_sharpen_the_fit_and_wrong_ones_do_not_spoil_it():
    marks, rng = landmarks(4, 1.5), np.random.default_rng(1)
    fixed = rng.uniform([20, 20], [620, 460], (200, 2))
    moving = true_points(H_TRUE, fixed) + rng.normal(0, 0.5, fixed.shape)
    moving[:60] += rng.uniform(40, 90, (60, 2))
    matches = PairMatches(fixed, moving, np.ones(200, bool))
    corners = np.array([[0.0, 0.0], [640, 0], [0, 480], [640, 480]])

    def error(found) -> float:
        return np.abs(found.transform.map(corners) - true_points(H_TRUE, corners)).max()

    alone, together = (fit_page(marks, SIZE, SIZE, "affine", given) for given in (None, matches))
    assert 130 <= together.n_matches <= 140 and alone.n_matches == 0
    assert error(together) < error(alone)


def test_exchanged_landmarks_give_a_warning():
    marks = landmarks(3)
    assert fit_page(marks, SIZE, SIZE).warning == ""
    exchanged = Landmarks(marks.fixed, marks.moving[[1, 0, 2]])
    assert "mirror" in fit_page(exchanged, SIZE, SIZE).warning


@pytest.mark.parametrize(("count", "kind"), [(2, "auto"), (3, "homography"), (5, "quadratic")])
def test_too_few_landmarks_are_refused(count, kind):
    with pytest.raises(InputError, match=f"{count} "):
        fit_page(landmarks(count), SIZE, SIZE, kind)


def test_two_landmarks_propose_by_a_similarity():
    marks = Landmarks(np.array([[0.0, 0], [10, 0]]), np.array([[5.0, 5], [5, 25]]))
    np.testing.assert_allclose(
        provisional_transform(marks).map(np.array([[10.0, 10.0]])), [[-15.0, 25.0]], atol=1e-9
    )


def test_two_annotators_are_compared_at_the_places_that_both_chose():
    first = landmarks(8)
    second = Landmarks(first.fixed + 3.0, true_points(H_TRUE, first.fixed + 3.0) + [2.0, 0.0])
    found = compare_annotators(first, second, SIZE, SIZE)
    assert found["n_same"] == 8
    # 2 px of 640 are 1.6 px at 512, whatever the places in the fixed image.
    assert found["place_median"] == pytest.approx(1.6, abs=0.01)
    assert found["transform_median"] == pytest.approx(1.6, abs=0.01)
    none = compare_annotators(first, Landmarks(np.zeros((0, 2)), np.zeros((0, 2))), SIZE, SIZE)
    assert none["n_same"] == 0 and none["transform_median"] is None


# --- snapping -------------------------------------------------------------------------------------


def drawn_cross(size: tuple[int, int], centre: tuple[float, float]) -> np.ndarray:
    """Two dark vessels that cross, on a round field of view."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    u, v = x - centre[0], y - centre[1]
    image = np.full(size, 170.0)
    for angle in (0.4, 1.7):
        image -= 90 * np.exp(-((u * np.sin(angle) - v * np.cos(angle)) ** 2) / (2 * 2.0**2))
    image[np.hypot(x - size[1] / 2, y - size[0] / 2) > 0.48 * min(size)] = 0
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_a_click_snaps_to_the_crossing():
    ridges = ridge_image(make_pyramid(drawn_cross((512, 512), (230.3, 270.8))))
    found = snap_to_junction(ridges, np.array([234.0, 267.0]))
    assert found.found and np.linalg.norm(found.point - [230.3, 270.8]) < 1.0
    away = snap_to_junction(ridges, np.array([120.0, 330.0]))
    assert not away.found and away.point.tolist() == [120.0, 330.0]


@pytest.mark.slow
def test_the_second_place_is_found_from_a_transform_that_is_a_little_wrong(large_eye):
    fixed, moving, H, *_ = make_pair(large_eye, "cf_512", "fa_gen", 15.0, 0.95)
    pyramids = [
        make_pyramid((255 * (each if each.ndim == 3 else np.dstack([each] * 3))).astype(np.uint8))
        for each in (fixed, moving)
    ]
    ridges = [ridge_image(pyramid) for pyramid in pyramids]
    wrong = MatrixTransform(translation_matrix((4.0, -5.0)) @ H)
    errors = []
    for point in np.random.default_rng(5).uniform([130, 130], [380, 350], (40, 2)):
        start = snap_to_junction(ridges[0], point)
        located = locate_partner(*ridges, wrong, start.point)
        if start.found and located.found:
            errors.append(np.linalg.norm(located.point - true_points(H, start.point[None])[0]))
    assert len(errors) >= 12 and np.median(errors) < 0.6
    assert np.mean(np.array(errors) < 1.5) > 0.9


# --- saving ---------------------------------------------------------------------------------------


def body_of(identity: str, marks: Landmarks, **more: object) -> dict:
    points = {"fixed": marks.fixed.tolist(), "moving": marks.moving.tolist()}
    return {"id": identity, "marks": points, "kind": "auto", "with_matches": False, **more}


@pytest.fixture
def rescued(tmp_path, generated_root):
    """A failed pair of a results folder, its annotator, and true landmarks."""
    results = write_results_folder(tmp_path, generated_root, ["p1", "p2"], failed=["p1"])
    pair = make_pair(generated_root / "1_A", "cf", "fa_gen", 8.0, 0.95)
    annotator = Annotator(Workspace(open_review_set(results)))
    return results, annotator, Landmarks(pair[3][:3], pair[4][:3]), pair[2]


def test_a_rescued_pair_is_read_by_apply_transform(rescued, tmp_path, monkeypatch):
    results, annotator, marks, H = rescued
    before = annotator.workspace.describe_pair("p1")
    assert before["status"] == "failed" and before["transform"] is None
    after = annotator.save(body_of("p1", marks, version=before["version"]))
    assert (after["status"], after["source"], after["confidence"]) == ("ok", "manual", None)
    path = results / "p1" / "transform.json"
    np.testing.assert_allclose(read_transform(path).fix_to_mov.approximate_matrix(), H, atol=1e-6)
    content = json.loads(path.read_text())
    assert content["source"] == "manual" and content["n_landmarks"] == 3
    assert json.loads((results / "p1" / "transform_automatic.json").read_text())["reason"]
    np.testing.assert_allclose(read_points(results / "p1" / "001_01.txt", 2), marks.fixed)
    assert (results / "p1" / "checkerboard.png").is_file()
    points = results / "p1" / "001_01.txt"
    arguments = ("--transform", path, "--from", "fixed", "--points", points)
    out = tmp_path / "mapped.txt"
    assert run_main(apply_transform, monkeypatch, *arguments, "--out", out) == 0
    np.testing.assert_allclose(read_points(out, 2), marks.moving, atol=1e-4)


def test_another_window_is_not_overwritten(rescued):
    results, annotator, marks, _ = rescued
    version = annotator.workspace.describe_pair("p1")["version"]
    annotator.save(body_of("p1", marks, version=version))
    with pytest.raises(InputError, match="another window"):
        annotator.save(body_of("p1", Landmarks(*(own + 1 for own in marks)), version=version))
    np.testing.assert_allclose(read_points(results / "p1" / "001_01.txt", 2), marks.fixed)


def test_too_few_landmarks_are_kept_without_a_transform(rescued):
    results, annotator, marks, _ = rescued
    version = annotator.workspace.describe_pair("p1")["version"]
    two = Landmarks(*(own[:2] for own in marks))
    after = annotator.save(body_of("p1", two, version=version))
    assert after["status"] == "failed" and len(after["landmarks"]["fixed"]) == 2
    outside = Landmarks(two.fixed + 1e4, two.moving)
    with pytest.raises(InputError, match="outside"):
        annotator.save(body_of("p1", outside, version=after["version"]))


def test_corrected_landmarks_of_a_data_set_load_again(numbered_root, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(numbered_root[0], root)
    original = (root / "1_1" / "001_01.txt").read_text()
    annotator = Annotator(Workspace(open_review_set(root)))
    pair = annotator.workspace.describe_pair("1_1_001")
    assert len(pair["landmarks"]["fixed"]) == 8 and pair["transform"]["kind"] == "affine"
    moved = Landmarks(*(np.array(pair["landmarks"][side])[:6] for side in ("fixed", "moving")))
    annotator.save(body_of("1_1_001", moved, version=pair["version"]))
    kept = root / "review" / "1_1_001" / "landmarks_before" / "001_01.txt"
    assert kept.read_text() == original
    loaded = {pair.key: pair for pair in load_real_pairs(root)}
    assert len(loaded["cffa_1_1_001"].fixed_landmarks) == 6 and len(loaded) == 3
    assert open_review_set(root).items["1_1_001"].source == "manual"


def test_landmarks_in_one_file_keep_their_frame(cfocta_root, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(cfocta_root[0], root)
    annotator = Annotator(Workspace(open_review_set(root)))
    pair = annotator.workspace.describe_pair("Ts_1")
    path = root / "Ground_Truth_Ts" / "1Fundus_OCTA_points.txt"
    before = read_points(path, 4)
    marks = Landmarks(*(np.array(pair["landmarks"][side]) for side in ("fixed", "moving")))
    annotator.save(body_of("Ts_1", marks, version=pair["version"]))
    np.testing.assert_allclose(read_points(path, 4), before, atol=1e-5)


def test_a_second_annotator_has_a_folder_of_their_own(numbered_root, tmp_path):
    second = tmp_path / "second"
    options = ReviewOptions(landmarks=second)
    root = tmp_path / "set"
    shutil.copytree(numbered_root[0], root)
    annotator = Annotator(Workspace(open_review_set(root, options)))
    pair = annotator.workspace.describe_pair("1_1_001")
    assert pair["landmarks"]["fixed"] == [], "the first annotator's are not shown"
    own = read_points(root / "1_1" / "001_01.txt", 2), read_points(root / "1_1" / "001_02.txt", 2)
    marks = Landmarks(own[0], own[1] + [1.0, 0.0])
    annotator.save(body_of("1_1_001", marks, version=pair["version"]))
    assert (second / "1_1" / "001_01.txt").is_file()
    first = Annotator(Workspace(open_review_set(root), second=second))
    found = first.fit(body_of("1_1_001", Landmarks(*own)))["observers"]
    size = first.workspace.describe_pair("1_1_001")["moving"]
    expected = 512 / max(size["height"], size["width"])
    assert found["n_same"] == 8 and found["place_median"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"marks": None},
        {"marks": {"fixed": [[0, 0]], "moving": []}},
        {"marks": {"fixed": [[0, "x"]], "moving": [[0, 0]]}},
        {"marks": {"fixed": [[0, float("nan")]], "moving": [[0, 0]]}},
        {"kind": "spline", "marks": {"fixed": [[0, 0]] * 3, "moving": [[0, 0]] * 3}},
        {"id": "gone"},
    ],
)
def test_damaged_requests_are_refused(rescued, change):
    _, annotator, marks, _ = rescued
    with pytest.raises(InputError):
        annotator.fit(body_of("p1", marks) | change)
