"""Resample rasters of a pair (images, masks, heatmaps, fields of view) from one frame into another."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from kornia.geometry.transform import remap, warp_perspective
from torch.nn.functional import avg_pool2d

from geometry.matrices import Size, resize_matrix
from geometry.transforms import MatrixTransform, Transform, as_transform

NOTICEABLE_SHRINK = 1.15


# --- rasters ---------------------------------------------------------------------------------------------------------


def mean_shrink(H_out_to_source: torch.Tensor) -> float:
    """Source pixels per output pixel along one direction, the largest of a batch (B, 3, 3) of affine matrices."""
    return float(torch.linalg.det(H_out_to_source[:, :2, :2].double()).abs().sqrt().max())


def warp_image(
    source: torch.Tensor,
    H_out_to_source: torch.Tensor,
    out_size: Size,
    mode: str = "bilinear",
    antialias: bool = False,
) -> torch.Tensor:
    """Resample rasters into another frame; what lies outside the source is 0.

    Convention: the matrix goes from the frame of the *output* to that of the source. To warp a whole pair consistently,
    stack all its rasters (image, mask, heatmap, field of view) as channels of one call.

    Args:
        source: (B, C, H, W) float.
        H_out_to_source: (B, 3, 3), pixels.
        out_size: (height, width) of the output.
        mode: "bilinear" or "nearest".
        antialias: average over each output pixel where the output has clearly fewer pixels than the source.

    Returns:
        (B, C, *out_size)
    """
    if antialias and mean_shrink(H_out_to_source) > NOTICEABLE_SHRINK:
        # Twice the resolution, then the mean of 2 x 2: cheaper than blurring a source of which a crop is wanted.
        fine_size = (2 * out_size[0], 2 * out_size[1])
        H_fine_to_out = torch.from_numpy(resize_matrix(fine_size, out_size)).to(H_out_to_source)
        return avg_pool2d(warp_image(source, H_out_to_source @ H_fine_to_out, fine_size, mode), 2)
    H_source_to_out = torch.linalg.inv(H_out_to_source.double()).to(source.dtype)
    return warp_perspective(
        source, H_source_to_out, out_size, mode=mode, padding_mode="zeros", align_corners=True
    )


def valid_overlap(
    H_fix_to_mov: torch.Tensor, fixed_fov: torch.Tensor, moving_fov: torch.Tensor
) -> torch.Tensor:
    """Where the fixed image shows retina that the moving image shows too.

    Args:
        H_fix_to_mov: (B, 3, 3).
        fixed_fov: (B, 1, H, W), 1 inside the field of view.
        moving_fov: (B, 1, Hm, Wm), likewise.

    Returns:
        (B, 1, H, W) of 0 and 1, in the fixed frame.
    """
    seen = warp_image(moving_fov, H_fix_to_mov, tuple(fixed_fov.shape[-2:]))
    return ((seen > 0.5) & (fixed_fov > 0.5)).to(fixed_fov.dtype)


def resample(source: torch.Tensor, source_xy: np.ndarray) -> torch.Tensor:
    """Read rasters (1, C, H, W) at places (height, width, 2), pixels (x, y), bilinearly: (1, C, height, width).

    What lies outside of the source, or is NaN, is 0.
    """
    places = torch.from_numpy(np.nan_to_num(source_xy, nan=-2.0 * max(source.shape[-2:])))
    return remap(
        source,
        places[None, ..., 0],
        places[None, ..., 1],
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    )


def register_onto_fixed(
    moving: np.ndarray, fix_to_mov: np.ndarray | Transform, fixed_size: Size
) -> np.ndarray:
    """The moving image resampled into the fixed frame, black outside: (*fixed_size[, C]) float32.

    Args:
        moving: (H, W) or (H, W, C).
        fix_to_mov: ``H_fix_to_mov`` (3, 3), or a transform.
    """
    transform = as_transform(fix_to_mov)
    H = torch.from_numpy(transform.near_matrix().astype(np.float32))[None]
    shrink = mean_shrink(H)
    if shrink > NOTICEABLE_SHRINK:
        moving = cv2.GaussianBlur(moving, (0, 0), 0.5 * math.sqrt(shrink**2 - 1.0))
    channels = moving[..., None] if moving.ndim == 2 else moving
    source = torch.from_numpy(np.ascontiguousarray(channels, dtype=np.float32)).permute(2, 0, 1)[
        None
    ]
    if isinstance(transform, MatrixTransform):
        warped = warp_image(source, H, fixed_size)
    else:
        warped = resample(source, transform.dense_map(fixed_size))
    warped = warped[0].permute(1, 2, 0).numpy()
    return warped[..., 0] if moving.ndim == 2 else warped
