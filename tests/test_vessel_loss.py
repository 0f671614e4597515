"""The vessel loss: background has no weight but is pushed away; an empty batch has loss 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from geometry.cells import CellMatches
from loss.vessel_matching import (
    VesselLossSettings,
    VesselObjective,
    VesselWeights,
    choose_for_fine,
    coarse_loss,
    fine_loss,
)
from utils.errors import InputError

N_CELLS = 6


def make(eps, n_pairs=2, seed=0):
    """Random logits; the true match of cell i is i + 1. Fixed cells 0 to 2 contain vessels, so
    matches 0, 1 and 2 are on vessels and the others are not."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(n_pairs, N_CELLS, N_CELLS, generator=generator).requires_grad_()
    cells = torch.arange(N_CELLS).repeat(n_pairs)
    batch = torch.arange(n_pairs).repeat_interleave(N_CELLS)
    matches = CellMatches(batch, cells, (cells + 1) % N_CELLS, torch.zeros(len(cells), 2))
    fixed = torch.tensor([1.0, 1, 1, 0, 0, 0]).repeat(n_pairs, 1)
    return similarity, matches, VesselWeights(fixed, fixed.roll(1, dims=1), eps)


def test_plain_cross_entropy_is_minus_log_of_the_dual_softmax():
    similarity, matches, weights = make(eps=0.0)
    value = coarse_loss(similarity, matches, weights, focal_gamma=0.0).per_sample
    p = similarity.softmax(1) * similarity.softmax(2)
    for index in range(2):
        expected = -sum(math.log(p[index, cell, cell + 1].item()) for cell in range(3)) / 3
        assert value[index].item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_equals_its_formula():
    similarity, matches, weights = make(eps=0.3)
    value = coarse_loss(similarity, matches, weights, focal_gamma=2.0).per_sample
    p = (similarity.softmax(1) * similarity.softmax(2))[
        matches.batch, matches.fixed_cell, matches.moving_cell
    ].detach()
    w = weights.of(matches)
    terms = (w * (1 - p) ** 2 * -p.log()).view(2, -1).sum(1) / w.view(2, -1).sum(1)
    assert torch.allclose(value, terms, rtol=1e-5)


def weight_by_hand(fixed, moving, eps):
    """W of one pair of cells, as the plan defines it."""
    return (1.0 if fixed > 0.5 and moving > 0.5 else 0.0) + eps


def coarse_by_hand(similarity, matches, weights, gamma):
    """Loss (B,) and its gradient for gamma = 0 (B, L, S), in loops over true matches and cells."""
    s, n_pairs = similarity.detach().double().numpy(), len(similarity)
    fixed, moving = weights.fixed.numpy(), weights.moving.numpy()
    loss, gradient = np.zeros(n_pairs), np.zeros_like(s)
    for b in range(n_pairs):
        total = sum_of_weights = 0.0
        for m in range(len(matches.batch)):
            if matches.batch[m] != b:
                continue
            i, j = int(matches.fixed_cell[m]), int(matches.moving_cell[m])
            row = np.exp(s[b, i]) / np.exp(s[b, i]).sum()
            column = np.exp(s[b, :, j]) / np.exp(s[b, :, j]).sum()
            p, w = row[j] * column[i], weight_by_hand(fixed[b, i], moving[b, j], weights.eps)
            total += w * (1.0 - p) ** gamma * -math.log(p)
            sum_of_weights += w
            gradient[b, i] += w * row
            gradient[b, :, j] += w * column
            gradient[b, i, j] -= 2.0 * w
        loss[b] = total / sum_of_weights
        gradient[b] /= sum_of_weights
    return loss, gradient


