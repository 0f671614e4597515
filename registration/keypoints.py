"""Keypoints, descriptors and descriptor matches, shared by training, validation and matching."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from geometry.points import sample_map

MIN_CURVATURE = 1e-6  # of a peak; flatter peaks keep their integer position
MAX_OFFSET_PX = 0.5  # largest sub-pixel offset along x and y
FORBIDDEN_SIMILARITY = -2.0  # below any cosine similarity, and finite for the distances


def non_maximum_suppression(heatmap: torch.Tensor, radius_px: int) -> torch.Tensor:
    """Which pixels are the maximum of the square around them.

    Args:
        heatmap: (B, 1, H, W) float.
        radius_px: half the side of the square, pixels.

    Returns:
        (B, 1, H, W) bool.
    """
    size = 2 * radius_px + 1
    along_y = F.max_pool2d(heatmap, (size, 1), stride=1, padding=(radius_px, 0))
    return heatmap == F.max_pool2d(along_y, (1, size), stride=1, padding=(0, radius_px))


def refine_peaks(heatmap: torch.Tensor, peaks: torch.Tensor) -> torch.Tensor:
    """Sub-pixel positions of peaks, by parabolas through the neighbours along x and y.

    Args:
        heatmap: (H, W) float.
        peaks: (N, 2) long, pixels (x, y).

    Returns:
        (N, 2) float, pixels, at most half a pixel from the peaks; peaks on the border stay.
    """
    height, width = heatmap.shape
    x, y = peaks[:, 0], peaks[:, 1]
    centre = heatmap[y, x]

    def offset(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        curvature = before + after - 2.0 * centre
        is_peak = curvature < -MIN_CURVATURE
        bounded = torch.where(is_peak, curvature, torch.full_like(curvature, -MIN_CURVATURE))
        step = 0.5 * (before - after) / bounded
        return torch.where(is_peak, step, torch.zeros_like(step)).clamp(
            -MAX_OFFSET_PX, MAX_OFFSET_PX
        )

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
    """Local maxima of detector maps at sub-pixel positions, by decreasing probability.

    Not differentiable.

    Args:
        heatmap: (B, 1, H, W) float in [0, 1], keypoint probabilities.
        min_probability: weaker maxima are dropped, [0, 1].
        nms_radius_px: radius of the non-maximum suppression (a square), pixels.
        max_keypoints: number of keypoints per image.
        allowed: (B, 1, H, W) bool or 0/1, where keypoints may lie; everywhere when None.
        border_px: width of the border without keypoints, pixels.

    Returns:
        Per image the keypoints (N, 2) float, pixels (x, y), and their probabilities (N,).
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
        # A stable sort keeps the order of equal scores the same in every run.
        order = torch.argsort(scores, descending=True, stable=True)[:max_keypoints]
        peaks, scores = torch.stack([columns, rows], dim=1)[order], scores[order]
        single = ~_near_earlier_peak(peaks, nms_radius_px)
        found.append((refine_peaks(image_map, peaks[single]), scores[single]))
    return found


def _near_earlier_peak(peaks: torch.Tensor, radius_px: int) -> torch.Tensor:
    """Which peaks (N, 2) lie within the radius of an earlier one: (N,) bool.

    After non-maximum suppression only pixels of equal probability can.
    """
    gap = (peaks[:, None] - peaks[None]).abs().amax(-1)
    return (gap <= radius_px).tril(diagonal=-1).any(1)


def sample_descriptors(
    descriptor_map: torch.Tensor, keypoints: torch.Tensor, stride: float
) -> torch.Tensor:
    """Descriptors at pixel positions, interpolated bilinearly and normalised.

    Args:
        descriptor_map: (B, D, H / stride, W / stride) float.
        keypoints: (B, N, 2), image pixels (x, y).
        stride: image pixels per cell of the map.

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
    """Mutual nearest neighbours by cosine similarity.

    Args:
        fixed: (N, D) float, unit length.
        moving: (M, D) float, unit length.
        max_distance_ratio: Lowe's ratio test (IJCV 2004): largest ratio of the distances to the
            nearest and the second nearest descriptor; 1 = off.
        allowed: (N, M) bool, which pairs may match; all when None.

    Returns:
        Index pairs (K, 2) long (row of ``fixed``, row of ``moving``), and their cosine similarity
        (K,).
    """
    if len(fixed) == 0 or len(moving) == 0:
        return torch.zeros(0, 2, dtype=torch.long, device=fixed.device), fixed.new_zeros(0)
    similarity = fixed @ moving.T
    if allowed is not None:
        similarity = similarity.masked_fill(~allowed, FORBIDDEN_SIMILARITY)
    best, nearest = similarity.max(dim=1)
    rows = torch.arange(len(fixed), device=fixed.device)
    keep = (similarity.argmax(dim=0)[nearest] == rows) & (best > FORBIDDEN_SIMILARITY)
    if max_distance_ratio < 1.0 and len(moving) > 1:
        second = similarity.topk(2, dim=1).values[:, 1]
        distance, second_distance = ((2.0 - 2.0 * s).clamp_min(0.0).sqrt() for s in (best, second))
        keep &= distance < max_distance_ratio * second_distance
    return torch.stack([rows, nearest], dim=1)[keep], best[keep]
