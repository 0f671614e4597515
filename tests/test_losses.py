"""The single loss terms: known values, gradients and empty samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dataset.junctions import gaussian_heatmap
from geometry.matrices import affine_about, image_centre, translation_matrix
from geometry.points import warp_points
from geometry.rasters import valid_overlap
from loss.common import average, dice_loss
from loss.descriptor import DESCRIPTOR_OBJECTIVES, infonce_loss, triplet_loss
from loss.detector import detector_loss
from loss.geometric import agreement_loss, plan_loss


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape)


# --- Dice ---


def test_dice_known_values():
    full, nothing, half = ones(1, 1, 10, 10), torch.zeros(1, 1, 10, 10), torch.zeros(1, 1, 10, 10)
    half[..., :5] = 1
    assert dice_loss(full, full, full).mean().item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(nothing, nothing, full).mean().item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(full, nothing, full).mean().item() == pytest.approx(1 - 1 / 101)
    # Dice of 50 common pixels and 100 + 50 pixels, smoothing 1.
    assert dice_loss(full, half, full).mean().item() == pytest.approx(1 - 101 / 151)
    assert dice_loss(half, full, half).mean().item() == pytest.approx(0, abs=1e-6), (
        "only valid pixels count"
    )


def test_dice_is_computed_per_sample_and_counts_empty_samples():
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


def test_detector_loss_depends_on_both_images():
    heatmap = torch.from_numpy(gaussian_heatmap(np.array([[10.0, 8.0]]), (16, 24), 2.0))[None, None]
    blank, valid = torch.zeros_like(heatmap), torch.ones_like(heatmap)
    right = detector_loss(heatmap, heatmap, valid, heatmap, heatmap, valid).mean()
    fixed_wrong = detector_loss(blank, heatmap, valid, heatmap, heatmap, valid).mean()
    moving_wrong = detector_loss(heatmap, heatmap, valid, blank, heatmap, valid).mean()
    assert right < 1e-6 and fixed_wrong == moving_wrong and fixed_wrong > 0.4


# --- L_geo ---


@pytest.fixture
def detectors():
    """Detector maps of the same points in a fixed (80 x 112) and a moving (96 x 88) frame, and
    the matrix between them."""
    points = np.array([[30.0, 30.0], [70.0, 20.0], [60.0, 55.0], [90.0, 50.0]])
    H = affine_about(35, 0.9, 0.0, image_centre((80, 112)), image_centre((96, 88)))
    fixed = torch.from_numpy(gaussian_heatmap(points, (80, 112), 3.0))[None, None]
    moving = torch.from_numpy(gaussian_heatmap(warp_points(points, H), (96, 88), 3.0 * 0.9))[
        None, None
    ]
    return fixed, moving, torch.tensor(H).float()[None]


def test_the_loss_of_the_plan_is_small_only_for_the_true_matrix(detectors):
    fixed, moving, H = detectors
    overlap = valid_overlap(H, torch.ones_like(fixed), torch.ones_like(moving))
    assert plan_loss(fixed, moving, H, overlap).mean() < 0.03
    wrong = torch.tensor(translation_matrix([8, 0])).float()[None] @ H
    assert plan_loss(fixed, moving, wrong, overlap).mean() > 0.5
    assert plan_loss(fixed, moving, torch.linalg.inv(H), overlap).mean() > 0.5


def test_the_loss_of_the_plan_ignores_pixels_outside_of_the_overlap(detectors):
    fixed, moving, H = detectors
    overlap = valid_overlap(H, torch.ones_like(fixed), torch.ones_like(moving))
    overlap[..., 80:] = 0
    trained = fixed.clone().requires_grad_()
    moving = moving.clone().requires_grad_()
    before = plan_loss(trained, moving, H, overlap).mean()
    before.backward()
    assert trained.grad[..., 80:].abs().max() == 0 and trained.grad[..., :80].abs().max() > 0
    assert moving.grad.abs().max() > 0, "gradients flow into both maps"
    changed = fixed.clone()
    changed[..., 84:] = 0.7
    assert plan_loss(changed, moving, H, overlap).mean().item() == pytest.approx(
        before.item(), abs=1e-6
    )
    empty = plan_loss(trained, moving, H, torch.zeros_like(overlap))
    assert empty.n_empty() == 1 and empty.mean() == 0 and empty.mean().requires_grad


def test_agreement_loss_is_near_1_for_two_silent_maps_and_near_0_for_two_that_agree(detectors):
    """The loss of the plan is 0 for two silent maps: it rewards silence."""
    fixed, moving, H = detectors
    H_back = torch.linalg.inv(H)
    overlaps = [
        valid_overlap(matrix, torch.ones_like(here), torch.ones_like(there))
        for matrix, here, there in ((H, fixed, moving), (H_back, moving, fixed))
    ]

    def loss(fixed_map: torch.Tensor, moving_map: torch.Tensor) -> float:
        return (
            agreement_loss(fixed_map, fixed, overlaps[0], moving_map, moving, overlaps[1])
            .mean()
            .item()
        )

    silent = torch.zeros_like(fixed), torch.zeros_like(moving)
    assert loss(*silent) > 0.95 and loss(fixed, moving) < 1e-6
    assert loss(fixed, silent[1]) == pytest.approx(0.5 * loss(*silent), abs=0.02)
    assert plan_loss(*silent, H, overlaps[0]).mean().item() == pytest.approx(0, abs=1e-6)


# --- descriptors ---


def test_the_published_triplet_equals_a_hand_computed_one():
    """Every other point is a negative (ignore_px 0); random negative: the next valid point."""
    generator = torch.Generator().manual_seed(1)
    fixed, moving = (
        F.normalize(torch.randn(2, 7, 5, generator=generator), dim=-1) for _ in range(2)
    )
    points = 3.0 * torch.rand(2, 7, 2, generator=generator)  # nearer than any ignored radius
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, [0, 3]] = False
    wanted = []
    for sample in range(2):
        rows = [i for i in range(7) if valid[sample, i]]
        losses = []
        for position, i in enumerate(rows):
            distance = {
                j: float(np.linalg.norm((fixed[sample, i] - moving[sample, j]).numpy()))
                for j in rows
            }
            hardest = min(value for j, value in distance.items() if j != i)
            random = distance[rows[(position + 1) % len(rows)]]
            losses.append(max(0.0, 0.8 + distance[i] - 0.5 * (hardest + random)))
        wanted.append(np.mean(losses))
    term = triplet_loss(fixed, moving, points, valid, margin=0.8, ignore_px=0.0)
    assert term.per_sample.tolist() == pytest.approx(wanted, rel=1e-4)


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
def test_equal_descriptors_have_less_loss_than_shuffled_or_constant_ones(objective):
    descriptors, points, valid = descriptor_case()
    right = objective(descriptors, descriptors, points, valid)
    shuffled = objective(descriptors, descriptors.roll(1, 1), points, valid)
    collapsed = objective(*(F.normalize(torch.ones_like(descriptors), dim=-1),) * 2, points, valid)
    assert right.mean() < 0.02 and right.valid.all()
    assert shuffled.mean() > right.mean() + 0.5 and collapsed.mean() > right.mean() + 0.5


def test_known_values():
    """Two points with orthogonal descriptors, and two points with equal ones."""
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
def test_near_points_are_not_negatives(objective):
    """A point with the same descriptor adds to the loss at a distance of 30 px, not of 3 px."""
    descriptors, points, valid = descriptor_case(1, 12)
    descriptors[:, 1] = descriptors[:, 0]
    for distance, is_negative in ((3.0, False), (30.0, True)):
        points[:, 1] = points[:, 0] + torch.tensor([distance, 0.0])
        assert (
            objective(descriptors, descriptors, points, valid, ignore_px=6.0).mean() > 0.02
        ) == is_negative


@pytest.mark.parametrize("objective", DESCRIPTOR_OBJECTIVES.values(), ids=DESCRIPTOR_OBJECTIVES)
def test_invalid_points_have_no_gradient_and_are_not_negatives(objective):
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
def test_loss_of_a_batch_is_the_mean_of_its_halves(objective):
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
