"""Losses of samples with an inexact transform, and of samples without junction labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import SMALL_MODEL
from loss_cases import KEY, PEAK, SIGMA_PX, SIZE, features, inputs_of, pair_batch, run_pair, vector
from torch.utils.data import default_collate

from dataset.aligned_pairs import AlignedPairs
from dataset.junctions import gaussian_heatmap
from dataset.samples import discover_samples
from dataset.views import ViewGeometry, ViewKey
from geometry.matrices import affine_about
from geometry.point_sets import PointSet
from geometry.points import warp_points
from loss.candidates import passes_content_test, passes_geometric_test
from loss.descriptor import choose_anchors, infonce_loss, positive_places
from loss.joint_objective import TERMS, JointObjective, ObjectiveSettings
from loss.term_inputs import AnchorShares
from loss.tolerance import Tolerances, linear_scale, moved_to_detections, places_within
from loss.value_map import Observation, PKESettings, ValueMap
from registration.keypoints import find_keypoints, sample_descriptors
from registration.trained_matchers import build_model

NONE = torch.zeros(0, 2)


def shifted(dx: float) -> tuple:
    """Maps of two places; in the moving image they lie ``dx`` px farther right than mapped."""
    places = {"a": (30.0, 30.0), "b": (60.0, 44.0)}
    return features(places), features({name: (x + dx, y) for name, (x, y) in places.items()})


def admitted(*places: tuple[float, float]) -> ValueMap:
    """A value map with admitted places of the pair."""
    memory = ValueMap(PKESettings(admit_value=0.5, learning_rate=0.6))
    memory.apply([Observation(KEY, torch.tensor(places), NONE)])
    return memory


# --- the radius ---


def test_the_disc_has_the_point_first_and_ends_at_the_radius():
    points = torch.tensor([[10.0, 20.0], [3.0, 4.0]])
    nowhere, places = places_within(torch.stack([points] * 2), torch.tensor([0.0, 6.0]))
    assert torch.equal(nowhere, points[:, None].expand(-1, 49, -1))
    assert places.shape == (2, 49, 2) and torch.equal(places[:, 0], points)
    gap = (places - points[:, None]).norm(dim=-1)
    assert gap.max() == 6.0 and [16.0, 20.0] in places[0].tolist()


def test_the_tolerance_is_scaled_to_each_frame():
    H = torch.tensor(affine_about(30.0, 1.5, 0.0, [10, 20], [30, 5], mirror=True)).float()[None]
    assert linear_scale(H).item() == pytest.approx(1.5, rel=1e-5)
    assert linear_scale(2.0 * H).item() == pytest.approx(1.5, rel=1e-5), "of a homogeneous matrix"
    batch = pair_batch(4.0, H_fix_to_mov=H[0]) | {"H_fix_to_own": torch.linalg.inv(H)}
    radii = Tolerances.of(batch)
    assert radii.in_fixed.tolist() == [4.0] and radii.inexact == (0,)
    assert radii.in_moving.tolist() == pytest.approx([6.0])
    assert radii.in_own.tolist() == pytest.approx([4 / 1.5])
    exact = pair_batch(0.0, form="self")
    assert Tolerances.of(exact).inexact == ()


def test_places_are_moved_to_the_nearest_detection_within_the_radius():
    """In each sample to its own detections; the third one has none."""
    places, found = torch.tensor([[10.0, 10], [40, 40]]), torch.tensor([[13.0, 10], [11, 10.0]])
    moved = moved_to_detections(
        PointSet.packed([places] * 3),
        PointSet.packed([found, found, found[:0]]),
        torch.tensor([3.0, 0.0, 3.0]),
    )
    assert [each.tolist() for each in moved.unpacked()] == [
        [[11, 10], [40, 40]],
        places.tolist(),
        places.tolist(),
    ]


# --- L_des ---


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_positive_is_the_most_similar_place_within_the_radius(monkeypatch, scale):
    """The moving image shows the place 3 fixed px away from where the matrix maps it."""
    H = torch.diag(torch.tensor([scale, scale, 1.0]))
    fixed = features({"a": (20.0, 20.0)})
    moving = features({"a": (scale * 23.0, scale * 20.0)}, radius_px=1.5)
    points = torch.tensor([[[20.0, 20.0]]])
    for tolerance, found in ((0.0, False), (1.0, False), (4.0, True)):
        inputs = inputs_of(monkeypatch, fixed, moving, pair_batch(tolerance, H_fix_to_mov=H))
        place = positive_places(inputs, points, vector("a")[None, None])[0, 0]
        similarity = sample_descriptors(moving.descriptors, place[None, None], 1)[0, 0] @ vector(
            "a"
        )
        assert (similarity.item() > 0.99) is found
        offset = (place - scale * points[0, 0]).norm().item()
        assert offset <= scale * tolerance + 1e-4 and not place.requires_grad
        assert tolerance > 0 or offset == 0.0


def test_l_des_is_small_within_the_radius_and_trains_the_chosen_place():
    anchors = {"a": (30.0, 30.0), "b": (60.0, 44.0)}
    shares = AnchorShares(junctions=0.0, detections=0.0)
    exact, tolerant = (
        run_pair(*shifted(5.0), pair_batch(radius, anchors=anchors), anchors=shares).losses["des"]
        for radius in (0.0, 6.0)
    )
    assert tolerant < 0.01 < 0.3 < exact
    fixed, moving = shifted(5.0)
    run_pair(fixed, moving, pair_batch(6.0, anchors=anchors), anchors=shares).losses[
        "des"
    ].backward()
    gradient = moving.descriptors.grad[0].abs().sum(0)
    assert gradient[30, 33:38].sum() > 0, "where the moving image shows the place"
    assert gradient[30, 25:32].sum() == 0, "not at the mapped place"
    assert fixed.descriptors.grad[0].abs().sum(0)[30, 30] > 0


def test_points_whose_discs_meet_are_no_negatives_of_that_sample_only():
    """Two points 8 px apart with equal descriptors: ln 2 as negatives, 0 otherwise."""
    descriptors = vector("a").expand(2, 2, -1)
    points = torch.tensor([[[10.0, 10.0], [18.0, 10.0]]]).repeat(2, 1, 1)
    valid = torch.ones(2, 2, dtype=torch.bool)
    term = infonce_loss(
        descriptors, descriptors, points, valid, ignore_px=torch.tensor([6.0, 10.0])
    )
    assert term.per_sample.tolist() == pytest.approx([np.log(2), 0.0], abs=1e-6)
    anchors = {"a 1": (30.0, 30.0), "a 2": (38.0, 30.0)}
    shares = AnchorShares(junctions=0.0, detections=0.0)
    losses = [
        run_pair(
            features(anchors),
            features(anchors),
            pair_batch(radius, anchors=anchors),
            anchors=shares,
        ).losses["des"]
        for radius in (3.9, 4.1)
    ]
    assert losses[0].item() == pytest.approx(np.log(2), abs=1e-4) and losses[1].item() < 1e-6


@pytest.mark.parametrize("labelled", [True, False])
def test_samples_without_labels_have_anchors_at_the_detections_of_the_moving_image(
    monkeypatch, labelled
):
    shift = torch.eye(3)
    shift[0, 2] = 4.0
    inputs = inputs_of(
        monkeypatch,
        features({"a": (30.0, 30.0)}),
        features({"b": (50.0, 40.0), "outside": (6.0, 20.0)}),
        pair_batch(1.0, labelled, shift, anchors={"vessel": (70.0, 20.0)}),
    )
    inputs.batch["moving_fov"][..., :10] = 0
    inputs.overlap[..., :6] = 0
    points, valid = choose_anchors(inputs)
    wanted = {(30.0, 30.0), (70.0, 20.0)} | (set() if labelled else {(46.0, 40.0)})
    assert {(round(x, 3), round(y, 3)) for x, y in points[valid].tolist()} == wanted


# --- L_geo ---


def dice(prediction: np.ndarray, target: np.ndarray) -> float:
    """Hand-computed soft Dice loss with a smoothing of 1 px."""
    size = (prediction**2).sum() + (target**2).sum()
    return 1.0 - (2.0 * (prediction * target).sum() + 1.0) / (size + 1.0)


def test_a_partner_within_the_radius_counts_at_the_own_detection():
    def spot(x: float) -> np.ndarray:
        return gaussian_heatmap(np.array([[x, 30.0]]), SIZE, SIGMA_PX)

    def geo(tolerance: float) -> torch.Tensor:
        maps = features({"a": (30.0, 30.0)}), features({"a": (33.0, 30.0)})
        return run_pair(*maps, pair_batch(tolerance)).losses["geo"]

    apart = 0.5 * (dice(PEAK * spot(30), spot(33)) + dice(PEAK * spot(33), spot(30)))
    assert geo(0.0).item() == pytest.approx(apart, abs=1e-5)
    assert torch.equal(geo(2.0), geo(0.0)), "the own detection is farther away"
    assert geo(4.0).item() == pytest.approx(dice(PEAK * spot(30), spot(30)), abs=1e-5)


# --- keypoint expansion ---


def test_the_geometric_test_takes_the_largest_probability_within_the_radius():
    detector = torch.zeros(1, 40, 60)
    detector[0, 20, 33] = 0.8
    mapped = torch.tensor([[30.0, 20.0], [26.0, 20.0], [33.0, 20.0], [-5.0, 20.0]])
    both = mapped.expand(2, -1, -1), detector.expand(2, 1, -1, -1), torch.tensor([0.5, 0.5])
    wanted = [False, False, True, False]
    assert passes_geometric_test(*both).tolist() == [wanted] * 2
    tolerant = passes_geometric_test(*both, torch.tensor([0.0, 4.0]))
    assert tolerant.tolist() == [wanted, [True, False, True, False]]


def test_the_content_test_looks_for_the_candidate_within_the_radius():
    """Of the other image's detections one, 5 px away, has the descriptor of the candidate."""
    mapped, others = torch.tensor([[30.0, 20.0]]), torch.tensor([[35.0, 20.0], [60.0, 20.0]])
    known = torch.stack([vector("a"), vector("b")])
    background = vector("background")[None]

    def passes(tolerance_px: float, at_place: torch.Tensor = background) -> bool:
        return bool(
            passes_content_test(
                vector("a")[None, None],
                mapped[None],
                at_place[None],
                PointSet.packed([others]),
                known[None],
                3.0,
                0.9,
                torch.tensor([tolerance_px]),
            )
        )

    assert not passes(0.0) and not passes(4.0) and passes(6.0)
    assert not passes(0.0, vector("a")[None]), "the detection 5 px away is elsewhere"
    assert passes(6.0, vector("a")[None])


