"""Keypoints, descriptors and descriptor matches, shared by training, validation and matching."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from geometry.point_sets import PointSet, reads_are_free
from geometry.points import inside, sample_map
from geometry.rasters import away_from_border

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
        heatmap: (B, H, W) float.
        peaks: (B, N, 2) long, pixels (x, y).

    Returns:
        (B, N, 2) float, pixels, at most half a pixel from the peaks; peaks on the border stay.
    """
    height, width = heatmap.shape[1:]
    flat, last = heatmap.flatten(1), height * width - 1
    pixel = peaks[..., 1] * width + peaks[..., 0]
    centre = flat.gather(1, pixel)

    def offset(step: int) -> torch.Tensor:
        """Along x with a step of 1, along y with a step of a row; any value on the border."""
        before = flat.gather(1, (pixel - step).clamp(min=0))
        after = flat.gather(1, (pixel + step).clamp(max=last))
        curvature = before + after - 2.0 * centre
        is_peak = curvature < -MIN_CURVATURE
        bounded = torch.where(is_peak, curvature, -MIN_CURVATURE)
        shift = 0.5 * (before - after) / bounded
        return torch.where(is_peak, shift, 0.0).clamp(-MAX_OFFSET_PX, MAX_OFFSET_PX)

    interior = inside(peaks, (height, width), margin_px=1.0)
    shift = torch.stack([offset(1), offset(width)], dim=-1) * interior[..., None]
    return peaks.to(heatmap.dtype) + shift


def find_keypoints(
    heatmap: torch.Tensor,
    min_probability: float,
    nms_radius_px: int,
    max_keypoints: int,
    allowed: torch.Tensor | None = None,
    border_px: int = 4,
) -> tuple[PointSet, torch.Tensor]:
    """Local maxima of detector maps at sub-pixel positions.

    Not differentiable.

    Args:
        heatmap: (B, 1, H, W) float in [0, 1], keypoint probabilities.
        min_probability: weaker maxima are dropped, [0, 1].
        nms_radius_px: radius of the non-maximum suppression (a square), pixels.
        max_keypoints: number of keypoints per image.
        allowed: (B, 1, H, W) bool or 0/1, where keypoints may lie; everywhere when None.
        border_px: width of the border without keypoints, pixels.

    Returns:
        The keypoints, pixels (x, y), by decreasing probability, and their probabilities (B, N),
        any value at padding.
    """
    heatmap = heatmap.detach().float()
    is_peak = non_maximum_suppression(heatmap, nms_radius_px) & (heatmap > min_probability)
    if allowed is not None:
        is_peak &= allowed > 0.5
    is_peak &= away_from_border(heatmap, border_px)
    pixels, valid = _strongest(heatmap.flatten(1), is_peak.flatten(1), max_keypoints)
    width = heatmap.shape[-1]
    peaks = torch.stack([pixels % width, pixels // width], dim=-1)
    valid &= ~_near_earlier_peak(PointSet(peaks.float(), valid), nms_radius_px)
    points = PointSet(refine_peaks(heatmap[:, 0], peaks), valid)
    return points, heatmap.flatten(1).gather(1, pixels)


def extract_keypoints(
    heatmap: torch.Tensor,
    min_probability: float,
    nms_radius_px: int,
    max_keypoints: int,
    allowed: torch.Tensor | None = None,
    border_px: int = 4,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The keypoints of :func:`find_keypoints` image by image; waits for the device.

    Args:
        heatmap, min_probability, nms_radius_px, max_keypoints, allowed, border_px: see
            :func:`find_keypoints`; the maps are (B, 1, H, W).

    Returns:
        Per image the keypoints (N, 2) float, pixels (x, y), and their probabilities (N,).
    """
    (points, valid), scores = find_keypoints(
        heatmap, min_probability, nms_radius_px, max_keypoints, allowed, border_px
    )
    images = zip(points, scores, valid, strict=True)
    return [(place[chosen], score[chosen]) for place, score, chosen in images]


def _strongest(
    scores: torch.Tensor, is_peak: torch.Tensor, number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest peaks of flat maps (B, P): their pixels (B, N) long, and valid (B, N) bool.

    Of equal ones the first come first, on every device. On a CPU N is the largest number found.
    """
    n_pixels = scores.shape[1]
    number = min(number, n_pixels)
    if reads_are_free(is_peak):
        number = max(1, min(number, int(is_peak.sum(1).max())))
    # The bits of a positive float, read as an integer, have its order. Joined with the place they
    # give each pixel a rank of its own.
    rank = scores.view(torch.int32).long() * n_pixels
    rank += torch.arange(n_pixels - 1, -1, -1, device=scores.device)
    highest = torch.where(is_peak, rank, -1).topk(number, dim=1).values
    return n_pixels - 1 - highest % n_pixels, highest >= 0


def _near_earlier_peak(peaks: PointSet, radius_px: int) -> torch.Tensor:
    """Which peaks lie within the radius (of a square) of an earlier one: (B, N) bool.

    After non-maximum suppression only pixels of equal probability can.
    """
    near = torch.cdist(peaks.points, peaks.points, p=float("inf")) <= radius_px
    return (near & peaks.valid[:, None]).tril(diagonal=-1).any(2)


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
