"""Keypoint expansion: what keeps coming back becomes a label, nothing else does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dataset.junctions import gaussian_heatmap
from geometry.matrices import affine_about, image_centre, translation_matrix
from geometry.points import inside, pixel_grid, warp_points
from loss.candidates import passes_content_test, passes_geometric_test
from loss.joint_objective import JointObjective, ObjectiveSettings
from loss.pke import pke_loss
from loss.places import draw_places
from loss.value_map import Observation, PKESettings, ValueMap
from registration.keypoints import extract_keypoints, sample_descriptors
from utils.checkpoint import read_checkpoint, save_checkpoint

SIZE, KEY = (96, 128), "cffa_1_A"
SEEDS = {"seed a": (30.0, 30.0), "seed b": (96.0, 34.0)}
NONE = torch.zeros(0, 2)


class World:
    """Points of one retina in its own frame, shown in views that are turned, zoomed and mirrored.

    Detector maps have a spot on each shown place; descriptor maps (one cell a pixel) carry the place's own vector around it.
    """

    def __init__(self, settings: PKESettings | None = None) -> None:
        self.settings = settings or PKESettings()
        self.value_map = ValueMap(self.settings)
        self.objective = JointObjective(
            ObjectiveSettings(pke=self.settings),
            lambda maps, points: sample_descriptors(maps, points, 1),
            lambda maps, allowed: extract_keypoints(maps, 0.1, 4, 256, allowed),
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
        for point, look in places.values():
            detector[0, 0] = torch.maximum(
                detector[0, 0], torch.from_numpy(gaussian_heatmap(point[None], SIZE, 1.5))
            )
            near = (grid - torch.tensor(point).float()).norm(dim=1).reshape(SIZE) < 5
            descriptors[0, :, near] = self.vector(look)[:, None]
        return SimpleNamespace(detector=0.9 * detector, descriptors=descriptors)

    def view(
        self,
        fixed: dict[str, tuple],
        moving: dict[str, tuple],
        H_fix_to_own: np.ndarray,
        H_fix_to_mov: np.ndarray,
    ):
        """One step: shows places (own frame; moving entries may name another look) and learns. Returns the result."""
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
        self.value_map.apply(result.observations)
        return result

    def is_remembered(self, place: tuple[float, float], places: torch.Tensor) -> bool:
        return bool(len(places)) and float((places - torch.tensor(place)).norm(dim=1).min()) < 2.0


def random_view(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``H_fix_to_own`` (zoomed, shifted, perhaps mirrored) and ``H_fix_to_mov`` (turned)."""
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
    """Planted together: one place that always returns, one never seen in the moving image (geometric test), one that looks
    like another place there (content test), and one that shows up somewhere else every time."""
    world, rng = World(), np.random.default_rng(0)
    good, unseen, impostor = (64.0, 50.0), (40.0, 64.0), (88.0, 60.0)
    for _ in range(8):
        wandering = tuple(rng.uniform([50, 20], [80, 32]))
        result = world.view(
            {**SEEDS, "good": good, "unseen": unseen, "impostor": impostor, "wandering": wandering},
            {**SEEDS, "good": good, "impostor": (*impostor, "stranger"), "wandering": wandering},
            *random_view(rng),
        )
        assert result.counts["pke_candidates"] == 4, "every detection but the seeds"
        assert result.counts["pke_geometric"] == 3 and result.counts["pke_passed"] == 2
    admitted = world.value_map.admitted(KEY)
    assert world.is_remembered(good, admitted) and len(admitted) == 1
    remembered = world.value_map.remembered(KEY)
    assert not world.is_remembered(unseen, remembered) and not world.is_remembered(
        impostor, remembered
    )
    assert result.counts["pke_labels"] == 1 and result.losses["pke"] > 0, "it is a label now"


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
    """A candidate whose twin is a seed of the moving image is ambiguous, though the geometry is right."""
    world, good = World(), (64.0, 50.0)
    twin = world.view(
        SEEDS | {"good": good},
        {"seed a": SEEDS["seed a"], "seed b": (*SEEDS["seed b"], "good"), "good": good},
        np.eye(3),
        np.eye(3),
    )
    assert twin.counts["pke_geometric"] == 1 and twin.counts["pke_passed"] == 0
    other = world.view(SEEDS | {"good": good}, SEEDS | {"good": good}, np.eye(3), np.eye(3))
    assert other.counts["pke_passed"] == 1


