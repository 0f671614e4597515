"""Parts of the keypoint expansion: the tests of candidates, the labels and the value map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dataset.junctions import gaussian_heatmap
from geometry.point_sets import PointSet
from loss.candidates import passes_content_test, passes_geometric_test
from loss.keypoint_places import draw_places
from loss.pke import pke_loss
from loss.value_map import Observation, PKESettings, ValueMap
from utils.checkpoint import read_checkpoint, save_checkpoint

SIZE, KEY = (96, 128), "cffa_1_A"
NONE = torch.zeros(0, 2)

# --- tests of candidates ---


def test_geometric_test_needs_a_response_of_the_other_detector_at_the_mapped_place():
    detector = torch.from_numpy(gaussian_heatmap(np.array([[12.0, 10.0]]), SIZE, 2.0))[None]
    mapped = torch.tensor([[12.0, 10.0], [14.0, 10.0], [12.0, 30.0], [200.0, 10.0]])
    # Height of the spot at a distance of one standard deviation: exp(-1/2) = 0.607.
    passed = passes_geometric_test(
        mapped.expand(2, -1, -1), detector.expand(2, 1, -1, -1), torch.tensor([0.6, 0.62])
    )
    assert passed.tolist() == [[True, True, False, False], [True, False, False, False]]


def passes_content(
    candidate: torch.Tensor,
    mapped: torch.Tensor,
    there: torch.Tensor,
    others: torch.Tensor,
    known: torch.Tensor,
    ratio: float,
) -> bool:
    """The content test of one candidate of one pair."""
    points = PointSet.packed([others])
    batched = (each[None] for each in (candidate, mapped, there))
    return bool(passes_content_test(*batched, points, known[None], 3.0, ratio))


def test_content_test_needs_the_nearest_descriptor_at_the_mapped_place_by_a_ratio():
    detections = torch.tensor([[10.0, 10.0], [50.0, 50.0], [80.0, 10.0]])
    descriptors = F.normalize(
        torch.tensor([[1.0, 0.0, 0.1], [0.0, 1.0, 0.0], [0.6, 0.0, 0.6]]), dim=1
    )
    candidate, mapped = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[11.0, 10.0]])
    similar, other = descriptors[:1], descriptors[1:2]

    def passes(place: torch.Tensor, there: torch.Tensor, ratio: float = 0.9) -> bool:
        return passes_content(candidate, place, there, detections, descriptors, ratio)

    assert passes(mapped, similar) and not passes(mapped, similar, ratio=0.05)
    assert not passes(mapped, other), "another descriptor at the mapped place"
    assert not passes(torch.tensor([[50.0, 50.0]]), similar), "the same descriptor is elsewhere"
    assert not passes_content(candidate, mapped, similar, NONE, torch.zeros(1, 3), 0.9)


def test_content_test_fails_with_a_single_detection():
    """Without a detection elsewhere, even a random descriptor would be the nearest one."""
    here, seen = torch.tensor([[10.0, 10.0]]), torch.tensor([[0.0, 1.0]])
    assert not passes_content(torch.tensor([[1.0, 0.0]]), here, seen, here, seen, 0.9)


def test_the_first_views_of_a_sample_can_have_a_higher_threshold():
    settings = PKESettings(partner_probability=0.4, early_partner_probability=0.8, early_views=2)
    value_map, thresholds = ValueMap(settings), []
    for _ in range(4):
        thresholds.append(value_map.partner_probability(KEY))
        value_map.apply([Observation(KEY, NONE, NONE)])
    assert thresholds == [0.8, 0.8, 0.4, 0.4]
    restored = ValueMap(settings)
    restored.load_state_dict(value_map.state_dict())
    assert restored.partner_probability(KEY) == 0.4
    assert restored.partner_probability("another sample") == 0.8


# --- labels ---


def test_draw_places_adds_spots_to_a_copy_of_the_label():
    label = torch.from_numpy(gaussian_heatmap(np.array([[20.0, 20.0]]), SIZE, 2.0))[
        None, None
    ].repeat(2, 1, 1, 1)
    many = torch.rand(70, 2) * torch.tensor([127.0, 95.0])
    drawn = draw_places(label, PointSet.packed([torch.tensor([[60.0, 40.0]]), many]), 2.0)
    assert (
        drawn[0, 0, 40, 60] == 1
        and drawn[0, 0, 20, 20] == 1
        and (drawn >= label).all()
        and drawn.max() <= 1
    )
    wanted = torch.from_numpy(gaussian_heatmap(many.numpy(), SIZE, 2.0))
    assert (drawn[1, 0] - torch.maximum(wanted, label[1, 0])).abs().max() < 0.02
    assert (
        torch.equal(draw_places(label, PointSet.packed([NONE, NONE]), 2.0), label)
        and label.max() == 1
    )


def test_pke_loss_is_empty_without_places_and_keeps_its_graph():
    detector = torch.rand(2, 1, 8, 8, requires_grad=True)
    term = pke_loss(
        *(detector, torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8)) * 2, torch.tensor([0, 3])
    )
    assert (
        term.valid.tolist() == [False, True] and term.per_sample[0] == 0 and term.per_sample[1] > 0
    )
    term.mean().backward()
    assert detector.grad[0].abs().max() == 0 and detector.grad[1].abs().max() > 0


# --- value map ---


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


def test_the_places_of_the_lowest_value_are_dropped_first():
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


def test_near_places_are_merged():
    memory = ValueMap(PKESettings(merge_px=4.0))
    for x in (50.0, 51.0, 49.5, 50.5):
        memory.apply([Observation(KEY, torch.tensor([[x, 30.0]]), NONE)])
    assert len(memory.places[KEY]) == 1 and abs(float(memory.places[KEY][0, 0]) - 50.2) < 0.8
    # Two detections of one view at one place count as one pass.
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


def test_a_restored_value_map_continues_identically(tmp_path):
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
