"""L_des: descriptors of the same place agree, descriptors of different places differ.

Two losses with the same interface, selected by ``loss.descriptor``: InfoNCE and triplet. Both take
descriptors at corresponding points of each pair. The negatives of a point are the other points of
the same pair, except those within ``ignore_px``, whose descriptors may be similar.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from geometry.point_sets import PointSet, in_mask
from geometry.points import warp_points
from loss.common import Term
from loss.term_inputs import TermInputs
from loss.tolerance import places_within
from utils.transfer import to_device


def too_near(points: torch.Tensor, distance_px: float | torch.Tensor) -> torch.Tensor:
    """Pairs of points closer than ``distance_px``, each point with itself included, also for 0.

    Args:
        points: (B, N, 2), pixels.
        distance_px: in the same pixels; one for all samples, or (B,), one for each.

    Returns:
        (B, N, N) bool.
    """
    gap = points[:, :, None] - points[:, None]
    itself = torch.eye(points.shape[1], dtype=torch.bool, device=points.device)
    squared = distance_px**2
    if isinstance(squared, torch.Tensor):
        squared = squared.to(points.dtype)[:, None, None]
    return ((gap**2).sum(-1) < squared) | itself


def _mean_over_anchors(loss: torch.Tensor, usable: torch.Tensor) -> Term:
    """Mean of a loss (B, N) over the usable anchors (B, N) of each sample."""
    count = usable.sum(1)
    # torch.where instead of a product: an anchor without a negative may be inf, and 0 * inf is NaN.
    total = torch.where(usable, loss, torch.zeros_like(loss)).sum(1)
    return Term(total / count.clamp(min=1), count > 0)


def infonce_loss(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    points: torch.Tensor,
    valid: torch.Tensor,
    temperature: float = 0.07,
    ignore_px: float | torch.Tensor = 6.0,
) -> Term:
    """Symmetric InfoNCE (van den Oord et al., 2018, Contrastive Predictive Coding).

    ``L = -log( exp(a_i p_i / T) / sum_j exp(a_i p_j / T) )``, averaged over both directions; j runs
    over i itself and the valid points at least ``ignore_px`` away.

    Args:
        fixed, moving: (B, N, D) unit descriptors, row i of both is one place.
        points: (B, N, 2) fixed pixels (x, y).
        valid: (B, N) bool.
        temperature: T.
        ignore_px: closer points are neither positive nor negative, fixed pixels; one for all
            samples, or (B,), one for each.

    Returns:
        A term (B,); samples without a valid point are empty.
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
    ignore_px: float | torch.Tensor = 6.0,
) -> Term:
    """Triplet loss with the hardest and a random negative (SuperRetina, ECCV 2022, sec. 3.3).

    ``L = max(0, m + d(a, p) - (d(a, n_hard) + d(a, n_rand)) / 2)``, d the Euclidean distance of
    unit descriptors; averaged over the anchors. The points are in random order, so the next allowed
    one in the list is a random negative. As published with ``ignore_px`` 0: every other
    keypoint is a negative.

    Args:
        fixed, moving: (B, N, D) unit descriptors, row i of both is one place.
        points: (B, N, 2) fixed pixels (x, y).
        valid: (B, N) bool.
        margin: m, in [0, 2] as the distance.
        ignore_px: closer points are not negatives, fixed pixels; one for all samples, or (B,), one
            for each.

    Returns:
        A term (B,); samples without a point that has a negative are empty.
    """
    similarity = torch.einsum("bnd,bmd->bnm", fixed.float(), moving.float())
    distance = (2.0 - 2.0 * similarity).clamp_min(1e-6).sqrt()
    allowed = ~too_near(points, ignore_px) & valid[:, None, :] & valid[:, :, None]
    positive = distance.diagonal(dim1=1, dim2=2)
    hardest = distance.masked_fill(~allowed, float("inf")).amin(2)
    # First allowed column after i, cyclically: roll row i by i, then take the first allowed entry.
    # Entry 0 is i itself, which is never allowed.
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