def test_a_pass_lands_on_one_place_of_the_own_frame_whatever_the_view():
    world, place, rng = World(), (64.0, 50.0), np.random.default_rng(3)
    for _ in range(6):
        world.view(SEEDS | {"good": place}, SEEDS | {"good": place}, *random_view(rng))
    remembered = world.value_map.remembered(KEY)
    assert len(remembered) == 1 and (remembered[0] - torch.tensor(place)).norm() < 0.5


def test_a_place_that_stops_returning_loses_its_standing_and_is_forgotten():
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
    """Detections nearer than a few pixels to the border are not taken, so their absence there says nothing."""
    world, place = World(), (64.0, 50.0)
    for _ in range(3):
        world.view(SEEDS | {"good": place}, SEEDS | {"good": place}, np.eye(3), np.eye(3))
    before = float(world.value_map.values[KEY].max())
    # The place lies 2 px from the left border of the fixed, or of the moving view.
    shift = translation_matrix([62.0, 0.0])
    views = (shift, np.eye(3)) if side == "fixed" else (np.eye(3), np.linalg.inv(shift))
    world.view({"good": place}, {"good": place}, *views)
    assert float(world.value_map.values[KEY].max()) >= before


def test_admitted_places_are_taught_in_both_images():
    """The expanded label asks for the place in the fixed and in the moving image, and L_det no longer forbids it."""
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


# --- the tests themselves ---------------------------------------------------------------------------------------------


def test_geometric_test_needs_a_detection_nearby():
    mapped, detections = (
        torch.tensor([[10.0, 10.0], [30.0, 30.0]]),
        torch.tensor([[12.0, 10.0], [30.0, 34.0]]),
    )
    assert passes_geometric_test(mapped, detections, 3.0).tolist() == [True, False]
    assert passes_geometric_test(mapped, NONE, 3.0).tolist() == [False, False]
    assert passes_geometric_test(NONE, detections, 3.0).shape == (0,)


def test_content_test_needs_the_nearest_descriptor_at_the_mapped_place_by_a_ratio():
    detections = torch.tensor([[10.0, 10.0], [50.0, 50.0], [80.0, 10.0]])
    descriptors = F.normalize(
        torch.tensor([[1.0, 0.0, 0.1], [0.0, 1.0, 0.0], [0.6, 0.0, 0.6]]), dim=1
    )
    candidate, mapped = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[11.0, 10.0]])

    def passes(place: torch.Tensor, among: int = 3, ratio: float = 0.9) -> bool:
        return bool(
            passes_content_test(
                candidate, place, detections[:among], descriptors[:among], 3.0, ratio
            )[0]
        )

    assert passes(mapped) and not passes(mapped, ratio=0.05)
    assert not passes(torch.tensor([[50.0, 50.0]])), "the right look is elsewhere"
    assert not passes(torch.tensor([[30.0, 30.0]])), "nothing was detected at the mapped place"
    assert not bool(passes_content_test(candidate, mapped, NONE, torch.zeros(0, 3), 3.0, 0.9)[0])
    assert passes_content_test(
        torch.zeros(0, 3), NONE, detections, descriptors, 3.0, 0.9
    ).shape == (0,)


def test_draw_places_adds_spots_and_leaves_the_label_alone():
    label = torch.from_numpy(gaussian_heatmap(np.array([[20.0, 20.0]]), SIZE, 2.0))[
        None, None
    ].repeat(2, 1, 1, 1)
    many = torch.rand(70, 2) * torch.tensor([127.0, 95.0])
    drawn = draw_places(label, [torch.tensor([[60.0, 40.0]]), many], 2.0)
    assert (
        drawn[0, 0, 40, 60] == 1
        and drawn[0, 0, 20, 20] == 1
        and (drawn >= label).all()
        and drawn.max() <= 1
    )
    wanted = torch.from_numpy(gaussian_heatmap(many.numpy(), SIZE, 2.0))
    assert (drawn[1, 0] - torch.maximum(wanted, label[1, 0])).abs().max() < 0.02
    assert torch.equal(draw_places(label, [NONE, NONE], 2.0), label) and label.max() == 1


def test_loss_is_empty_without_places_and_keeps_its_graph():
    detector = torch.rand(2, 1, 8, 8, requires_grad=True)
    term = pke_loss(
        *(detector, torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8)) * 2, torch.tensor([0, 3])
    )
    assert (
        term.valid.tolist() == [False, True] and term.per_sample[0] == 0 and term.per_sample[1] > 0
    )
    term.mean().backward()
    assert detector.grad[0].abs().max() == 0 and detector.grad[1].abs().max() > 0


# --- the value map ----------------------------------------------------------------------------------------------------


