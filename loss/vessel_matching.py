"""The strict vessel loss of LoFTR v3: the matching is trained on vessels only.

    W(i, j) = M_fixed(i) * M_moving(j) + eps      M = 1 on cells that contain a vessel, else 0

The loss is the mean over the true matches, weighted by W: with eps near 0 background matches hardly
contribute and hardly reduce the weight of the others. W weights nothing else. The dual softmax of a
true match runs over all cells, as at inference, where there is no mask, so the loss also lowers the
similarities between a vessel cell and background.

A sample whose transform is known only to within a tolerance trains the coarse stage: the cells in
which the true match may lie too are left out of both softmaxes of a match, so they are not pushed
away. Above ``MAX_FINE_TOLERANCE_PX`` it does not train the fine stage, which would learn the error.

With ``mask_gradient`` the gradient of each similarity is also multiplied by its W (at most 1), as
in earlier versions. This removes most of that push away from background; see docs/loftr_v3.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from geometry.cells import CellMatches
from loss.common import Term
from utils.errors import InputError

# Largest tolerance of a sample that trains the fine stage, fixed pixels; chosen by hand: the fine
# stage is exact to about a pixel.
MAX_FINE_TOLERANCE_PX = 1.0


@dataclass(frozen=True)
class VesselLossSettings:
    """Settings of the loss.

    Attributes:
        mask: weight by vessels; if false, every true match has weight W = 1, as in LoFTR.
        eps: weight of background; 1e-4 or 0 for the strict mask, 0.1 for a soft one.
        mask_gradient: also multiply the gradient of every similarity by its W; without ``mask`` it
            has no effect.
        min_vessel_area: fraction of a coarse cell that must be vessel for M = 1.
        focal_gamma: exponent of the focal loss (Lin et al., ICCV 2017); 0 gives cross-entropy.
        fine_weight: weight of the fine loss; the coarse one has weight 1.
        fine_matches: true matches per pair at which the fine stage is trained, on average over
            the batch.

    Raises:
        InputError: a value outside of its range.
    """

    mask: bool = True
    eps: float = 1e-4
    mask_gradient: bool = False
    min_vessel_area: float = 0.05
    focal_gamma: float = 2.0
    fine_weight: float = 1.0
    fine_matches: int = 128

    def __post_init__(self) -> None:
        if not 0.0 <= self.eps <= 1.0 or not 0.0 < self.min_vessel_area <= 1.0:
            raise InputError(
                f"loss.eps {self.eps:g} must lie between 0 and 1, loss.min_vessel_area "
                f"{self.min_vessel_area:g} above 0 and up to 1."
            )
        if self.focal_gamma < 0 or self.fine_weight < 0 or self.fine_matches < 1:
            raise InputError(
                "loss.focal_gamma and loss.fine_weight must not be negative, loss.fine_matches "
                "at least 1."
            )


class VesselWeights(NamedTuple):
    """The factors of W.

    Attributes:
        fixed, moving: (B, L) and (B, S) float32, 1 on cells that contain a vessel, else 0.
        eps: weight of background.
    """

    fixed: torch.Tensor
    moving: torch.Tensor
    eps: float

    def matrix(self) -> torch.Tensor:
        """W of every pair of cells: (B, L, S)."""
        return self.fixed[:, :, None] * self.moving[:, None, :] + self.eps

    def of(self, matches: CellMatches) -> torch.Tensor:
        """W of given matches: (M,) float32."""
        return self.on_vessel(matches).float() + self.eps

    def on_vessel(self, matches: CellMatches) -> torch.Tensor:
        """Which matches connect two cells that both contain a vessel: (M,) bool."""
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
    """Mean of a loss (M,) per pair, weighted by W times the predicted certainty (M,).

    A pair without a match on vessels is empty: its background, weighted by eps and divided by the
    sum of eps, would otherwise count as much as vessels.
    """
    weight = weights.of(matches) * certainty

    def sum_per_pair(values: torch.Tensor) -> torch.Tensor:
        return loss.new_zeros(len(weights.fixed)).index_add(0, matches.batch, values.to(loss))

    total, count = sum_per_pair(loss * weight), sum_per_pair(weight)
    valid = sum_per_pair(weights.on_vessel(matches)) > 0
    return Term(torch.where(valid, total / count.clamp_min(1e-12), 0.0 * total), valid)


def coarse_loss(
    similarity: torch.Tensor,
    matches: CellMatches,
    weights: VesselWeights,
    focal_gamma: float = 2.0,
    mask_gradient: bool = False,
    possible: torch.Tensor | None = None,
) -> Term:
    """Focal loss of the dual-softmax probability of the true matches (LoFTR, CVPR 2021, eq. 5).

    ``log p(i, j) = 2 s(i, j) - logsumexp_j s(i, .) - logsumexp_i s(., j)``, computed from the
    logits: a clipped probability would give matches of very low probability no gradient.

    Args:
        similarity: (B, L, S) logits.
        matches: true matches (M).
        weights: W.
        focal_gamma, mask_gradient: see :class:`VesselLossSettings`. The value of the loss does not
            depend on ``mask_gradient``; with it and eps = 0 the gradient of every similarity of a
            background cell is zero.
        possible: (B, L, S) bool, pairs of cells that may match too and are therefore no negatives
            (:func:`geometry.cells.possible_cells`); None where every transform is exact.

    Returns:
        A term (B,); pairs without a true match on vessels are empty.
    """
    if mask_gradient:
        # The interpolation between equal values keeps the value and scales the gradient.
        similarity = torch.lerp(
            similarity.detach(), similarity, weights.matrix().clamp_max(1.0).to(similarity)
        )
    batch, fixed_cell, moving_cell, _ = matches
    of_match = similarity[batch, fixed_cell, moving_cell]
    of_fixed = torch.logsumexp(similarity, dim=2)[batch, fixed_cell]
    of_moving = torch.logsumexp(similarity, dim=1)[batch, moving_cell]
    if possible is not None:
        inexact = possible.flatten(1).any(1)[batch]
        negatives = similarity.masked_fill(possible, float("-inf"))
        of_fixed, of_moving = (
            torch.where(inexact, torch.logaddexp(of_match, of_negatives), exact)
            for of_negatives, exact in (
                (torch.logsumexp(negatives, dim=2)[batch, fixed_cell], of_fixed),
                (torch.logsumexp(negatives, dim=1)[batch, moving_cell], of_moving),
            )
        )
    log_p = 2.0 * of_match - of_fixed - of_moving
    # log_p may exceed 0 by a rounding error; the power of a negative 1 - p would be NaN.
    focal = (1.0 - log_p.exp()).clamp_min(0.0) ** focal_gamma if focal_gamma else 1.0
    return _weighted_mean(-focal * log_p, weights, matches)


def fine_loss(
    offset_px: torch.Tensor,
    spread: torch.Tensor,
    matches: CellMatches,
    weights: VesselWeights,
    half_window_px: float,
) -> Term:
    """Squared error of the fine stage, weighted by predicted certainty (LoFTR, CVPR 2021, eq. 6).

    Args:
        offset_px: (M, 2) predicted offsets at ``matches``, moving pixels (x, y).
        spread: (M,) predicted standard deviations, in half windows; the certainty is 1 / spread.
        matches: true matches (M) with their true offsets.
        weights: W.
        half_window_px: unit of the error, pixels.

    Returns:
        A term (B,); pairs without a match on vessels are empty.
    """
    error = ((offset_px - matches.offset_px) / half_window_px).square().sum(-1)
    return _weighted_mean(error, weights, matches, certainty=1.0 / spread.detach().clamp_min(1e-2))


def choose_for_fine(matches: CellMatches, weights: VesselWeights, n_wanted: int) -> CellMatches:
    """Select true matches at which the fine stage is trained: at random, those on vessels first.

    Without any true match the result is cell 0 of both images of the first pair, so that every
    process has the same graph; :class:`VesselObjective` ignores it. Give only the matches of exact
    samples, see :func:`of_exact_samples`.

    Args:
        matches: true matches (M) of the batch.
        weights: W.
        n_wanted: largest number of matches.
    """
    if len(matches.batch) == 0:
        first = torch.zeros(1, dtype=torch.long, device=matches.batch.device)
        return CellMatches(first, first, first, matches.offset_px.new_zeros(1, 2))
    order = (
        torch.rand(len(matches.batch), device=matches.batch.device)
        - weights.on_vessel(matches).float()
    )
    return matches.pick(torch.argsort(order)[:n_wanted])


def of_exact_samples(matches: CellMatches, tolerance_px: torch.Tensor) -> CellMatches:
    """The matches that are exact enough for the fine stage.

    Args:
        matches: true matches (M) of the batch.
        tolerance_px: (B,), fixed pixels.
    """
    exact = tolerance_px <= MAX_FINE_TOLERANCE_PX
    return matches if bool(exact.all()) else matches.pick(exact[matches.batch])


class VesselObjective:
    """Coarse and fine loss of a batch.

    Args:
        settings: of the loss.
        half_window_px: half the side of the fine window, pixels.
    """

    def __init__(self, settings: VesselLossSettings, half_window_px: float) -> None:
        self.settings, self.half_window_px = settings, half_window_px

    def weights(self, fixed_vessel: torch.Tensor, moving_vessel: torch.Tensor) -> VesselWeights:
        """W from masks of cells that contain a vessel, (B, L) and (B, S), 0 or 1."""
        if self.settings.mask:
            return VesselWeights(fixed_vessel, moving_vessel, self.settings.eps)
        return VesselWeights(torch.ones_like(fixed_vessel), torch.ones_like(moving_vessel), 0.0)

    def __call__(
        self,
        similarity: torch.Tensor,
        offset_px: torch.Tensor,
        spread: torch.Tensor,
        matches: CellMatches,
        selected: CellMatches,
        weights: VesselWeights,
        tolerance_px: torch.Tensor | None = None,
        possible: torch.Tensor | None = None,
    ) -> dict[str, Term]:
        """Terms ``coarse`` and ``fine``.

        Args:
            similarity: (B, L, S) logits of the dual softmax.
            offset_px, spread: (M, 2) pixels and (M,) half windows, fine stage at ``selected``.
            matches: all true matches.
            selected: from :func:`choose_for_fine`, of the matches of exact samples.
            weights: from :meth:`weights`.
            tolerance_px: (B,) of the samples, fixed pixels; None: all are exact.
            possible: see :func:`coarse_loss`.
        """
        exact = matches if tolerance_px is None else of_exact_samples(matches, tolerance_px)
        n_true = min(len(selected.batch), len(exact.batch))
        # Without true matches ``selected`` contains a placeholder; drop it.
        offset_px, spread = offset_px[:n_true], spread[:n_true]
        selected = selected.pick(slice(n_true))
        coarse = coarse_loss(
            similarity,
            matches,
            weights,
            self.settings.focal_gamma,
            self.settings.mask and self.settings.mask_gradient,
            possible,
        )
        return {
            "coarse": coarse,
            "fine": fine_loss(offset_px, spread, selected, weights, self.half_window_px),
        }

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Weighted sum, a scalar.

        Args:
            losses: scalars ``coarse`` and ``fine``, the means over the batch (B,) of the terms.
        """
        return losses["coarse"] + self.settings.fine_weight * losses["fine"]
