"""The loss terms: known answers, gradients, empty samples, and all of them together on the real network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import SMALL_MODEL
from torch.nn import functional as F
from torch.utils.data import default_collate

from dataset.generated_pairs import GeneratedPairs, ViewKey
from dataset.junctions import gaussian_heatmap
from dataset.samples import discover_samples
from dataset.views import ViewGeometry
from geometry.matrices import affine_about, image_centre, translation_matrix
from geometry.points import warp_points
from geometry.rasters import valid_overlap
from loss.common import average, dice_loss
from loss.descriptor import DESCRIPTOR_OBJECTIVES, infonce_loss, triplet_loss
from loss.detector import detector_loss
from loss.geometric import geometric_loss
from loss.joint_objective import JointObjective, ObjectiveSettings
from loss.value_map import Observation, PKESettings, ValueMap
from model.super_retina_multimodal import ModelSettings
from registration.keypoints import extract_keypoints, sample_descriptors
from registration.trained_matchers import build_model
from utils.config import to_plain
from utils.errors import InputError


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


# --- Dice -------------------------------------------------------------------------------------------------------------


def test_dice_known_values():
    full, nothing, half = ones(1, 1, 10, 10), torch.zeros(1, 1, 10, 10), torch.zeros(1, 1, 10, 10)
    half[..., :5] = 1
    assert dice_loss(full, full, full).mean().item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(nothing, nothing, full).mean().item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(full, nothing, full).mean().item() == pytest.approx(1 - 1 / 101)
    # 2 * 50 common pixels of 100 + 50, smoothed by 1.
    assert dice_loss(full, half, full).mean().item() == pytest.approx(1 - 101 / 151)
    assert dice_loss(half, full, half).mean().item() == pytest.approx(0, abs=1e-6), (
        "outside of valid nothing counts"
    )


def test_dice_is_taken_per_sample_and_counts_empty_ones():
    prediction = torch.rand(3, 1, 8, 12, requires_grad=True)
    target, valid = torch.rand(3, 1, 8, 12), ones(3, 1, 8, 12)
    valid[1] = 0
    term = dice_loss(prediction, target, valid)
    assert term.valid.tolist() == [True, False, True] and term.n_empty() == 1
    assert term.per_sample[1].item() == 0
    assert term.mean().item() == pytest.approx((term.per_sample[0] + term.per_sample[2]).item() / 3)
    alone = dice_loss(prediction[2:], target[2:], valid[2:])
    assert alone.per_sample[0].item() == pytest.approx(term.per_sample[2].item())


def test_dice_gradients_are_finite_everywhere():
    for value in (0.0, 0.5, 1.0):
        for valid in (ones(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)):
            prediction = torch.full((1, 1, 6, 6), value, requires_grad=True)
            target = torch.zeros(1, 1, 6, 6, requires_grad=True)
            dice_loss(prediction, target, valid).mean().backward()
            assert torch.isfinite(prediction.grad).all() and torch.isfinite(target.grad).all()
    torch.autograd.gradcheck(
        lambda p: dice_loss(p, torch.full_like(p, 0.3), torch.ones_like(p)).mean(),
        torch.rand(2, 1, 4, 5, dtype=torch.float64, requires_grad=True),
    )


def test_average_of_two_terms():
    first = dice_loss(ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), ones(2, 1, 4, 4))
    second = dice_loss(
        ones(2, 1, 4, 4), ones(2, 1, 4, 4), torch.cat([ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)])
    )
    both = average(first, second)
    assert torch.allclose(both.per_sample, 0.5 * first.per_sample, atol=1e-6) and both.valid.all()


def test_detector_loss_sees_both_images():
    heatmap = torch.from_numpy(gaussian_heatmap(np.array([[10.0, 8.0]]), (16, 24), 2.0))[None, None]
    blank, valid = torch.zeros_like(heatmap), torch.ones_like(heatmap)
    right = detector_loss(heatmap, heatmap, valid, heatmap, heatmap, valid).mean()
    fixed_wrong = detector_loss(blank, heatmap, valid, heatmap, heatmap, valid).mean()
    moving_wrong = detector_loss(heatmap, heatmap, valid, blank, heatmap, valid).mean()
    assert right < 1e-6 and fixed_wrong == moving_wrong and fixed_wrong > 0.4


# --- L_geo ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def detectors():
    """Detector maps of one constellation in a fixed (80 x 112) and a moving (96 x 88) frame, and the matrix."""
    points = np.array([[30.0, 30.0], [70.0, 20.0], [60.0, 55.0], [90.0, 50.0]])
    H = affine_about(35, 0.9, 0.0, image_centre((80, 112)), image_centre((96, 88)))
    fixed = torch.from_numpy(gaussian_heatmap(points, (80, 112), 3.0))[None, None]
    moving = torch.from_numpy(gaussian_heatmap(warp_points(points, H), (96, 88), 3.0 * 0.9))[
        None, None
    ]
    return fixed, moving, torch.tensor(H).float()[None]


def test_geometric_loss_knows_the_right_matrix(detectors):
    fixed, moving, H = detectors
    overlap = valid_overlap(H, torch.ones_like(fixed), torch.ones_like(moving))
    assert geometric_loss(fixed, moving, H, overlap).mean() < 0.03
    wrong = torch.tensor(translation_matrix([8, 0])).float()[None] @ H
    assert geometric_loss(fixed, moving, wrong, overlap).mean() > 0.5
    assert geometric_loss(fixed, moving, torch.linalg.inv(H), overlap).mean() > 0.5


def test_geometric_loss_ignores_what_lies_outside_of_the_overlap(detectors):
    fixed, moving, H = detectors
    overlap = valid_overlap(H, torch.ones_like(fixed), torch.ones_like(moving))
    overlap[..., 80:] = 0
    lonely = fixed.clone().requires_grad_()
    moving = moving.clone().requires_grad_()
    before = geometric_loss(lonely, moving, H, overlap).mean()
    before.backward()
    assert lonely.grad[..., 80:].abs().max() == 0 and lonely.grad[..., :80].abs().max() > 0
    assert moving.grad.abs().max() > 0, "both detectors learn"
    changed = fixed.clone()
    changed[..., 84:] = 0.7
    assert geometric_loss(changed, moving, H, overlap).mean().item() == pytest.approx(
        before.item(), abs=1e-6
    )
    empty = geometric_loss(lonely, moving, H, torch.zeros_like(overlap))
    assert empty.n_empty() == 1 and empty.mean() == 0 and empty.mean().requires_grad


# --- descriptors ------------------------------------------------------------------------------------------------------


def descriptor_case(n_samples: int = 2, n_points: int = 24, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    points = torch.stack(
        [
            torch.stack(
                torch.meshgrid(torch.arange(6.0), torch.arange(4.0), indexing="ij"), -1
            ).reshape(-1, 2)[torch.randperm(24, generator=generator)][:n_points]
            * 20
            for _ in range(n_samples)
        ]
    )
    descriptors = F.normalize(torch.randn(n_samples, n_points, 64, generator=generator), dim=-1)
    return descriptors, points, torch.ones(n_samples, n_points, dtype=torch.bool)


@pytest.mark.parametrize("objective", DESCRIPTOR_OBJECTIVES.values(), ids=DESCRIPTOR_OBJECTIVES)
def test_right_descriptors_cost_less_than_wrong_ones(objective):
    descriptors, points, valid = descriptor_case()
    right = objective(descriptors, descriptors, points, valid)
    shuffled = objective(descriptors, descriptors.roll(1, 1), points, valid)
    collapsed = objective(*(F.normalize(torch.ones_like(descriptors), dim=-1),) * 2, points, valid)
    assert right.mean() < 0.02 and right.valid.all()
    assert shuffled.mean() > right.mean() + 0.5 and collapsed.mean() > right.mean() + 0.5


def test_known_values():
    """Two points with orthogonal descriptors, and two with equal ones."""
    points, valid = torch.tensor([[[0.0, 0.0], [50.0, 0.0]]]), torch.ones(1, 2, dtype=torch.bool)
    orthogonal, equal = torch.eye(2)[None], torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert infonce_loss(equal, equal, points, valid).mean().item() == pytest.approx(
        np.log(2), abs=1e-5
    )
    wanted = np.log(1 + np.exp(-1 / 0.5))
    assert infonce_loss(
        orthogonal, orthogonal, points, valid, temperature=0.5
    ).mean().item() == pytest.approx(wanted, abs=1e-5)
    assert triplet_loss(equal, equal, points, valid, margin=0.8).mean().item() == pytest.approx(
        0.8, abs=2e-3
    )
    assert triplet_loss(
        orthogonal, orthogonal, points, valid, margin=1.6
    ).mean().item() == pytest.approx(1.6 - 2**0.5, abs=2e-3)


@pytest.mark.parametrize("objective", DESCRIPTOR_OBJECTIVES.values(), ids=DESCRIPTOR_OBJECTIVES)
def test_near_points_are_no_negatives(objective):
    """A twin 3 px away with the same descriptor costs nothing; 30 px away it does."""
    descriptors, points, valid = descriptor_case(1, 12)
    descriptors[:, 1] = descriptors[:, 0]
    for distance, costly in ((3.0, False), (30.0, True)):
        points[:, 1] = points[:, 0] + torch.tensor([distance, 0.0])
        assert (
            objective(descriptors, descriptors, points, valid, ignore_px=6.0).mean() > 0.02
        ) == costly


@pytest.mark.parametrize("objective", DESCRIPTOR_OBJECTIVES.values(), ids=DESCRIPTOR_OBJECTIVES)
def test_invalid_points_neither_teach_nor_serve_as_negatives(objective):
    descriptors, points, valid = descriptor_case(1)
    valid[:, 10:] = False
    fixed, moving = (
        descriptors.clone().requires_grad_(),
        descriptors.roll(1, 1).clone().requires_grad_(),
    )
    term = objective(fixed, moving, points, valid)
    term.mean().backward()
    assert fixed.grad[:, 10:].abs().max() == 0 and moving.grad[:, 10:].abs().max() == 0
    assert fixed.grad[:, :10].abs().max() > 0
    shorter = objective(fixed[:, :10], moving[:, :10], points[:, :10], valid[:, :10])
    assert shorter.mean().item() == pytest.approx(term.mean().item(), abs=1e-5)


@pytest.mark.parametrize("objective", DESCRIPTOR_OBJECTIVES.values(), ids=DESCRIPTOR_OBJECTIVES)
@pytest.mark.parametrize("n_valid", [0, 1, 2])
def test_few_anchors_give_finite_gradients(objective, n_valid):
    descriptors, points, valid = descriptor_case(2)
    valid[0, n_valid:] = False
    fixed, moving = (descriptors.clone().requires_grad_() for _ in range(2))
    term = objective(fixed, moving, points, valid)
    assert torch.isfinite(term.per_sample).all() and term.mean().requires_grad
    term.mean().backward()
    assert torch.isfinite(fixed.grad).all() and torch.isfinite(moving.grad).all()
    if n_valid == 0:
        assert term.n_empty() == 1 and term.per_sample[0] == 0 and fixed.grad[0].abs().max() == 0


@pytest.mark.parametrize("objective", DESCRIPTOR_OBJECTIVES.values(), ids=DESCRIPTOR_OBJECTIVES)
def test_batch_is_the_mean_of_its_halves(objective):
    descriptors, points, valid = descriptor_case(4)
    valid[0] = False
    valid[3, 5:] = False
    moving = F.normalize(
        descriptors
        + 0.2 * torch.randn(descriptors.shape, generator=torch.Generator().manual_seed(3)),
        dim=-1,
    )
    whole = objective(descriptors, moving, points, valid).mean()
    halves = [
        objective(descriptors[s], moving[s], points[s], valid[s]).mean()
        for s in (slice(0, 2), slice(2, 4))
    ]
    assert whole.item() == pytest.approx(0.5 * sum(halves).item(), rel=1e-5)


# --- all together -----------------------------------------------------------------------------------------------------


def make_objective(stride: int, **settings) -> JointObjective:
    return JointObjective(
        ObjectiveSettings(**settings),
        lambda maps, points: sample_descriptors(maps, points, stride),
        lambda maps, allowed: extract_keypoints(maps, 0.01, 4, 64, allowed),
    )


@pytest.fixture(scope="module")
def batch(generated_root):
    samples, _ = discover_samples(generated_root, ["cffa"])
    pairs = GeneratedPairs(samples, ViewGeometry(img_size=96, long_side=192), seed=1, n_anchors=64)
    return default_collate([pairs[ViewKey(1, index)] for index in range(4)])


@pytest.fixture
def value_map(batch):
    """One admitted place in the middle of the view of each sample."""
    centre = torch.tensor([[47.5, 47.5]])
    places = {
        key: warp_points(centre, H)
        for key, H in zip(batch["key"], batch["H_fix_to_own"], strict=True)
    }
    settings = PKESettings(admit_value=0.5, learning_rate=0.6)
    memory = ValueMap(settings)
    memory.apply([Observation(key, place, torch.zeros(0, 2)) for key, place in places.items()])
    assert memory.statistics()["admitted"] == len(places)
    return memory


@pytest.mark.parametrize("encoders", ["shared", "dual"])
@pytest.mark.parametrize("descriptor", list(DESCRIPTOR_OBJECTIVES))
def test_every_trainable_parameter_gets_a_finite_gradient(batch, value_map, encoders, descriptor):
    torch.manual_seed(0)
    model = build_model(ModelSettings(**to_plain(SMALL_MODEL) | {"encoders": encoders}))
    result = make_objective(model.descriptor_stride, descriptor=descriptor)(
        *model(batch["fixed_image"], batch["moving_image"]), batch, value_map
    )
    assert (
        set(result.losses) == {"det", "des", "geo", "pke", "total"}
        and result.counts["pke_labels"] > 0
    )
    weights = ObjectiveSettings().weights
    assert result.losses["total"].item() == pytest.approx(
        sum(weights[name] * result.losses[name].item() for name in weights), rel=1e-6
    )
    assert all(result.losses[name].item() > 0 for name in weights)
    result.losses["total"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad and parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, name


def test_joint_objective_of_halves_averages_to_the_whole(batch, value_map):
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL).eval()
    objective = make_objective(model.descriptor_stride)

    def losses(part: slice) -> dict[str, torch.Tensor]:
        piece = {name: values[part] for name, values in batch.items()}
        return objective(
            *model(piece["fixed_image"], piece["moving_image"]), piece, value_map
        ).losses

    with torch.no_grad():
        whole, first, second = losses(slice(0, 4)), losses(slice(0, 2)), losses(slice(2, 4))
    for name in whole:
        assert whole[name].item() == pytest.approx(
            0.5 * (first[name] + second[name]).item(), rel=1e-4, abs=1e-6
        ), name


def test_a_weight_of_zero_leaves_a_term_out(batch, value_map):
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL)
    objective = make_objective(
        model.descriptor_stride, weights={"det": 0.0, "des": 2.0, "geo": 0.0, "pke": 0.0}
    )
    result = objective(*model(batch["fixed_image"], batch["moving_image"]), batch, value_map)
    assert result.losses["total"].item() == pytest.approx(2 * result.losses["des"].item())
    result.losses["total"].backward()
    gradient = model.decoder.detector_head.weight.grad
    assert gradient is None or gradient.abs().max() == 0


def test_samples_without_retina_in_common_are_finite_and_counted(batch):
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL)
    empty = dict(batch) | {
        name: torch.zeros_like(batch[name]) for name in ("fixed_fov", "moving_fov", "anchor_valid")
    }
    result = make_objective(model.descriptor_stride)(
        *model(batch["fixed_image"], batch["moving_image"]), empty, ValueMap()
    )
    assert result.losses["total"].item() == 0
    assert all(result.counts[f"empty_{name}"] == 4 for name in ("det", "des", "geo", "pke"))
    result.losses["total"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_some_steps_on_one_batch_lower_every_term(batch):
    torch.manual_seed(0)
    model = build_model(SMALL_MODEL)
    objective, optimizer = (
        make_objective(model.descriptor_stride),
        torch.optim.AdamW(model.parameters(), lr=5e-3),
    )
    history = []
    for _ in range(25):
        losses = objective(
            *model(batch["fixed_image"], batch["moving_image"]), batch, ValueMap()
        ).losses
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    for name in ("det", "des", "total"):
        assert history[-1][name] < 0.97 * history[0][name], name


def test_unknown_settings_are_refused():
    with pytest.raises(InputError, match="weights"):
        ObjectiveSettings(weights={"det": 1.0})
    with pytest.raises(InputError, match="descriptor"):
        ObjectiveSettings(descriptor="hinge")
