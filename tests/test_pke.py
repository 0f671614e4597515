"""Keypoint expansion over several steps: only repeatedly detected places become labels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dataset.junctions import gaussian_heatmap
from geometry.matrices import affine_about, image_centre, translation_matrix
from geometry.points import inside, pixel_grid, warp_points
from loss.joint_objective import JointObjective, ObjectiveSettings
from loss.value_map import PKESettings, ValueMap
from registration.keypoints import find_keypoints, sample_descriptors

SIZE, KEY = (96, 128), "cffa_1_A"
SEEDS = {"seed a": (30.0, 30.0), "seed b": (96.0, 34.0)}


class World:
    """Points of one retina in its own frame, shown in rotated, scaled and mirrored views.

    Detector maps have a spot on each shown place; descriptor maps (one cell per pixel) have the
    place's own vector around it.
    """

    def __init__(self, settings: PKESettings | None = None) -> None:
        self.settings = settings or PKESettings()
        self.value_map = ValueMap(self.settings)
        self.objective = JointObjective(
            ObjectiveSettings(pke=self.settings),
            lambda maps, points: sample_descriptors(maps, points, 1),
            lambda maps, allowed: find_keypoints(maps, 0.1, 4, 256, allowed),
        )
        self.vectors: dict[str, torch.Tensor] = {}

    def vector(self, name: str) -> torch.Tensor:
        if name not in self.vectors:
            generator = torch.Generator().manual_seed(len(self.vectors))
            self.vectors[name] = F.normalize(torch.randn(32, generator=generator), dim=0)
        return self.vectors[name]

    def features(self, places: dict[str, tuple[np.ndarray, str]]) -> SimpleNamespace:
        """``places``: name to (pixel, name of the vector shown there)."""
        detector, descriptors = (
            torch.zeros(1, 1, *SIZE),
            self.vector("background")[None, :, None, None].repeat(1, 1, *SIZE),
        )
        grid = pixel_grid(SIZE)
        for point, vector_name in places.values():
            detector[0, 0] = torch.maximum(
                detector[0, 0], torch.from_numpy(gaussian_heatmap(point[None], SIZE, 1.5))
            )
            near = (grid - torch.tensor(point).float()).norm(dim=1).reshape(SIZE) < 5
            descriptors[0, :, near] = self.vector(vector_name)[:, None]
        return SimpleNamespace(detector=0.9 * detector, descriptors=descriptors)

    def view(
        self,
        fixed: dict[str, tuple],
        moving: dict[str, tuple],
        H_fix_to_own: np.ndarray,
        H_fix_to_mov: np.ndarray,
    ):
        """One step with an update of the value map; returns the result of the objective.

        Args:
            fixed, moving: shown places, own frame; an entry may name another place, whose vector
                is then shown there.
            H_fix_to_own, H_fix_to_mov: (3, 3), pixels.
        """
        H_own_to_fix = np.linalg.inv(H_fix_to_own)
        frames = (H_own_to_fix, H_fix_to_mov @ H_own_to_fix)
        shown = [
            {
                name: (
                    warp_points(np.array([entry[:2]], float), H)[0],
                    entry[2] if len(entry) > 2 else name,
                )
                for name, entry in places.items()
            }
            for places, H in zip((fixed, moving), frames, strict=True)
        ]
        seeds = [
            np.array([place[name][0] for name in place if name in SEEDS]).reshape(-1, 2)
            for place in shown
        ]
        labels = [
            torch.from_numpy(gaussian_heatmap(points, SIZE, 2.0))[None, None] for points in seeds
        ]
        anchors = torch.zeros(1, 4, 2)
        anchors[0, : len(seeds[0])] = torch.from_numpy(seeds[0])
        batch = {
            "key": [KEY],
            "form": ["generated"],
            "tolerance_px": torch.zeros(1),
            "has_junctions": torch.ones(1),
            "H_fix_to_own": torch.tensor(H_fix_to_own).float()[None],
            "H_fix_to_mov": torch.tensor(H_fix_to_mov).float()[None],
            "fixed_heatmap": labels[0],
            "moving_heatmap": labels[1],
            "fixed_fov": torch.ones(1, 1, *SIZE),
            "moving_fov": torch.ones(1, 1, *SIZE),
            "anchors": anchors,
            "anchor_valid": torch.arange(4)[None] < len(seeds[0]),
        }
        result = self.objective(*(self.features(places) for places in shown), batch, self.value_map)
        self.value_map.apply([each.places for each in result.observations.unpacked()])
        return result

    def is_near_one_of(self, place: tuple[float, float], places: torch.Tensor) -> bool:
        return bool(len(places)) and float((places - torch.tensor(place)).norm(dim=1).min()) < 2.0


def random_view(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``H_fix_to_own`` (scaled, shifted, mirrored or not) and ``H_fix_to_mov`` (rotated)."""
    centre = image_centre(SIZE)
    to_own = affine_about(
        0,
        1 / rng.uniform(0.9, 1.15),
        0,
        centre,
        centre + rng.uniform(-4, 4, 2),
        bool(rng.random() < 0.5),
    )
    return to_own, affine_about(
        rng.uniform(-25, 25), rng.uniform(0.9, 1.05), 0, centre, centre + rng.uniform(-3, 3, 2)
    )