@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("mask_gradient", [False, True])
def test_coarse_loss_equals_a_hand_computed_one(eps, gamma, mask_gradient):
    similarity, matches, weights = make(eps)
    expected, _ = coarse_by_hand(similarity, matches, weights, gamma)
    value = coarse_loss(similarity, matches, weights, gamma, mask_gradient).per_sample
    assert np.allclose(value.detach().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_the_gradient_equals_a_hand_computed_one_and_masked_it_is_w_times_that(eps):
    """Between a vessel cell and background the loss pushes away; the mask on the gradient leaves
    only W times that."""
    similarity, matches, weights = make(eps)
    _, expected = coarse_by_hand(similarity, matches, weights, gamma=0.0)
    for mask_gradient in (False, True):
        similarity.grad = None
        term = coarse_loss(similarity, matches, weights, 0.0, mask_gradient)
        term.per_sample.sum().backward()
        found = similarity.grad.double().numpy()
        for b, i, j in np.ndindex(found.shape):
            w = weight_by_hand(weights.fixed[b, i], weights.moving[b, j], eps)
            factor = min(w, 1.0) if mask_gradient else 1.0
            assert found[b, i, j] == pytest.approx(factor * expected[b, i, j], rel=1e-4, abs=1e-7)
            if weights.fixed[b, i] and not weights.moving[b, j] and not mask_gradient:
                assert found[b, i, j] > 1e-3, "a vessel cell must be pushed away from background"


@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.3])
def test_fine_loss_equals_a_hand_computed_one(eps):
    _, matches, weights = make(eps)
    generator = torch.Generator().manual_seed(1)
    offset, true = torch.randn(2, len(matches.batch), 2, generator=generator)
    spread = 0.2 + torch.rand(len(matches.batch), generator=generator)
    matches = matches._replace(offset_px=true)
    found = fine_loss(offset, spread, matches, weights, half_window_px=4.0).per_sample
    for b in range(2):
        total = sum_of_weights = 0.0
        for m in range(len(matches.batch)):
            if matches.batch[m] != b:
                continue
            fixed = weights.fixed[b, int(matches.fixed_cell[m])]
            moving = weights.moving[b, int(matches.moving_cell[m])]
            w = weight_by_hand(fixed, moving, eps) / float(spread[m])
            dx, dy = ((offset[m] - true[m]) / 4.0).tolist()
            total += w * (dx * dx + dy * dy)
            sum_of_weights += w
        assert found[b].item() == pytest.approx(total / sum_of_weights, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "masked"),
    [
        ({}, False),
        ({"mask_gradient": True}, True),
        ({"mask": False, "mask_gradient": True}, False),
    ],
)
def test_the_objective_masks_the_gradient_only_where_the_settings_say_so(settings, masked):
    similarity, matches, vessels = make(eps=0.0)
    objective = VesselObjective(
        VesselLossSettings(**{"eps": 0.0, "focal_gamma": 0.0} | settings), 4
    )
    weights = objective.weights(vessels.fixed, vessels.moving)
    selected = choose_for_fine(matches, weights, 4)
    zeros, ones = torch.zeros(4, 2), torch.ones(4)
    terms = objective(similarity, zeros, ones, matches, selected, weights)
    terms["coarse"].mean().backward()
    background = vessels.matrix() == 0
    assert bool((similarity.grad[background] == 0).all()) is masked


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_a_masked_gradient_leaves_none_on_background_without_eps(gamma):
    similarity, matches, weights = make(eps=0.0)
    coarse_loss(similarity, matches, weights, gamma, mask_gradient=True).per_sample.sum().backward()
    background = weights.matrix() == 0
    assert background.any() and (similarity.grad[background] == 0).all()
    assert (similarity.grad[~background] != 0).all()


def test_a_masked_gradient_of_background_is_proportional_to_eps():
    gradients = []
    for eps in (1e-4, 1e-3):
        similarity, matches, weights = make(eps)
        coarse_loss(similarity, matches, weights, 0.0, True).per_sample.sum().backward()
        gradients.append(similarity.grad[weights.matrix() < 0.5].abs().mean())
    assert gradients[0] > 0 and gradients[1] / gradients[0] == pytest.approx(10.0, rel=0.2)


def test_background_matches_do_not_change_the_mean():
    similarity, matches, weights = make(eps=0.0)
    vessels = matches.pick(weights.on_vessel(matches))
    assert len(vessels.batch) == 6 < len(matches.batch)
    assert torch.equal(
        coarse_loss(similarity, matches, weights).per_sample,
        coarse_loss(similarity, vessels, weights).per_sample,
    )


def test_a_similar_background_cell_raises_the_loss():
    """The softmax runs over background cells too."""
    similarity, matches, weights = make(eps=0.0)
    before = coarse_loss(similarity, matches, weights).per_sample[0]
    similar = similarity.detach().clone()
    similar[0, 0, 5] += 8.0
    assert weights.moving[0, 5] == 0
    assert coarse_loss(similar.requires_grad_(), matches, weights).per_sample[0] > before + 1.0


def test_gradient_is_that_of_finite_differences():
    similarity, matches, weights = make(eps=0.3)
    assert torch.autograd.gradcheck(
        lambda s: coarse_loss(s, matches, weights, 2.0).per_sample,
        similarity.detach().double().requires_grad_(),
        eps=1e-6,
        atol=1e-5,
    )


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_pair_without_vessels_is_an_empty_zero_with_a_graph(eps):
    """Also with eps: background weighted by eps and divided by the sum of eps would otherwise
    count as much as vessels."""
    similarity, matches, weights = make(eps)
    weights.fixed[1] = 0
    term = coarse_loss(similarity, matches, weights)
    assert term.valid.tolist() == [True, False] and term.per_sample[1] == 0 and term.n_empty() == 1
    term.mean().backward()
    assert (similarity.grad[1] == 0).all() and torch.isfinite(similarity.grad).all()


