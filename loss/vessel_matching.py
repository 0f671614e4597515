"""The strict vessel loss of LoFTR v3: only vessels teach the matching.

    W(i, j) = M_fixed(i) * M_moving(j) + eps      M = 1 on cells that hold a vessel, else 0

W weights every pair of cells in two ways. The true matches are averaged with their W, so that background neither
teaches nor dilutes. And the gradient of each similarity is multiplied by its W (at most 1): vessels must still win against
all cells, as they must at inference, where there is no mask; but background cells are not what learns from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from geometry.cells import CellMatches
from loss.common import Term
from utils.errors import InputError


@dataclass(frozen=True)
class VesselLossSettings:
    """Settings of the loss.

    Attributes:
        mask: weigh by vessels; without, every true match counts the same (W = 1), as in LoFTR.
        eps: weight of everything that is not a vessel, in the mean and once more in the gradient; the strict mask has 1e-4 or 0,
            a soft one 0.1.
        min_vessel_area: least share of a coarse cell that must be vessel.
        focal_gamma: exponent of the focal loss (Lin et al., ICCV 2017); 0 is the plain cross-entropy.
        fine_weight: of the fine loss beside the coarse one.
        fine_matches: at how many true matches of a batch, times its pairs, the fine stage is trained.
    """

    mask: bool = True
    eps: float = 1e-4
    min_vessel_area: float = 0.05
    focal_gamma: float = 2.0
    fine_weight: float = 1.0
    fine_matches: int = 128

    def __post_init__(self) -> None:
        if not 0.0 <= self.eps <= 1.0 or not 0.0 < self.min_vessel_area <= 1.0:
            raise InputError(
                f"loss.eps {self.eps:g} must lie between 0 and 1, loss.min_vessel_area {self.min_vessel_area:g} "
                "above 0 and up to 1."
            )
        if self.focal_gamma < 0 or self.fine_weight < 0 or self.fine_matches < 1:
            raise InputError(
                "loss.focal_gamma and loss.fine_weight must not be negative, loss.fine_matches at least 1."
            )


class VesselWeights(NamedTuple):
    """Which cells hold vessels, (B, L) and (B, S) of 0 and 1, and ``eps``; together they are W."""

    fixed: torch.Tensor
    moving: torch.Tensor
    eps: float

    def matrix(self) -> torch.Tensor:
        """W of every pair of cells: (B, L, S)."""
        return self.fixed[:, :, None] * self.moving[:, None, :] + self.eps

    def of(self, matches: CellMatches) -> torch.Tensor:
        """W of given matches: (M,)."""
        return self.on_vessel(matches).float() + self.eps

    def on_vessel(self, matches: CellMatches) -> torch.Tensor:
        """Which matches join a vessel with a vessel: (M,) bool."""
        return (
            self.fixed[matches.batch, matches.fixed_cell]
            * self.moving[matches.batch, matches.moving_cell]
        ) > 0.5


def _weighted_mean(
    loss: torch.Tensor,
    weights: VesselWeights,
    matches: CellMatches,
    certainty: torch.Tensor | float = 1.0,
) -> Term:
    """Mean of (M,) per pair, weighted by W and the network's own certainty. A pair without a match on vessels is empty: its
    background, weighted by eps and divided by the sum of eps, would teach at full strength."""
    weight = weights.of(matches) * certainty

    def sum_per_pair(values: torch.Tensor) -> torch.Tensor:
        return loss.new_zeros(len(weights.fixed)).index_add(0, matches.batch, values.to(loss))

    total, count = sum_per_pair(loss * weight), sum_per_pair(weight)
    valid = sum_per_pair(weights.on_vessel(matches)) > 0
    return Term(torch.where(valid, total / count.clamp_min(1e-12), 0.0 * total), valid)


def coarse_loss(
    similarity: torch.Tensor, matches: CellMatches, weights: VesselWeights, focal_gamma: float = 2.0
) -> Term:
    """Focal loss of the dual-softmax probability of the true matches (LoFTR, CVPR 2021, eq. 5, sparse form).

    ``log p(i, j) = 2 s(i, j) - logsumexp_j s(i, .) - logsumexp_i s(., j)``, computed without the probability, whose
    clipping would leave hopeless matches without a gradient.

    Args:
        similarity: (B, L, S) logits.
        matches: the true ones.
        weights: W; with eps = 0 the gradient of every similarity that involves background is exactly zero.
        focal_gamma: see :class:`VesselLossSettings`.
    """
    similarity = torch.lerp(
        similarity.detach(), similarity, weights.matrix().clamp_max(1.0).to(similarity)
    )
    batch, fixed_cell, moving_cell, _ = matches
    log_p = (
        2.0 * similarity[batch, fixed_cell, moving_cell]
        - torch.logsumexp(similarity, dim=2)[batch, fixed_cell]
        - torch.logsumexp(similarity, dim=1)[batch, moving_cell]
    )
    # exp of a tiny positive rounding error must not make 1 - p negative: its power would not be a number.
    focal = (1.0 - log_p.exp()).clamp_min(0.0) ** focal_gamma if focal_gamma else 1.0
    return _weighted_mean(-focal * log_p, weights, matches)


def fine_loss(
    offset_px: torch.Tensor,
    spread: torch.Tensor,
    matches: CellMatches,
    weights: VesselWeights,
    half_window_px: float,
) -> Term:
    """Squared error of the fine stage, less where it says itself that it is unsure (LoFTR, eq. 6).

    Args:
        offset_px, spread: (M, 2) and (M,), answers of the fine stage at ``matches``.
        half_window_px: unit in which errors count.
    """
    error = ((offset_px - matches.offset_px) / half_window_px).square().sum(-1)
    return _weighted_mean(error, weights, matches, certainty=1.0 / spread.detach().clamp_min(1e-2))


def choose_for_fine(matches: CellMatches, weights: VesselWeights, n_wanted: int) -> CellMatches:
    """True matches at which the fine stage is trained: at random, those on vessels first.

    Without any, the first cells of the first pair stand in, so that every process keeps the same graph; the objective lets
    them count nothing.
    """
    if len(matches.batch) == 0:
        first = torch.zeros(1, dtype=torch.long, device=matches.batch.device)
        return CellMatches(first, first, first, matches.offset_px.new_zeros(1, 2))
    order = (
        torch.rand(len(matches.batch), device=matches.batch.device)
        - weights.on_vessel(matches).float()
    )
    return matches.pick(torch.argsort(order)[:n_wanted])


class VesselObjective:
    """Coarse and fine loss of a batch; knows cells and logits, no model."""

    def __init__(self, settings: VesselLossSettings, half_window_px: float) -> None:
        self.settings, self.half_window_px = settings, half_window_px

    def weights(self, fixed_vessel: torch.Tensor, moving_vessel: torch.Tensor) -> VesselWeights:
        """W from the cells that hold vessels, (B, L) and (B, S)."""
        if self.settings.mask:
            return VesselWeights(fixed_vessel, moving_vessel, self.settings.eps)
        return VesselWeights(torch.ones_like(fixed_vessel), torch.ones_like(moving_vessel), 0.0)

    def __call__(
        self,
        similarity: torch.Tensor,
        offset_px: torch.Tensor,
        spread: torch.Tensor,
        matches: CellMatches,
        asked: CellMatches,
        weights: VesselWeights,
    ) -> dict[str, Term]:
        """Terms ``coarse`` and ``fine``.

        Args:
            similarity, offset_px, spread: what the network said, the last two at ``asked``.
            matches: all true matches.
            weights: from :meth:`weights`.
        """
        n_true = min(len(asked.batch), len(matches.batch))
        offset_px, spread, asked = offset_px[:n_true], spread[:n_true], asked.pick(slice(n_true))
        return {
            "coarse": coarse_loss(similarity, matches, weights, self.settings.focal_gamma),
            "fine": fine_loss(offset_px, spread, asked, weights, self.half_window_px),
        }

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Weighted sum of the batch's terms."""
        return losses["coarse"] + self.settings.fine_weight * losses["fine"]