def test_a_place_that_both_images_show_within_the_radius_is_one_place():
    exact = run_pair(*shifted(6.0), pair_batch(0.0))
    assert (
        exact.counts["pke_passed"] == 0 and len(exact.observations.unpacked()[0].places.passed) == 0
    )
    tolerant = run_pair(*shifted(6.0), pair_batch(7.0))
    assert tolerant.counts["pke_passed"] == 4, "two places, in both images"
    places = tolerant.observations.unpacked()[0].places.passed
    assert sorted(places.round().tolist()) == [[30, 30], [60, 44]]


def test_admitted_places_are_repeated_within_the_radius():
    memory = admitted((30.0, 30.0))
    counts = [
        run_pair(*shifted(5.0), pair_batch(radius), memory).counts for radius in (0.0, 4.0, 6.0)
    ]
    assert [count["pke_labels"] for count in counts] == [1, 1, 1]
    assert [count["pke_repeated"] for count in counts] == [0, 0, 1]


def test_labels_are_drawn_where_each_image_shows_the_place(monkeypatch):
    memory = admitted((30.0, 30.0))
    for radius, x in ((0.0, 30), (6.0, 35)):
        places = inputs_of(monkeypatch, *shifted(5.0), pair_batch(radius), memory).places
        assert places.in_moving.unpacked()[0].round().tolist() == [[x, 30]]
        assert places.in_fixed.unpacked()[0].round().tolist() == [[30, 30]]