def test_batch_without_any_match_keeps_its_graph():
    similarity, matches, weights = make(eps=1e-4)
    none = matches.pick(torch.zeros(len(matches.batch), dtype=torch.bool))
    selected = choose_for_fine(none, weights, 8)
    offset, spread = (
        torch.zeros(len(selected.batch), 2, requires_grad=True),
        torch.ones(len(selected.batch)),
    )
    terms = VesselObjective(VesselLossSettings(), 4.0)(
        similarity,
        offset,
        spread,
        none,
        selected,
        VesselWeights(weights.fixed * 0, weights.moving, 1e-4),
    )
    total = terms["coarse"].mean() + terms["fine"].mean()
    assert total == 0 and total.requires_grad
    total.backward()
    assert (similarity.grad == 0).all() and (offset.grad == 0).all()


def test_the_placeholder_match_has_no_gradient_without_a_mask():
    """Without a mask the placeholder of a batch without matches would have weight 1."""
    similarity, matches, weights = make(eps=0.0)
    none = matches.pick(slice(0))
    selected = choose_for_fine(none, weights, 8)
    offset = torch.ones(len(selected.batch), 2, requires_grad=True)
    everything = VesselWeights(torch.ones(2, N_CELLS), torch.ones(2, N_CELLS), 0.0)
    terms = VesselObjective(VesselLossSettings(mask=False), 4.0)(
        similarity, offset, torch.ones(len(selected.batch)), none, selected, everything
    )
    assert terms["fine"].n_empty() == terms["coarse"].n_empty() == 2
    terms["fine"].mean().backward()
    assert (offset.grad == 0).all()


def test_the_spread_at_other_matches_does_not_change_the_fine_loss():
    _, matches, weights = make(eps=0.0)
    predicted, spread = (
        torch.full((len(matches.batch), 2), 2.0),
        torch.linspace(0.2, 2.0, len(matches.batch)),
    )
    predicted[weights.on_vessel(matches)] += torch.rand(int(weights.on_vessel(matches).sum()), 1)
    before = fine_loss(predicted, spread, matches, weights, 4.0).per_sample
    elsewhere = torch.where(
        weights.on_vessel(matches) & (matches.batch == 0), spread, torch.tensor(0.05)
    )
    assert torch.allclose(
        fine_loss(predicted, elsewhere, matches, weights, 4.0).per_sample[0], before[0]
    )
    on = weights.on_vessel(matches) & (matches.batch == 0)
    certainty = 1.0 / spread[on]
    error = ((predicted[on] - matches.offset_px[on]) / 4.0).square().sum(-1)
    assert before[0].item() == pytest.approx(
        ((certainty * error).sum() / certainty.sum()).item(), rel=1e-5
    )


def test_fine_loss_depends_on_vessel_matches_only():
    _, matches, weights = make(eps=0.0)
    predicted = torch.full((len(matches.batch), 2), 2.0, requires_grad=True)
    term = fine_loss(
        predicted, torch.ones(len(matches.batch)), matches, weights, half_window_px=4.0
    )
    assert torch.allclose(term.per_sample, torch.tensor(0.5))
    term.mean().backward()
    on_vessel = weights.on_vessel(matches)
    assert (predicted.grad[~on_vessel] == 0).all() and (predicted.grad[on_vessel] > 0).all()
    right = fine_loss(matches.offset_px, torch.ones(len(matches.batch)), matches, weights, 4.0)
    assert (right.per_sample == 0).all()


def test_vessel_matches_are_selected_first_for_the_fine_stage():
    _, matches, weights = make(eps=1e-4)
    chosen = choose_for_fine(matches, weights, 6)
    assert weights.on_vessel(chosen).all() and len(chosen.batch) == 6
    assert len(choose_for_fine(matches, weights, 100).batch) == 12


def test_without_mask_every_match_has_weight_one():
    objective = VesselObjective(VesselLossSettings(mask=False), 4.0)
    weights = objective.weights(torch.zeros(1, 4), torch.zeros(1, 4))
    assert (weights.matrix() == 1).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"eps": -0.1},
        {"eps": 2.0},
        {"min_vessel_area": 0.0},
        {"focal_gamma": -1.0},
        {"fine_matches": 0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError):
        VesselLossSettings(**wrong)