DESCRIPTOR_OBJECTIVES: dict[str, Callable[..., Term]] = {
    "infonce": infonce_loss,
    "triplet": triplet_loss,
}


def descriptor_term(inputs: TermInputs) -> Term:
    """L_des of a batch, (B,), at the points that :func:`choose_anchors` chooses.

    The other place of a point may lie anywhere within the tolerance r of its sample: its positive
    is the most similar descriptor there, and points nearer than 2 r, whose discs meet, are not its
    negatives.
    """
    settings = inputs.settings
    points, valid = choose_anchors(inputs)
    fixed_descriptors = inputs.sample_descriptors(inputs.fixed.descriptors, points)
    moving_descriptors = inputs.sample_descriptors(
        inputs.moving.descriptors, positive_places(inputs, points, fixed_descriptors)
    )
    if settings.descriptor == "infonce":
        options = {"temperature": settings.temperature}
    else:
        options = {"margin": settings.margin}
    return DESCRIPTOR_OBJECTIVES[settings.descriptor](
        fixed_descriptors,
        moving_descriptors,
        points,
        valid,
        ignore_px=(2.0 * inputs.tolerances.in_fixed.double()).clamp(min=settings.ignore_px),
        **options,
    )


@torch.no_grad()
def positive_places(
    inputs: TermInputs, points: torch.Tensor, descriptors: torch.Tensor
) -> torch.Tensor:
    """Places of points in the moving image, within the tolerance where the descriptor fits best.

    Args:
        inputs: features and supervision of the batch.
        points: (B, N, 2), fixed pixels.
        descriptors: (B, N, D), unit descriptors of the fixed image there.

    Returns:
        (B, N, 2), moving pixels; the mapped places where the transform is exact.
    """
    mapped = warp_points(points, inputs.batch["H_fix_to_mov"])
    if not inputs.tolerances.inexact:
        return mapped
    rows = to_device(np.array(inputs.tolerances.inexact), points.device)
    places = places_within(mapped[rows], inputs.tolerances.in_moving[rows])
    flat = places.flatten(1, 2)
    found = inputs.sample_descriptors(inputs.moving.descriptors[rows], flat)
    similarity = torch.einsum(
        "bnkd,bnd->bnk", found.unflatten(1, places.shape[1:3]).float(), descriptors[rows].float()
    )
    visible = in_mask(flat, inputs.batch["moving_fov"][rows]).reshape(similarity.shape)
    visible[..., 0] = True  # the mapped place itself
    best = similarity.masked_fill(~visible, float("-inf")).argmax(2)
    chosen = places.gather(2, best[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    return mapped.index_copy(0, rows, chosen)


def choose_anchors(inputs: TermInputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Points inside the overlap at which the descriptors are trained.

    Label places and the most probable detections, up to their shares ``settings.anchors``, and
    random vessel points for the rest. Their number is that of the vessel points of the batch. A
    sample without junction labels has detections of the moving image in their place.

    Returns:
        Points (B, N, 2), fixed pixels, and (B, N) bool, false at padding.
    """
    batch, shares = inputs.batch, inputs.settings.anchors
    n_points = batch["anchors"].shape[1]
    unlabelled = batch["has_junctions"][:, None] <= 0.5
    from_moving = inputs.moving_detections.in_other
    labels = inputs.junctions.joined(
        inputs.places.in_both, from_moving.only(unlabelled).on(inputs.overlap)
    )
    detected = inputs.fixed_detections.in_overlap
    vessels = PointSet(batch["anchors"], batch["anchor_valid"])
    chosen = labels.first(round(shares.junctions * n_points)).joined(
        detected.first(round(shares.detections * n_points)), vessels
    )
    points, valid = chosen.compacted(n_points)
    # Mixes the kinds, so that the next point in the list is a random negative. Always the same
    # permutation: the loss of a sample does not depend on its batch.
    mixed = torch.randperm(n_points, generator=torch.Generator().manual_seed(0))
    order = mixed.to(points.device, non_blocking=True)
    return points[:, order], valid[:, order]