# --- samples without labels ---


def test_l_det_of_a_sample_without_labels_is_an_empty_zero_with_a_graph():
    fixed, moving = shifted(0.0)
    result = run_pair(fixed, moving, pair_batch())
    assert result.counts["empty_det"] == 1 and result.n_valid["det"] == 0
    assert result.losses["det"] == 0 and result.losses["det"].requires_grad
    result.losses["det"].backward()
    assert fixed.detector.grad.abs().max() == 0
    labelled = run_pair(*shifted(0.0), pair_batch(labelled=True))
    assert labelled.counts["empty_det"] == 0 and labelled.losses["det"] > 0.5


@pytest.mark.parametrize("labelled", [True, False])
def test_l_pke_does_not_train_unjudged_detections_as_background(labelled):
    """Of two detections one is admitted. A third place responds weakly and is no detection."""
    places = {"a": (30.0, 30.0), "b": (60.0, 44.0)}
    fixed, moving = features(places), features(places)
    with torch.no_grad():
        fixed.detector[0, 0, 60, 20] = 0.05
    run_pair(fixed, moving, pair_batch(labelled=labelled), admitted((30.0, 30.0))).losses[
        "pke"
    ].backward()
    gradient = fixed.detector.grad[0, 0]
    assert gradient[30, 30] < 0, "a higher response at the admitted place lowers the loss"
    assert gradient[60, 20] > 0, "a response where neither image has a detection raises it"
    if labelled:
        assert gradient[44, 60] > 0, "with seeds, everything else is background"
    else:
        assert (gradient[40:49, 56:65] == 0).all(), "nobody said that this one is wrong"


