"""Draw the geometry of a training view: which part of a sample, and the affine matrix between both images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from geometry.matrices import affine_about, image_centre
from geometry.points import inside, warp_points


class ViewKey(NamedTuple):
    """Index of a view: equal keys give equal views. View ``index`` shows sample ``index % len(dataset)``."""

    epoch: int
    index: int


@dataclass(frozen=True)
class ViewGeometry:
    """How views are drawn.

    Attributes:
        img_size: side of the square views in pixels; None takes the whole image.
        long_side: the images are first brought to this long side, so that vessels have the width of inference.
        rotation_deg: the moving side is turned by up to this angle either way (180 = any).
        scale: range of the scale from fixed to moving, drawn evenly in its logarithm.
        translation: largest shift of the moving side, as a share of the view.
        shear: largest shear (tangent).
        zoom: range of the magnification of the fixed side (crops only).
        min_overlap: least overlap of the two views, as a share of the retina in the one that shows less of it.
        mirror: mirror both images together in half of the views.
        ramp_epochs: over so many epochs the ranges of rotation, scale and look grow to those given here; 0 = at once.
    """

    img_size: int | None = 256
    long_side: int = 512
    rotation_deg: float = 45.0
    scale: tuple[float, float] = (0.7, 1.45)
    translation: float = 0.2
    shear: float = 0.05
    zoom: tuple[float, float] = (0.8, 1.25)
    min_overlap: float = 0.4
    mirror: bool = True
    ramp_epochs: int = 0

    def difficulty(self, epoch: int) -> float:
        """Share of the full ranges that an epoch (from 1) draws from, in (0, 1]."""
        return min(1.0, max(epoch, 1) / self.ramp_epochs) if self.ramp_epochs else 1.0

    def eased(self, share: float) -> ViewGeometry:
        """The same with ``share`` of the range of rotation and of (the logarithm of) scale."""
        return replace(
            self,
            rotation_deg=share * self.rotation_deg,
            scale=tuple(end**share for end in self.scale),
        )


def overlap_share(
    stack: torch.Tensor, H_fix_to_own: np.ndarray, H_fix_to_mov: np.ndarray, size: tuple[int, int]
) -> float:
    """Overlap of two views of a size, as a share of the retina in the view that shows less of it; on a coarse grid."""
    H_mov_to_fix = np.linalg.inv(H_fix_to_mov)
    return max(
        _share_seen(stack, (4, 5), H_fix_to_own, H_fix_to_mov, size),
        _share_seen(stack, (5, 4), H_fix_to_own @ H_mov_to_fix, H_mov_to_fix, size),
    )


def _share_seen(
    stack: torch.Tensor,
    fields: tuple[int, int],
    H_view_to_own: np.ndarray,
    H_view_to_other: np.ndarray,
    size: tuple[int, int],
) -> float:
    """Share of one view's retina that the other shows; ``fields`` are their channels of the stack."""
    ys, xs = np.meshgrid(
        np.linspace(0, size[0] - 1, 17), np.linspace(0, size[1] - 1, 17), indexing="ij"
    )
    points = np.stack([xs.ravel(), ys.ravel()], axis=1)
    own = np.round(warp_points(points, H_view_to_own)).astype(int)
    in_frame = inside(own, tuple(stack.shape[-2:]))
    x, y = np.where(in_frame[:, None], own, 0).T
    here, there = (in_frame & (stack[channel].numpy()[y, x] > 127) for channel in fields)
    return float(
        (here & there & inside(warp_points(points, H_view_to_other), size)).sum()
        / max(here.sum(), 1)
    )


def draw_geometry(
    stack: torch.Tensor, geometry: ViewGeometry, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Draw one view of a sample.

    Args:
        stack: (6, H, W) of :func:`load_sample`.

    Returns:
        ``H_fix_to_own``, ``H_fix_to_mov`` (3, 3), and the size (height, width) of both views.
    """
    own_size = tuple(stack.shape[-2:])
    size = own_size if geometry.img_size is None else (geometry.img_size, geometry.img_size)
    mirror = geometry.mirror and rng.random() < 0.5
    H_fix_to_own = np.eye(3)
    for attempt in range(12):
        if geometry.img_size is not None:
            zoom = np.exp(rng.uniform(*np.log(geometry.zoom)))
            H_fix_to_own = affine_about(
                0.0,
                1.0 / zoom,
                0.0,
                image_centre(size),
                _crop_centre(stack, size, zoom, rng),
                mirror,
            )
        elif mirror:
            H_fix_to_own = affine_about(0.0, 1.0, 0.0, image_centre(size), image_centre(size), True)
        # Each failed attempt asks for less shift, so that the last one overlaps for certain where there is retina.
        reach = geometry.translation * (1.0 - attempt / 12.0)
        shift = rng.uniform(-reach, reach, 2) * np.array(size[::-1])
        H_fix_to_mov = affine_about(
            rng.uniform(-geometry.rotation_deg, geometry.rotation_deg),
            float(np.exp(rng.uniform(*np.log(geometry.scale)))),
            rng.uniform(-geometry.shear, geometry.shear),
            image_centre(size),
            image_centre(size) + shift,
        )
        if overlap_share(stack, H_fix_to_own, H_fix_to_mov, size) >= geometry.min_overlap:
            break
    return H_fix_to_own, H_fix_to_mov, size


def _crop_centre(
    stack: torch.Tensor, size: tuple[int, int], zoom: float, rng: np.random.Generator
) -> np.ndarray:
    """Centre of a crop in the own frame: on a vessel that both images show, moved so that the crop stays inside."""
    own_height, own_width = stack.shape[-2:]
    vessels = torch.nonzero((stack[2] > 127) & (stack[4] > 127) & (stack[5] > 127))
    half = np.minimum(0.5 * np.array(size[::-1]) / zoom, 0.5 * np.array([own_width, own_height]))
    centre = image_centre((own_height, own_width))
    if len(vessels):
        centre = vessels[int(rng.integers(len(vessels)))].numpy()[::-1].astype(float)
    return np.clip(centre, half - 0.5, np.array([own_width, own_height]) - half - 0.5)


def draw_anchors(
    fixed_mask: np.ndarray,
    moving_fov: np.ndarray,
    H_fix_to_mov: np.ndarray,
    n_anchors: int,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random vessel points that both images show.

    Args:
        fixed_mask: (H, W), vessels of the fixed view; moving_fov: (Hm, Wm), field of view of the moving view.

    Returns:
        (n_anchors, 2) float32 fixed pixels in random order, zeros behind the real ones, and (n_anchors,) bool.
    """
    rows, columns = np.nonzero(fixed_mask > 0.5)
    points = np.stack([columns, rows], axis=1).astype(np.float64)
    mapped = np.round(warp_points(points, H_fix_to_mov)).astype(int)
    on_image = inside(mapped, moving_fov.shape)
    x, y = np.where(on_image[:, None], mapped, 0).T
    points = points[on_image & (moving_fov[y, x] > 0.5)] if len(points) else points
    chosen = points[rng.permutation(len(points))[:n_anchors]]
    anchors = np.zeros((n_anchors, 2), dtype=np.float32)
    # Off the pixel grid, so that descriptors are learnt between the centres too.
    anchors[: len(chosen)] = chosen + rng.uniform(-0.5, 0.5, chosen.shape)
    return torch.from_numpy(anchors), torch.from_numpy(np.arange(n_anchors) < len(chosen))
