"""L_des: descriptors of one place agree, descriptors of different places differ.

Two objectives with one interface; the config chooses. Both take descriptors of corresponding points of each pair and
use the other points of the same pair as negatives, except those too near to call different.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from loss.common import Term


def too_near(points: torch.Tensor, distance_px: float) -> torch.Tensor:
    """Pairs of points that are nearer than ``distance_px`` (or the same): (B, N, 2) to (B, N, N) bool."""
    gap = points[:, :, None] - points[:, None]
    return (gap**2).sum(-1) < distance_px**2


def _mean_over_anchors(loss: torch.Tensor, usable: torch.Tensor) -> Term:
    """(B, N) to a term, averaging each sample over its usable anchors."""
    count = usable.sum(1)
    # where, not a product: an anchor without a negative may hold an infinity, and 0 * inf is not 0.
    total = torch.where(usable, loss, torch.zeros_like(loss)).sum(1)
    return Term(total / count.clamp(min=1), count > 0)


def infonce_loss(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    points: torch.Tensor,
    valid: torch.Tensor,
    temperature: float = 0.07,
    ignore_px: float = 6.0,
) -> Term:
    """Symmetric InfoNCE (van den Oord et al., 2018): each anchor must pick its partner among all points of the pair.

    ``L = -log( exp(a_i p_i / T) / sum_j exp(a_i p_j / T) )``, averaged over both directions; j runs over i itself and
    the valid points at least ``ignore_px`` away.

    Args:
        fixed, moving: (B, N, D) unit descriptors, row i of both is one place.
        points: (B, N, 2) fixed pixels.
        valid: (B, N) bool.
        temperature: T.
        ignore_px: nearer points are neither positive nor negative.
    """
    logits = torch.einsum("bnd,bmd->bnm", fixed.float(), moving.float()) / temperature
    diagonal = torch.eye(points.shape[1], dtype=torch.bool, device=points.device)
    excluded = (too_near(points, ignore_px) | ~valid[:, None, :] | ~valid[:, :, None]) & ~diagonal
    logits = logits.masked_fill(excluded, float("-inf"))
    positive = logits.diagonal(dim1=1, dim2=2)
    to_moving = torch.logsumexp(logits, dim=2) - positive
    to_fixed = torch.logsumexp(logits, dim=1) - positive
    return _mean_over_anchors(0.5 * (to_moving + to_fixed), valid)


def triplet_loss(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    points: torch.Tensor,
    valid: torch.Tensor,
    margin: float = 0.8,
    ignore_px: float = 6.0,
) -> Term:
    """Triplet loss with the hardest and a random negative, after SuperRetina (ECCV 2022, the descriptor loss).

    ``L = max(0, m + d(a, p) - (d(a, n_hard) + d(a, n_rand)) / 2)`` with d the Euclidean distance of unit descriptors.
    The anchors come in random order, so "the next point in the list" is a random negative, and no draw is needed.

    Args:
        See :func:`infonce_loss`; ``margin`` is m.
    """
    similarity = torch.einsum("bnd,bmd->bnm", fixed.float(), moving.float())
    distance = (2.0 - 2.0 * similarity).clamp_min(1e-6).sqrt()
    allowed = ~too_near(points, ignore_px) & valid[:, None, :] & valid[:, :, None]
    positive = distance.diagonal(dim1=1, dim2=2)
    hardest = distance.masked_fill(~allowed, float("inf")).amin(2)
    # First allowed column after i, cyclically: roll row i by i, then the first allowed entry from column 1 on.
    n_points = points.shape[1]
    order = (
        torch.arange(n_points, device=points.device)[:, None]
        + torch.arange(n_points, device=points.device)[None]
    ) % n_points
    order = order.expand(len(points), -1, -1)
    first = torch.gather(allowed, 2, order).int().argmax(2, keepdim=True)
    random = torch.gather(torch.gather(distance, 2, order), 2, first)[..., 0]
    usable = valid & allowed.any(2)
    hardest = torch.where(usable, hardest, torch.zeros_like(hardest))
    return _mean_over_anchors(F.relu(margin + positive - 0.5 * (hardest + random)), usable)


DESCRIPTOR_OBJECTIVES = {"infonce": infonce_loss, "triplet": triplet_loss}