def test_l_pke_ignores_places_that_the_other_image_detects():
    fixed, moving = features({"a": (30.0, 30.0)}), features({"a": (30.0, 30.0), "b": (60.0, 44.0)})
    with torch.no_grad():
        fixed.detector[0, 0, 44, 60] = 0.05
    run_pair(fixed, moving, pair_batch(), admitted((30.0, 30.0))).losses["pke"].backward()
    assert fixed.detector.grad[0, 0, 44, 60] == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_l_pke_does_not_train_the_border_of_unlabelled_views_as_background(labelled):
    """Detections are not searched in the outer 4 px, so a response there is not judged."""
    places = {"a": (30.0, 30.0)}
    fixed = features(places)
    with torch.no_grad():
        fixed.detector[0, 0, 60, 3] = 0.9
        fixed.detector[0, 0, 20, 4] = 0.05  # the first pixel inside, too weak for a detection
    run_pair(fixed, features(places), pair_batch(labelled=labelled), admitted((30.0, 30.0))).losses[
        "pke"
    ].backward()
    gradient = fixed.detector.grad[0, 0]
    assert bool(gradient[60, 3] > 0) is labelled and bool(gradient[60, 3] == 0) is not labelled
    assert gradient[20, 4] > 0


# --- exact samples beside inexact ones ---


@pytest.mark.parametrize("ignore_px", [0.0, 6.1])
def test_l_des_of_an_exact_sample_is_infonce_at_the_mapped_places(monkeypatch, ignore_px):
    """Bit for bit, with its gradients: descriptors at the places, one radius for all samples."""
    H = torch.tensor(affine_about(10.0, 1.1, 0.0, [40, 30], [42, 33])).float()
    anchors = {"a": (30.0, 30.0), "b": (34.0, 31.0), "c": (60.0, 44.0)}
    maps = features(anchors), features({"a": (31.0, 32.0), "c": (63.0, 50.0)})
    batch = pair_batch(0.0, labelled=True, H_fix_to_mov=H, anchors=anchors)
    run_pair(*maps, batch, ignore_px=ignore_px).losses["des"].backward()
    found = [each.descriptors.grad.clone() for each in maps]
    value = run_pair(*maps, batch, ignore_px=ignore_px).losses["des"]
    points, valid = choose_anchors(inputs_of(monkeypatch, *maps, batch))
    for each in maps:
        each.descriptors.grad = None
    wanted = infonce_loss(
        sample_descriptors(maps[0].descriptors, points, 1),
        sample_descriptors(maps[1].descriptors, warp_points(points, H[None]), 1),
        points,
        valid,
        ignore_px=ignore_px,
    ).mean()
    wanted.backward()
    assert torch.equal(value, wanted) and value > 0
    for each, gradient in zip(maps, found, strict=True):
        assert torch.equal(each.descriptors.grad, gradient) and gradient.abs().max() > 0


def test_without_any_place_the_disc_is_searched_nowhere(monkeypatch):
    inputs = inputs_of(monkeypatch, *shifted(0.0), pair_batch(4.0))
    none = positive_places(inputs, torch.zeros(1, 0, 2), torch.zeros(1, 0, 32))
    assert none.shape == (1, 0, 2)


def test_exact_samples_are_bit_identical_beside_inexact_ones(generated_root):
    samples, _ = discover_samples(generated_root, ["cffa"])
    pairs = AlignedPairs(samples, ViewGeometry(img_size=96, long_side=192), seed=1, n_anchors=64)
    exact = default_collate([pairs[ViewKey(1, index)] for index in range(2)])
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL)
    objective = JointObjective(
        ObjectiveSettings(ignore_px=6.1, weights=dict.fromkeys(TERMS, 1.0)),
        lambda maps, points: sample_descriptors(maps, points, model.descriptor_stride),
        lambda maps, allowed: find_keypoints(maps, 0.01, 4, 64, allowed),
        ("generated", "landmarks"),
    )
    exact["form"] = ["generated", "landmarks"]
    unlabelled = torch.tensor([1.0, 0.0])
    mixed = exact | {
        "tolerance_px": torch.tensor([0.0, 5.0]),
        "has_junctions": unlabelled,
        "fixed_heatmap": exact["fixed_heatmap"] * unlabelled[:, None, None, None],
        "moving_heatmap": exact["moving_heatmap"] * unlabelled[:, None, None, None],
    }
    memory = ValueMap(PKESettings(admit_value=0.5, learning_rate=0.6))
    memory.apply([Observation(key, torch.tensor([[90.0, 90.0]]), NONE) for key in exact["key"]])
    maps = model(exact["fixed_image"], exact["moving_image"])
    before, after = (objective(*maps, batch, memory) for batch in (exact, mixed))
    for name in TERMS:
        figure = f"{name}_generated"
        assert torch.equal(before.losses[figure], after.losses[figure]), name
    assert before.losses["des_landmarks"] != after.losses["des_landmarks"]
    assert after.losses["des_generated"] > 0 and after.losses["geo_generated"] > 0
    after.losses["total"].backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name