def test_a_repeatable_place_is_admitted_and_unrepeatable_ones_are_not():
    """One place is always detected, one never in the moving image (geometric test), one has the
    descriptor of another place there (content test), and one is elsewhere in every view."""
    world, rng = World(), np.random.default_rng(0)
    good, unseen, impostor = (64.0, 50.0), (40.0, 64.0), (88.0, 60.0)
    for _ in range(8):
        wandering = tuple(rng.uniform([50, 20], [80, 32]))
        result = world.view(
            {**SEEDS, "good": good, "unseen": unseen, "impostor": impostor, "wandering": wandering},
            {**SEEDS, "good": good, "impostor": (*impostor, "stranger"), "wandering": wandering},
            *random_view(rng),
        )
        # Both images: all detections except the seeds; "unseen" is a candidate of one only.
        assert result.counts["pke_candidates"] == 7
        assert result.counts["pke_geometric"] == 6 and result.counts["pke_passed"] == 4
    admitted = world.value_map.admitted(KEY)
    assert world.is_near_one_of(good, admitted) and len(admitted) == 1
    remembered = world.value_map.remembered(KEY)
    assert not world.is_near_one_of(unseen, remembered) and not world.is_near_one_of(
        impostor, remembered
    )
    assert result.counts["pke_labels"] == 1 and result.losses["pke"] > 0, "the place is a label"


def test_seeds_are_never_candidates():
    world = World()
    for _ in range(3):
        result = world.view(dict(SEEDS), dict(SEEDS), np.eye(3), np.eye(3))
    assert result.counts["pke_candidates"] == 0 and world.value_map.statistics()["places"] == 0
    assert result.losses["pke"] == 0 and result.counts["empty_pke"] == 1


def test_nothing_is_admitted_after_one_pass_and_it_is_after_two():
    world, place = World(), {"good": (64.0, 50.0)}
    labels = [
        world.view(SEEDS | place, SEEDS | place, np.eye(3), np.eye(3)).counts["pke_labels"]
        for _ in range(3)
    ]
    assert labels == [0, 0, 1]


def test_content_is_compared_with_all_detections_seeds_included():
    """A candidate with the same descriptor as a seed of the moving image is ambiguous, although
    the geometric test is passed."""
    world, good = World(), (64.0, 50.0)
    twin = world.view(
        SEEDS | {"good": good},
        {"seed a": SEEDS["seed a"], "seed b": (*SEEDS["seed b"], "good"), "good": good},
        np.eye(3),
        np.eye(3),
    )
    assert twin.counts["pke_geometric"] == 2, "the candidate of either image"
    assert twin.counts["pke_passed"] == 1, (
        "the moving one: no other place of the fixed image has it"
    )
    other = world.view(SEEDS | {"good": good}, SEEDS | {"good": good}, np.eye(3), np.eye(3))
    assert other.counts["pke_passed"] == 2 and len(world.value_map.remembered(KEY)) == 1


def test_passes_of_different_views_update_one_place_of_the_own_frame():
    world, place, rng = World(), (64.0, 50.0), np.random.default_rng(3)
    for _ in range(6):
        world.view(SEEDS | {"good": place}, SEEDS | {"good": place}, *random_view(rng))
    remembered = world.value_map.remembered(KEY)
    assert len(remembered) == 1 and (remembered[0] - torch.tensor(place)).norm() < 0.5


def test_a_place_that_is_no_longer_detected_is_no_longer_a_label_and_is_removed():
    world, place, rng = World(), (64.0, 50.0), np.random.default_rng(4)
    for _ in range(4):
        world.view(SEEDS | {"good": place}, SEEDS | {"good": place}, *random_view(rng))
    assert len(world.value_map.admitted(KEY)) == 1
    values = []
    for _ in range(30):
        world.view(dict(SEEDS), dict(SEEDS), *random_view(rng))
        values.append(
            float(world.value_map.values[KEY].max()) if KEY in world.value_map.values else 0.0
        )
    assert values[0] > values[3] > values[6] and values[-1] == 0.0
    assert world.value_map.statistics() == {
        "samples": 0,
        "places": 0,
        "admitted": 0,
        "mean_value": 0.0,
    }


