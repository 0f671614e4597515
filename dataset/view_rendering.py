"""One view of a sample: what is drawn for it, and its making on a CPU.

:mod:`dataset.device_views` makes views of what is drawn here in whole batches, on any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from dataset.photometric import Look, PhotometricRanges, apply_look, draw_look, run_of
from dataset.samples import Channel
from dataset.views import ViewGeometry, draw_geometry
from geometry.matrices import Size
from geometry.points import on_mask, warp_points
from geometry.rasters import warp_planes

# Rasters of each image: image, vessel mask, junction heatmap, field of view.
FIXED_CHANNELS = (Channel.FIXED, Channel.MASK, Channel.HEATMAP, Channel.FIXED_FIELD)
MOVING_CHANNELS = (Channel.MOVING, Channel.MASK, Channel.HEATMAP, Channel.MOVING_FIELD)
ROLES = ("fixed", "moving")
N_RANKS = 1 << 22  # sixteen times the pixels of an image of 512 x 512
TRIED_PER_ANCHOR = 4  # points that are mapped for each anchor before all are; chosen by hand
RANK_SEED = 20_242  # of the table of ranks; chosen by hand


@dataclass(frozen=True)
class ViewPlan:
    """Everything random about a view.

    Attributes:
        H_fix_to_own, H_fix_to_mov: (3, 3) float64, from fixed pixels to pixels of the sample's
            stack and to moving pixels.
        size: (height, width) of both images, pixels.
        looks: appearance of the fixed and of the moving image; None: unchanged.
        ranks_at: where the ranks of its pixels begin in :func:`rank_table`.
        anchor_shifts: (n_anchors, 2) float32, pixels; from pixel centres to anchors.
    """

    H_fix_to_own: np.ndarray
    H_fix_to_mov: np.ndarray
    size: Size
    looks: tuple[Look | None, Look | None]
    ranks_at: int
    anchor_shifts: np.ndarray

    @property
    def H_mov_to_own(self) -> np.ndarray:
        """(3, 3) float64, from moving pixels to pixels of the sample's stack."""
        return self.H_fix_to_own @ np.linalg.inv(self.H_fix_to_mov)

    @property
    def own_per_fixed(self) -> float:
        """Pixels of the sample's stack per fixed pixel, sqrt(|det|)."""
        return float(np.sqrt(abs(np.linalg.det(self.H_fix_to_own[:2, :2]))))


@cache
def rank_table() -> np.ndarray:
    """(N_RANKS,) int32, the numbers 0 ... N_RANKS - 1 in random order; read only.

    The vessel points with the highest ranks become anchors, so that every device draws the same.
    """
    ranks = np.random.default_rng(RANK_SEED).permutation(N_RANKS).astype(np.int32)
    ranks.flags.writeable = False
    return ranks


def draw_view(
    stack: torch.Tensor,
    geometry: ViewGeometry,
    ranges: PhotometricRanges | None,
    n_anchors: int,
    rng: np.random.Generator,
) -> ViewPlan:
    """Draw a view of a sample.

    Args:
        stack: (6, H, W) uint8 of :func:`dataset.samples.load_sample`.
        geometry: ranges of the geometry.
        ranges: of the appearance; None leaves the images as they are.
        n_anchors: number of anchors.
        rng: of all draws.
    """
    H_fix_to_own, H_fix_to_mov, size = draw_geometry(stack, geometry, rng)
    fixed, moving = (None if ranges is None else draw_look(size, ranges, rng) for _ in ROLES)
    ranks_at = int(rng.integers(max(1, N_RANKS - size[0] * size[1])))
    # Sub-pixel shifts train descriptors between pixel centres too.
    shifts = rng.uniform(-0.5, 0.5, (n_anchors, 2)).astype(np.float32)
    return ViewPlan(H_fix_to_own, H_fix_to_mov, size, (fixed, moving), ranks_at, shifts)


