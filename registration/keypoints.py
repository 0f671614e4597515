"""Keypoints, their descriptors and their matches: the one place for training, evaluation and registration alike."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from geometry.points import sample_map


def non_maximum_suppression(heatmap: torch.Tensor, radius_px: int) -> torch.Tensor:
    """True where a pixel is the largest within a square of ``radius_px``. (B, 1, H, W) to bool of the same shape."""
    size = 2 * radius_px + 1
    along_y = F.max_pool2d(heatmap, (size, 1), stride=1, padding=(radius_px, 0))
    return heatmap == F.max_pool2d(along_y, (1, size), stride=1, padding=(0, radius_px))


def refine_peaks(heatmap: torch.Tensor, peaks: torch.Tensor) -> torch.Tensor:
    """Move integer peaks to the top of the parabola through their neighbours, along x and along y.

    Args:
        heatmap: (H, W).
        peaks: (N, 2) integer (x, y).

    Returns:
        (N, 2) float; moved by at most half a pixel; peaks on the border stay.
    """
    height, width = heatmap.shape
    x, y = peaks[:, 0], peaks[:, 1]
    centre = heatmap[y, x]

    def offset(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        curvature = before + after - 2.0 * centre
        step = (
            0.5
            * (before - after)
            / torch.where(curvature < -1e-6, curvature, torch.full_like(curvature, -1e-6))
        )
        return torch.where(curvature < -1e-6, step, torch.zeros_like(step)).clamp(-0.5, 0.5)

    left, right = heatmap[y, (x - 1).clamp(min=0)], heatmap[y, (x + 1).clamp(max=width - 1)]
    above, below = heatmap[(y - 1).clamp(min=0), x], heatmap[(y + 1).clamp(max=height - 1), x]
    interior = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    shift = torch.stack([offset(left, right), offset(above, below)], dim=1) * interior[:, None]
    return peaks.to(heatmap.dtype) + shift


def extract_keypoints(
    heatmap: torch.Tensor,
    min_probability: float,
    nms_radius_px: int,
    max_keypoints: int,
    allowed: torch.Tensor | None = None,
    border_px: int = 4,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Local maxima of detector maps, strongest first, at sub-pixel positions. Not differentiable.

    Args:
        heatmap: (B, 1, H, W) probabilities.
        min_probability: weaker maxima are dropped.
        nms_radius_px: no two keypoints in a square of this radius.
        max_keypoints: at most so many per image.
        allowed: (B, 1, H, W) bool or 0/1, where keypoints may lie; everywhere when None.
        border_px: none nearer than this to the border of the image.

    Returns:
        Per image: keypoints (N, 2) float (x, y) in pixels, and their probabilities (N,).
    """
    heatmap = heatmap.detach().float()
    is_peak = non_maximum_suppression(heatmap, nms_radius_px) & (heatmap > min_probability)
    if allowed is not None:
        is_peak &= allowed > 0.5
    if border_px > 0:
        inner = torch.zeros_like(is_peak)
        inner[..., border_px:-border_px, border_px:-border_px] = True
        is_peak &= inner
    found = []
    for image_map, image_peaks in zip(heatmap[:, 0], is_peak[:, 0], strict=True):
        rows, columns = torch.nonzero(image_peaks, as_tuple=True)
        scores = image_map[rows, columns]
        # A stable order: equal scores must not be shuffled between runs.
        order = torch.argsort(scores, descending=True, stable=True)[:max_keypoints]
        peaks, scores = torch.stack([columns, rows], dim=1)[order], scores[order]
        single = ~_repeats_earlier(peaks, nms_radius_px)
        found.append((refine_peaks(image_map, peaks[single]), scores[single]))
    return found


def _repeats_earlier(peaks: torch.Tensor, radius_px: int) -> torch.Tensor:
    """Which peaks (N, 2) lie within the radius of an earlier one: bool (N,). Only pixels of equal height can."""
    gap = (peaks[:, None] - peaks[None]).abs().amax(-1)
    return (gap <= radius_px).tril(diagonal=-1).any(1)


def sample_descriptors(
    descriptor_map: torch.Tensor, keypoints: torch.Tensor, stride: float
) -> torch.Tensor:
    """Unit descriptors at pixel positions.

    Args:
        descriptor_map: (B, D, H / stride, W / stride).
        keypoints: (B, N, 2), image pixels.

    Returns:
        (B, N, D), unit length.
    """
    return F.normalize(sample_map(descriptor_map, keypoints, stride), dim=-1)


def match_descriptors(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    max_distance_ratio: float = 1.0,
    allowed: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mutual nearest neighbours.

    Args:
        fixed: (N, D), moving: (M, D), unit length.
        max_distance_ratio: Lowe's test: distance to the nearest over distance to the second nearest must be below
            this; 1 switches it off.
        allowed: (N, M) bool, which pairs may match at all; every one when None.

    Returns:
        Index pairs (K, 2) long (row of ``fixed``, row of ``moving``), and their cosine similarity (K,).
    """
    if len(fixed) == 0 or len(moving) == 0:
        return torch.zeros(0, 2, dtype=torch.long, device=fixed.device), fixed.new_zeros(0)
    similarity = fixed @ moving.T
    if allowed is not None:
        # Below any cosine, and finite: distances are computed from it.
        similarity = similarity.masked_fill(~allowed, -2.0)
    best, nearest = similarity.max(dim=1)
    rows = torch.arange(len(fixed), device=fixed.device)
    keep = (similarity.argmax(dim=0)[nearest] == rows) & (best > -2.0)
    if max_distance_ratio < 1.0 and len(moving) > 1:
        second = similarity.topk(2, dim=1).values[:, 1]
        distance, second_distance = ((2.0 - 2.0 * s).clamp_min(0.0).sqrt() for s in (best, second))
        keep &= distance < max_distance_ratio * second_distance
    return torch.stack([rows, nearest], dim=1)[keep], best[keep]
