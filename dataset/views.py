"""Geometry of a training view: the part of a sample it shows, and the affine between its images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from dataset.samples import Channel
from geometry.matrices import (
    Size,
    affine_about,
    image_centre,
    size_of_raster,
)
from geometry.points import inside, warp_points

MAX_ATTEMPTS = 12  # draws of a geometry until both images overlap enough
OVERLAP_GRID = 17  # points a side on which the overlap is measured


@dataclass(frozen=True, order=True)
class ViewKey:
    """Index of a view: equal keys give equal views; ordered by epoch, then by index.

    Attributes:
        epoch: from 1 in training; 0 for views outside of training.
        index: of the view in its epoch; it shows sample ``index % len(dataset)``.
    """

    epoch: int
    index: int


@dataclass(frozen=True)
class ViewGeometry:
    """How views are drawn.

    Attributes:
        img_size: side of the square views in pixels; None takes the whole image.
        long_side: long side in pixels to which samples are resized first, so that vessels have the
            width that they have at inference.
        rotation_deg: largest rotation of the moving image in either direction (180 = any angle).
        scale: range of the scale from fixed to moving, uniform in its logarithm.
        translation: largest shift of the moving image, as a share of the view.
        shear: largest shear (tangent).
        zoom: range of the magnification of the fixed image (crops only).
        min_overlap: least overlap of the two images, as a share of the retina in the image that
            shows less of it.
        mirror: mirror both images together in half of the views.
        ramp_epochs: over this number of epochs the rotation range, the logarithm of the scale range
            and the probability of photometric changes grow linearly to their full values; 0 = full
            ranges at once.
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
        """The same with ``share`` of the range of rotation and of the logarithm of scale."""
        return replace(
            self,
            rotation_deg=share * self.rotation_deg,
            scale=(self.scale[0] ** share, self.scale[1] ** share),
        )


def overlap_share(
    stack: torch.Tensor, H_fix_to_own: np.ndarray, H_fix_to_mov: np.ndarray, size: Size
) -> float:
    """Overlap of the two images of a view, measured on a coarse grid.

    Args:
        stack: (6, H, W) uint8 of :func:`dataset.samples.load_sample`.
        H_fix_to_own, H_fix_to_mov: (3, 3) float64, from fixed pixels to pixels of the stack and to
            moving pixels.
        size: (height, width) of both images.

    Returns:
        Share of the retina in the image that shows less of it, in [0, 1].
    """
    H_mov_to_fix = np.linalg.inv(H_fix_to_mov)
    fields = (Channel.FIXED_FIELD, Channel.MOVING_FIELD)
    return max(
        _share_seen(stack, fields, H_fix_to_own, H_fix_to_mov, size),
        _share_seen(stack, fields[::-1], H_fix_to_own @ H_mov_to_fix, H_mov_to_fix, size),
    )


def _share_seen(
    stack: torch.Tensor,
    fields: tuple[Channel, Channel],
    H_view_to_own: np.ndarray,
    H_view_to_other: np.ndarray,
    size: Size,
) -> float:
    """Share of one image's retina that the other shows; ``fields``: their fields of view."""
    ys, xs = np.meshgrid(
        np.linspace(0, size[0] - 1, OVERLAP_GRID),
        np.linspace(0, size[1] - 1, OVERLAP_GRID),
        indexing="ij",
    )
    points = np.stack([xs.ravel(), ys.ravel()], axis=1)
    own = np.round(warp_points(points, H_view_to_own)).astype(int)
    in_frame = inside(own, size_of_raster(stack))
    x, y = np.where(in_frame[:, None], own, 0).T
    here, there = (in_frame & (stack[channel].numpy()[y, x] > 127) for channel in fields)
    return float(
        (here & there & inside(warp_points(points, H_view_to_other), size)).sum()
        / max(here.sum(), 1)
    )


def draw_geometry(
    stack: torch.Tensor, geometry: ViewGeometry, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, Size]:
    """Draw one view of a sample.

    Args:
        stack: (6, H, W) uint8 of :func:`dataset.samples.load_sample`.
        geometry: ranges of the draws.
        rng: of all draws.

    Returns:
        ``H_fix_to_own``, ``H_fix_to_mov`` (3, 3) float64, from fixed pixels to pixels of the stack
        and to moving pixels; and the size (height, width) of both images.
    """
    own_size = size_of_raster(stack)
    size = own_size if geometry.img_size is None else (geometry.img_size, geometry.img_size)
    mirror = geometry.mirror and rng.random() < 0.5
    H_fix_to_own = np.eye(3)
    for attempt in range(MAX_ATTEMPTS):
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
        # The largest shift decreases with every failed attempt, so that the last overlaps wherever
        # there is retina.
        reach = geometry.translation * (1.0 - attempt / MAX_ATTEMPTS)
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
    stack: torch.Tensor, size: Size, zoom: float, rng: np.random.Generator
) -> np.ndarray:
    """Centre (2,) of a crop in the own frame: a vessel pixel that both images show.

    It is moved so that the crop stays inside of the frame. Without such a pixel: the middle.
    """
    own_height, own_width = size_of_raster(stack)
    rasters = stack.numpy()
    seen = rasters[Channel.MASK] & rasters[Channel.FIXED_FIELD] & rasters[Channel.MOVING_FIELD]
    vessels = np.flatnonzero(seen > 127)
    half = np.minimum(0.5 * np.array(size[::-1]) / zoom, 0.5 * np.array([own_width, own_height]))
    centre = image_centre((own_height, own_width))
    if len(vessels):
        row, column = divmod(int(vessels[int(rng.integers(len(vessels)))]), own_width)
        centre = np.array([column, row], dtype=float)
    return np.clip(centre, half - 0.5, np.array([own_width, own_height]) - half - 0.5)