def render_view(
    stack: torch.Tensor, plan: ViewPlan, with_aligned: bool = True
) -> dict[str, torch.Tensor]:
    """Make a view on the CPU.

    Args:
        stack: (6, H, W) uint8 of the sample, from which the view was drawn.
        plan: of the view.
        with_aligned: whether the aligned moving image is made.

    Returns:
        The images, masks, heatmaps and fields of view, the anchors and the aligned moving image;
        see :class:`dataset.aligned_pairs.AlignedPairs`.
    """
    planes = stack.numpy()
    channels = (*FIXED_CHANNELS, Channel.MOVING) if with_aligned else FIXED_CHANNELS
    fixed = _warped(planes, channels, plan.H_fix_to_own, plan.size)
    moving = _warped(planes, MOVING_CHANNELS, plan.H_mov_to_own, plan.size)
    view = {"aligned_moving": torch.from_numpy(fixed[-1:])} if with_aligned else {}
    for role, rasters, look in zip(ROLES, (fixed, moving), plan.looks, strict=True):
        view |= _one_image(role, rasters, look)
    anchors, valid = _choose_anchors(
        view["fixed_mask"][0].numpy() > 0.5, view["moving_fov"][0].numpy(), plan
    )
    return view | {"anchors": torch.from_numpy(anchors), "anchor_valid": torch.from_numpy(valid)}


def _warped(
    planes: np.ndarray, channels: tuple[Channel, ...], H_view_to_own: np.ndarray, size: Size
) -> np.ndarray:
    """Channels of a stack (6, H, W) uint8 in the frame of a view: (C, *size) float32 in [0, 1]."""
    chosen = [planes[channel] for channel in channels]
    return warp_planes(chosen, H_view_to_own, size, antialias=True, factor=1.0 / 255.0)


def _one_image(role: str, rasters: np.ndarray, look: Look | None) -> dict[str, torch.Tensor]:
    """The four items of an image from its rasters (4 or more, H, W), which are overwritten."""
    image, mask, heatmap, field = rasters[:4]
    seen = field > 0.5
    if look is not None:
        image, seen = apply_look(image, seen, look)
    fov = seen.astype(np.float32)
    heatmap *= fov
    items = {"image": image, "fov": fov, "mask": (seen & (mask > 0.5)).astype(np.float32)}
    return {
        f"{role}_{name}": torch.from_numpy(raster)[None]
        for name, raster in (items | {"heatmap": heatmap}).items()
    }


def _choose_anchors(
    fixed_mask: np.ndarray, moving_fov: np.ndarray, plan: ViewPlan
) -> tuple[np.ndarray, np.ndarray]:
    """Random vessel points that both images show.

    Args:
        fixed_mask: (H, W) bool, vessels of the fixed image.
        moving_fov: (H, W), 1 in the field of view of the moving image, else 0.
        plan: of the view.

    Returns:
        (n_anchors, 2) float32, fixed pixels (x, y) in random order, then zeros where there are
        fewer points; and (n_anchors,) bool, True for points.
    """
    n_anchors, n_pixels = len(plan.anchor_shifts), plan.size[0] * plan.size[1]
    places = np.flatnonzero(fixed_mask)
    ranks = run_of(rank_table(), plan.ranks_at, n_pixels)[places]
    chosen = np.zeros((0, 2), dtype=np.int64)
    # Nearly always the highest ranks hold enough points; then the others need not be mapped.
    for n_tried in (TRIED_PER_ANCHOR * n_anchors, len(places)):
        tried = places
        if n_tried < len(places):
            tried = places[np.argpartition(ranks, -n_tried)[-n_tried:]]
        points = np.stack([tried % plan.size[1], tried // plan.size[1]], axis=1)
        seen = on_mask(warp_points(points.astype(np.float64), plan.H_fix_to_mov), moving_fov)
        tried, points = tried[seen], points[seen]
        order = np.argsort(-run_of(rank_table(), plan.ranks_at, n_pixels)[tried])
        chosen = points[order[:n_anchors]]
        if len(chosen) == n_anchors:
            break
    anchors = np.zeros((n_anchors, 2), dtype=np.float32)
    anchors[: len(chosen)] = chosen + plan.anchor_shifts[: len(chosen)]
    return anchors, np.arange(n_anchors) < len(chosen)