def test_values_stay_in_range_over_a_thousand_updates():
    memory, rng = ValueMap(PKESettings(max_places=40)), np.random.default_rng(0)
    fixed = torch.tensor([[5.0, 5.0]])
    for _ in range(1000):
        passed = torch.from_numpy(rng.uniform(20, 200, (6, 2))).float()
        missed = memory.remembered(KEY)[rng.random(len(memory.remembered(KEY))) < 0.3]
        memory.apply([Observation(KEY, torch.cat([fixed, passed]), missed)])
        values = memory.values[KEY]
        assert len(values) == len(memory.places[KEY]) <= 40
        assert 0 < values.min() and values.max() <= 1 and torch.isfinite(memory.places[KEY]).all()
    assert memory.values[KEY].max() > 0.99 and torch.allclose(
        memory.places[KEY][0], fixed[0], atol=1.0
    )


def test_the_least_valuable_places_go_first():
    memory = ValueMap(PKESettings(max_places=3))
    old = torch.tensor([[10.0, 10.0], [40.0, 10.0]])
    for _ in range(3):
        memory.apply([Observation(KEY, old, NONE)])
    memory.apply(
        [
            Observation(
                KEY, torch.tensor([[70.0, 10.0], [10.0, 40.0], [40.0, 40.0], [70.0, 40.0]]), NONE
            )
        ]
    )
    assert len(memory.places[KEY]) == 3
    assert torch.cdist(old, memory.places[KEY]).amin(1).max() < 0.1


def test_near_places_are_one():
    memory = ValueMap(PKESettings(merge_px=4.0))
    for x in (50.0, 51.0, 49.5, 50.5):
        memory.apply([Observation(KEY, torch.tensor([[x, 30.0]]), NONE)])
    assert len(memory.places[KEY]) == 1 and abs(float(memory.places[KEY][0, 0]) - 50.2) < 0.8
    # Two detections of one view at one place are one pass, not two.
    twice = ValueMap()
    for _ in range(2):
        twice.apply([Observation(KEY, torch.tensor([[50.0, 30.0], [50.5, 30.0]]), NONE)])
    assert float(twice.values[KEY].max()) == pytest.approx(0.3 + 0.3 * 0.7)


def test_samples_do_not_share_places():
    memory = ValueMap()
    for _ in range(2):
        memory.apply(
            [Observation("a", torch.tensor([[5.0, 5.0]]), NONE), Observation("b", NONE, NONE)]
        )
    assert (
        len(memory.admitted("a")) == 1
        and len(memory.admitted("b")) == 0
        and len(memory.admitted("c")) == 0
    )
    assert memory.statistics()["samples"] == 1


def test_value_map_survives_a_checkpoint_and_goes_on_alike(tmp_path):
    rng = np.random.default_rng(1)
    observations = [
        Observation(f"key{i % 2}", torch.from_numpy(rng.uniform(0, 60, (5, 2))).float(), NONE)
        for i in range(12)
    ]
    memory, restored = ValueMap(), ValueMap()
    memory.apply(observations[:8])
    save_checkpoint(tmp_path / "latest.pth", {"extra": {"value_map": memory.state_dict()}})
    restored.load_state_dict(read_checkpoint(tmp_path / "latest.pth")["extra"]["value_map"])
    for part in (memory, restored):
        part.apply(observations[8:])
    for key in ("key0", "key1"):
        assert torch.equal(memory.places[key], restored.places[key]) and torch.equal(
            memory.values[key], restored.values[key]
        )
    assert memory.statistics() == restored.statistics()


def test_a_single_detection_proves_nothing():
    """With nothing elsewhere to be nearer to, even a random descriptor would be the nearest one."""
    here = torch.tensor([[10.0, 10.0]])
    assert not bool(
        passes_content_test(
            torch.tensor([[1.0, 0.0]]), here, here, torch.tensor([[0.0, 1.0]]), 3.0, 0.9
        )[0]
    )


def test_a_place_outside_of_the_overlap_is_still_taught_where_it_is_seen():
    """A keypoint of the fixed image stays one when the moving image happens to be cut off there."""
    world, place = World(), (52.0, 60.0)
    for _ in range(3):
        world.view(SEEDS | {"good": place}, SEEDS | {"good": place}, np.eye(3), np.eye(3))
    away = translation_matrix((-90.0, 0.0))
    assert not inside(warp_points(np.array([place]), away), SIZE).any()
    detected = world.view(SEEDS | {"good": place}, {}, np.eye(3), away)
    silent = world.view(dict(SEEDS), {}, np.eye(3), away)
    assert detected.counts["pke_labels"] == 0, "not a place that both images show"
    assert detected.losses["pke"] < silent.losses["pke"]
    assert detected.losses["det"].item() == pytest.approx(silent.losses["det"].item(), abs=0.02)
