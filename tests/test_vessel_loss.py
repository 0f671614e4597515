"""The strict vessel loss: background has no gradient and no weight; an empty batch has loss 0."""

from __future__ import annotations

import math

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


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_background_similarities_have_no_gradient_without_eps(gamma):
    similarity, matches, weights = make(eps=0.0)
    coarse_loss(similarity, matches, weights, gamma).per_sample.sum().backward()
    background = weights.matrix() == 0
    assert background.any() and (similarity.grad[background] == 0).all()
    assert (similarity.grad[~background] != 0).all()


def test_the_gradient_of_background_is_proportional_to_eps():
    gradients = []
    for eps in (1e-4, 1e-3):
        similarity, matches, weights = make(eps)
        coarse_loss(similarity, matches, weights, 0.0).per_sample.sum().backward()
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
    """The softmax runs over background cells too, although they get no gradient."""
    similarity, matches, weights = make(eps=0.0)
    before = coarse_loss(similarity, matches, weights).per_sample[0]
    similar = similarity.detach().clone()
    similar[0, 0, 5] += 8.0
    assert weights.moving[0, 5] == 0
    assert coarse_loss(similar.requires_grad_(), matches, weights).per_sample[0] > before + 1.0


def test_gradient_is_that_of_finite_differences_on_vessels():
    similarity, matches, _ = make(eps=0.0)
    everything = VesselWeights(torch.ones(2, N_CELLS), torch.ones(2, N_CELLS), 0.0)
    assert torch.autograd.gradcheck(
        lambda s: coarse_loss(s, matches, everything, 2.0).per_sample,
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