def test_places_out_of_view_keep_their_value():
    world, place = World(), (20.0, 80.0)
    for _ in range(3):
        world.view(SEEDS | {"good": place}, SEEDS | {"good": place}, np.eye(3), np.eye(3))
    before = world.value_map.values[KEY].clone()
    away = affine_about(0, 0.5, 0, image_centre(SIZE), [90.0, 30.0])
    result = world.view({"seed b": SEEDS["seed b"]}, {"seed b": SEEDS["seed b"]}, away, np.eye(3))
    assert result.counts["pke_labels"] == 0 and torch.equal(world.value_map.values[KEY], before)


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_places_at_the_border_of_a_view_are_not_counted_as_missed(side):
    """Candidates are not searched near the border, so a missing one there is not a miss."""
    world, place = World(), (64.0, 50.0)
    for _ in range(3):
        world.view(SEEDS | {"good": place}, SEEDS | {"good": place}, np.eye(3), np.eye(3))
    before = float(world.value_map.values[KEY].max())
    # The place lies 2 px from the left border of the fixed, or of the moving view.
    shift = translation_matrix([62.0, 0.0])
    views = (shift, np.eye(3)) if side == "fixed" else (np.eye(3), np.linalg.inv(shift))
    world.view({"good": place}, {"good": place}, *views)
    assert float(world.value_map.values[KEY].max()) >= before


def test_admitted_places_are_labels_in_both_images():
    """L_pke falls with a detection in either image, and L_det does not penalise it."""
    world, place = World(), (52.0, 60.0)
    centre = image_centre(SIZE)
    to_own = affine_about(0, 1 / 1.1, 0, centre, centre + [3.0, -2.0], mirror=True)
    H = affine_about(20, 0.95, 0, centre, centre)
    for _ in range(3):
        world.view(SEEDS | {"good": place}, SEEDS | {"good": place}, to_own, H)
    shown = world.view(SEEDS | {"good": place}, SEEDS | {"good": place}, to_own, H).losses
    no_moving = world.view(SEEDS | {"good": place}, dict(SEEDS), to_own, H).losses
    nowhere = world.view(dict(SEEDS), dict(SEEDS), to_own, H).losses
    assert shown["pke"] < no_moving["pke"] < nowhere["pke"]
    assert shown["det"].item() == pytest.approx(nowhere["det"].item(), abs=0.02)


def test_a_place_outside_of_the_overlap_is_a_label_where_it_is_visible():
    """A keypoint of the fixed image stays a label where the moving image does not reach it."""
    world, place = World(), (52.0, 60.0)
    for _ in range(3):
        world.view(SEEDS | {"good": place}, SEEDS | {"good": place}, np.eye(3), np.eye(3))
    away = translation_matrix((-90.0, 0.0))
    assert not inside(warp_points(np.array([place]), away), SIZE).any()
    detected = world.view(SEEDS | {"good": place}, {}, np.eye(3), away)
    undetected = world.view(dict(SEEDS), {}, np.eye(3), away)
    assert detected.counts["pke_labels"] == 0, "the place is not visible in both images"
    assert detected.losses["pke"] < undetected.losses["pke"]
    assert detected.losses["det"].item() == pytest.approx(undetected.losses["det"].item(), abs=0.02)


def test_the_log_counts_the_labels_that_a_fresh_view_repeats():
    """An admitted place that only one image still shows is a label, but not a true keypoint."""
    world, place = World(), (64.0, 50.0)
    for _ in range(3):
        result = world.view(SEEDS | {"good": place}, SEEDS | {"good": place}, np.eye(3), np.eye(3))
    assert result.counts["pke_labels"] == 1 and result.counts["pke_repeated"] == 1
    half = world.view(SEEDS | {"good": place}, dict(SEEDS), np.eye(3), np.eye(3))
    assert half.counts["pke_labels"] == 1 and half.counts["pke_repeated"] == 0


def test_a_candidate_of_the_moving_image_is_found_at_its_place_of_the_own_frame():
    """Its descriptor is ambiguous in the fixed image alone; views are scaled and rotated."""
    world, place, rng = World(), (64.0, 50.0), np.random.default_rng(5)
    for _ in range(4):
        world.view(
            SEEDS | {"good": place},
            {"seed a": (*SEEDS["seed a"], "good"), "seed b": SEEDS["seed b"], "good": place},
            *random_view(rng),
        )
    admitted = world.value_map.admitted(KEY)
    assert len(admitted) == 1 and world.is_near_one_of(place, admitted)
