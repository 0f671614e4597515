"""The pipeline from matches to a matrix: guided matching, copies, refinement, rejection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from geometry.estimation import Plausibility, estimate_transform
from geometry.matrices import affine_about, compose, image_centre, translation_matrix
from geometry.points import pixel_grid, warp_points
from registration import refinement
from registration.guided_fit import fit_matches
from registration.keypoint_matcher import KeypointMatchSettings, match_guided
from registration.matcher import Matcher, WorkingMatches
from registration.pipeline import register_pair
from registration.proposals import other_similarities
from registration.working_frame import WorkingFrame, WorkingImage, field_diameter, to_working_frame

SIZE = (300, 400)
WHOLE = WorkingImage(np.zeros(SIZE, np.float32), np.ones(SIZE, bool), WorkingFrame(np.eye(3), SIZE))


def disc_image(size, centre, radius):
    """A round field of view with texture on black."""
    grid = pixel_grid(size).numpy().reshape(*size, 2)
    inside = np.linalg.norm(grid - centre, axis=2) <= radius
    return (inside * (0.5 + 0.2 * np.sin(grid[..., 0] / 9.0))).astype(np.float32)


@pytest.mark.parametrize(
    "size, centre, radius", [((400, 500), (240, 190), 150), ((900, 700), (350, 400), 300)]
)
def test_working_scale_follows_the_field_of_view(size, centre, radius):
    working, seen, frame = to_working_frame(disc_image(size, centre, radius), 256)
    assert working.shape == seen.shape == frame.size
    assert field_diameter(seen) == pytest.approx(256, rel=0.02)
    mapped = warp_points(np.array([centre], float), frame.H_image_to_working)[0]
    assert np.abs(mapped - image_centre(frame.size)).max() < 2.5
    assert frame.H_image_to_working[0, 0] == pytest.approx(128 / radius, rel=0.03)


def planted(n_points=150, n_described=60, seed=0, mirrored=False):
    """Keypoints of two images under a known matrix; some have distinctive descriptors."""
    rng = np.random.default_rng(seed)
    H = affine_about(40, 1.1, 0.02, image_centre(SIZE), [220, 140], mirror=mirrored)
    fixed = rng.uniform([20, 20], [380, 280], (n_points, 2))
    moving = warp_points(fixed, H) + rng.normal(0, 0.4, fixed.shape)
    descriptors = torch.nn.functional.normalize(
        torch.from_numpy(rng.normal(size=(2, n_points, 32))), dim=-1
    )
    # A distinctive descriptor is similar in both images, the others are hardly.
    share = torch.where(torch.arange(n_points) < n_described, 0.05, 0.75)[:, None]
    theirs = torch.nn.functional.normalize(
        (1 - share) * descriptors[0] + share * descriptors[1], dim=-1
    )
    pairs = rng.permutation(n_points)[:40]
    wrong = rng.permutation(pairs)
    matched = np.where(np.arange(40) < 20, pairs, wrong)
    return WorkingMatches(
        fixed[pairs],
        moving[matched],
        np.ones(40),
        WHOLE,
        WHOLE,
        fixed,
        moving,
        fixed_descriptors=descriptors[0],
        moving_descriptors=theirs,
    ), H


def test_guided_matching_finds_more_and_only_nearby():
    matches, H = planted()
    guided = match_guided(matches, H, 10.0)
    gap = np.linalg.norm(warp_points(guided.fixed_points, H) - guided.moving_points, axis=1)
    assert len(guided.fixed_points) > 100 > len(matches.fixed_points) and gap.max() <= 10.0
    assert len(match_guided(matches, translation_matrix((5000, 0)), 10.0).fixed_points) == 0


def test_estimate_recovers_the_matrix_from_few_matches():
    matches, H = planted()
    estimate, used, _ = fit_matches(matches, KeypointMatchSettings(), "affine", Plausibility())
    points = np.array([[30.0, 40.0], [370.0, 50.0], [200.0, 260.0]])
    assert (
        estimate.status == "ok"
        and estimate.n_inliers > 100
        and len(used.fixed_points) == len(estimate.inliers)
    )
    assert np.abs(warp_points(points, estimate.H_fix_to_mov) - warp_points(points, H)).max() < 1.0


def test_unrelated_keypoints_fail_with_a_reason():
    failures = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        matches, _ = planted(seed=seed)
        strangers = WorkingMatches(
            matches.fixed_points,
            rng.uniform([0, 0], [400, 300], (40, 2)),
            np.ones(40),
            WHOLE,
            WHOLE,
            matches.fixed_keypoints,
            rng.uniform([0, 0], [400, 300], (150, 2)),
            fixed_descriptors=matches.fixed_descriptors,
            moving_descriptors=matches.moving_descriptors.flip(0),
        )
        estimate, _, _ = fit_matches(strangers, KeypointMatchSettings(), "affine", Plausibility())
        failures += (
            estimate.status == "failed" and estimate.H_fix_to_mov is None and bool(estimate.reason)
        )
    assert failures == 10


def test_further_proposals_are_tested_where_the_first_is_rejected():
    matches, H = planted()
    rng = np.random.default_rng(5)
    spread = rng.uniform([40, 40], [360, 260], (9, 2))
    # Nine matches are inliers of a wrong translation, five of the true matrix.
    decoys = spread, spread + [60.0, -45.0]
    few = replace(
        matches,
        fixed_points=np.concatenate([decoys[0], matches.fixed_points[:5]]),
        moving_points=np.concatenate([decoys[1], matches.moving_points[:5]]),
        similarity=np.ones(14),
    )
    estimate, _, significance = fit_matches(few, KeypointMatchSettings(), "affine", Plausibility())
    _, _, at_once = fit_matches(matches, KeypointMatchSettings(), "affine", Plausibility())
    points = np.array([[60.0, 60.0], [340.0, 60.0], [200.0, 250.0]])
    assert (
        estimate.status == "ok"
        and np.abs(warp_points(points, estimate.H_fix_to_mov) - warp_points(points, H)).max() < 1.5
    )
    assert 3.0 < significance < at_once, "corrected for multiple comparisons"


def test_proposals_differ_and_have_decreasing_numbers_of_inliers():
    matches, H = planted()
    spread = np.random.default_rng(5).uniform([40, 40], [360, 260], (9, 2))
    found = other_similarities(
        np.concatenate([spread, matches.fixed_points[:6]]),
        np.concatenate([spread + [60.0, -45.0], matches.moving_points[:6]]),
        SIZE,
        5.0,
        Plausibility(),
    )
    corners = np.array([[0.0, 0.0], [399, 0], [399, 299], [0, 299]])
    places = [warp_points(corners, each) for each in found]
    assert np.abs(places[0] - corners - [60.0, -45.0]).max() < 8
    assert min(np.abs(each - warp_points(corners, H)).max() for each in places) < 15
    assert all(
        np.linalg.norm(one - other, axis=1).max() > 20
        for i, one in enumerate(places)
        for other in places[:i]
    )
    assert other_similarities(spread[:1], spread[:1], SIZE, 5.0, Plausibility()) == []


def test_mirrored_images_are_refused():
    matches, _ = planted(mirrored=True)
    right = WorkingMatches(
        matches.fixed_keypoints,
        matches.moving_keypoints,
        np.ones(150),
        WHOLE,
        WHOLE,
        matches.fixed_keypoints,
        matches.moving_keypoints,
        fixed_descriptors=matches.fixed_descriptors,
        moving_descriptors=matches.moving_descriptors,
    )
    affine = estimate_transform(right.fixed_points, right.moving_points, SIZE)
    assert affine.status == "failed" and "mirror" in affine.reason
    guided, _, _ = fit_matches(right, KeypointMatchSettings(), "affine", Plausibility())
    assert guided.status == "failed" and guided.H_fix_to_mov is None


class PlantedMatcher(Matcher):
    """Finds correct matches in one of the rotated (and mirrored) copies of the moving image."""

    def __init__(self, correct_turns: int, mirrored: bool = False, **settings) -> None:
        self.settings = KeypointMatchSettings(long_side=256, **settings)
        self.correct_turns, self.mirrored = correct_turns, mirrored
        self.turns, self.described_fixed = [], 0

    def describe(self, working, role):
        self.described_fixed += role == "fixed"
        return working

    def match_described(self, fixed, moving):
        linear = moving.frame.H_image_to_working[:2, :2]
        turns = round(np.degrees(np.arctan2(linear[0, 1], linear[1, 1])) / 90) % 4
        self.turns.append(turns)
        good = turns == self.correct_turns and (np.linalg.det(linear) < 0) == self.mirrored
        rng = np.random.default_rng(0)
        points = rng.uniform([30, 30], [200, 200], (120, 2))
        descriptors = torch.nn.functional.normalize(
            torch.from_numpy(rng.normal(size=(120, 32))), dim=-1
        )
        H_seen = (
            np.array([[-1.0, 0, IMAGE.shape[1] - 1], [0, 1, 0], [0, 0, 1]])
            if self.mirrored
            else np.eye(3)
        )
        theirs = warp_points(
            points,
            compose(
                np.linalg.inv(fixed.frame.H_image_to_working),
                H_seen,
                moving.frame.H_image_to_working,
            ),
        )
        if not good:
            theirs = rng.uniform([30, 30], [200, 200], (120, 2))
        return WorkingMatches(
            points,
            theirs,
            np.ones(120),
            fixed,
            moving,
            points,
            theirs,
            fixed_descriptors=descriptors,
            moving_descriptors=descriptors,
        )


IMAGE = disc_image((300, 340), (170, 150), 130)


@pytest.mark.parametrize(
    "turns, expected", [(0, [0]), (1, [0, 1]), (3, [0, 1, 3]), (2, [0, 1, 3, 2])]
)
def test_copies_are_matched_until_the_confidence_is_high(turns, expected):
    matcher = PlantedMatcher(turns, refine=False, smaller_copy=1.0)
    result = register_pair(matcher, IMAGE, IMAGE)
    assert result.status == "ok" and matcher.turns == expected and matcher.described_fixed == 1
    assert np.abs(result.H_fix_to_mov - np.eye(3)).max() < 1e-3, (
        "the rotation of the copy is in its frame"
    )
    assert result.significance > 9 and 0 < result.confidence <= 1


def test_without_turned_copies_a_turned_image_fails():
    matcher = PlantedMatcher(2, try_turns=False)
    result = register_pair(matcher, IMAGE, IMAGE)
    assert result.status == "failed" and set(matcher.turns) == {0} and result.confidence == 0.0
    assert len(matcher.turns) == 3 + 1, (
        "full size and two smaller copies; mirrored at full size only"
    )


def test_an_implausible_refinement_is_not_accepted(monkeypatch):
    monkeypatch.setattr(refinement, "refine_affine", lambda ridges, H: H @ np.diag([1.0, 2.0, 1.0]))
    result = register_pair(PlantedMatcher(0), IMAGE, IMAGE)
    assert result.status == "ok" and np.abs(result.H_fix_to_mov - np.eye(3)).max() < 1e-3


@pytest.mark.parametrize("turns", [0, 3])
def test_a_mirrored_image_fails_with_that_reason(turns):
    result = register_pair(PlantedMatcher(turns, mirrored=True), IMAGE, IMAGE)
    assert result.status == "failed" and result.H_fix_to_mov is None and "mirrored" in result.reason
