"""LoFTR v3 with samples whose transform is known only to within a tolerance."""

from __future__ import annotations

import math

import pytest
import torch
from loftr_cases import learner, textures

from geometry.cells import CellMatches, find_cell_matches, possible_cells
from loss.vessel_matching import (
    VesselLossSettings,
    VesselObjective,
    VesselWeights,
    choose_for_fine,
    coarse_loss,
    of_exact_samples,
)
from training.loftr_step import LoFTRStep

SIDE = 32  # 4 x 4 cells of 8 px


def identity(n: int = 1) -> torch.Tensor:
    return torch.eye(3).repeat(n, 1, 1)


def test_cells_within_the_tolerance_of_the_mapped_centre_are_possible():
    """The square of a neighbouring cell begins 4 px from the centre, a diagonal one at 5.66 px."""
    cells = [
        possible_cells(identity(), torch.tensor([r]), (SIDE, SIDE), (SIDE, SIDE), 8)[0]
        for r in (0.0, 3.9, 4.0, 5.6, 5.7)
    ]
    assert not cells[0].any(), "an exact transform has no other possible cells"
    of_cell_5 = [each[5].nonzero()[:, 0].tolist() for each in cells[1:]]
    assert of_cell_5[0] == [5] and of_cell_5[1] == of_cell_5[2] == [1, 4, 5, 6, 9]
    assert of_cell_5[3] == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    shifted = identity()
    shifted[0, 0, 2] = 3.0  # the mapped centre is 1 px from the next cell on the right
    near = possible_cells(shifted, torch.tensor([1.0]), (SIDE, SIDE), (SIDE, SIDE), 8)[0]
    assert near[5].nonzero()[:, 0].tolist() == [5, 6]


def case() -> tuple[torch.Tensor, CellMatches, VesselWeights, torch.Tensor]:
    """Logits of two pairs with 16 cells, identity matches; neighbours possible in one."""
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randn(2, 16, 16, generator=generator).requires_grad_()
    fov = torch.ones(2, 1, SIDE, SIDE)
    matches = find_cell_matches(identity(2), fov, fov, 8)
    ones = torch.ones(2, 16)
    possible = possible_cells(identity(2), torch.tensor([0.0, 4.5]), (SIDE, SIDE), (SIDE, SIDE), 8)
    return similarity, matches, VesselWeights(ones, ones, 0.0), possible


@pytest.mark.parametrize("mask_gradient", [False, True])
def test_possible_cells_are_no_negatives_of_that_sample(mask_gradient):
    similarity, matches, weights, possible = case()
    exact = coarse_loss(similarity, matches, weights, 0.0, mask_gradient)
    term = coarse_loss(similarity, matches, weights, 0.0, mask_gradient, possible)
    assert term.per_sample[0].item() == exact.per_sample[0].item(), "bit for bit"
    assert term.per_sample[1] < exact.per_sample[1]
    s, total = similarity[1].detach().double(), 0.0
    for cell in range(16):
        rows = [c for c in range(16) if c == cell or not possible[1, cell, c]]
        columns = [c for c in range(16) if c == cell or not possible[1, c, cell]]
        total -= math.log(s[cell, cell].exp() / s[cell, rows].exp().sum())
        total -= math.log(s[cell, cell].exp() / s[columns, cell].exp().sum())
    assert term.per_sample[1].item() == pytest.approx(total / 16, rel=1e-5)


def test_the_gradient_leaves_possible_cells_alone():
    similarity, matches, weights, possible = case()
    coarse_loss(similarity, matches, weights).per_sample.sum().backward()
    exact = similarity.grad.clone()
    similarity.grad = None
    coarse_loss(similarity, matches, weights, possible=possible).per_sample.sum().backward()
    others = possible[1] & ~torch.eye(16, dtype=torch.bool)
    assert (similarity.grad[1][others] == 0).all() and (exact[1][others] > 0).all()
    assert (similarity.grad[1].diagonal() < 0).all() and torch.isfinite(similarity.grad).all()
    assert torch.equal(similarity.grad[0], exact[0])


def test_a_tolerance_that_covers_the_image_has_no_negatives_and_no_nan():
    similarity, matches, weights, _ = case()
    everything = torch.ones(2, 16, 16, dtype=torch.bool)
    term = coarse_loss(similarity, matches, weights, possible=everything)
    assert term.per_sample.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    term.mean().backward()
    assert torch.isfinite(similarity.grad).all()


@pytest.mark.parametrize(
    ("tolerance", "trained"),
    [
        ((0.0, 0.0), [True, True]),
        ((0.0, 1.5), [True, False]),
        ((1.0, 9.0), [True, False]),
        ((2.0, 2.0), [False, False]),
    ],
)
def test_the_fine_stage_trains_on_samples_exact_to_a_pixel_only(tolerance, trained):
    similarity, matches, weights, _ = case()
    tolerance = torch.tensor(tolerance)
    selected = choose_for_fine(of_exact_samples(matches, tolerance), weights, 64)
    n_selected = len(selected.batch)
    offset = torch.ones(n_selected, 2, requires_grad=True)
    terms = VesselObjective(VesselLossSettings(mask=False), 4.0)(
        similarity, offset, torch.ones(n_selected), matches, selected, weights, tolerance
    )
    assert terms["fine"].valid.tolist() == trained and terms["coarse"].valid.all()
    assert terms["fine"].n_empty() == trained.count(False)
    terms["fine"].mean().backward()
    assert bool((offset.grad != 0).any()) is any(trained)


def run_step(tolerance: tuple[float, float], forms: tuple[str, ...]):
    """One step of a small network on two pairs of equal textures; the second is "self"."""
    images, ones = textures(2, 64), torch.ones(2, 1, 64, 64)
    batch = {
        "key": ["a", "b"],
        "form": ["generated", "self" if "self" in forms else "generated"],
        "tolerance_px": torch.tensor(tolerance),
        "H_fix_to_mov": identity(2),
        "fixed_image": images,
        "moving_image": images,
        "fixed_fov": ones,
        "moving_fov": ones,
        "fixed_mask": ones,
        "moving_mask": ones,
    }
    torch.manual_seed(0)
    model = learner().eval()
    step = LoFTRStep(model, VesselLossSettings(), torch.device("cpu"), forms=forms)
    return step(model, batch)


def test_a_step_logs_each_form_and_leaves_exact_samples_as_they_were():
    plain = run_step((0.0, 0.0), ("generated",))
    assert list(plain.losses) == ["coarse", "fine", "total"]
    exact, inexact = (run_step((0.0, radius), ("generated", "self")) for radius in (0.0, 5.0))
    names = ["coarse_generated", "fine_generated", "coarse_self", "fine_self"]
    assert list(exact.losses)[3:] == names == list(inexact.losses)[3:]
    assert torch.equal(exact.losses["total"], plain.losses["total"])
    assert torch.equal(exact.losses["coarse_generated"], inexact.losses["coarse_generated"])
    assert inexact.losses["coarse_self"] < exact.losses["coarse_self"]
    assert inexact.losses["fine_self"] == 0 and inexact.n_valid["fine_self"] == 0
    assert inexact.counts["empty_fine"] == 1 and exact.counts["empty_fine"] == 0
    assert inexact.n_valid["coarse_self"] == 1
