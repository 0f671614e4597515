"""Points of an image: mapping by matrices, border tests, bilinear sampling of maps.

See :mod:`geometry` for the convention.
"""

from __future__ import annotations

import numpy as np
import torch

from geometry.matrices import Array, Size


def warp_points(points: Array, H_from_to: Array) -> Array:
    """Map points by a matrix.

    Convention:
        Direction *from* -> *to*; pixels (x, y), not normalised.

    Args:
        points: (..., N, 2), pixels of the *from* frame.
        H_from_to: (..., 3, 3), numpy or torch like the points.

    Returns:
        (..., N, 2), pixels of the *to* frame.
    """
    homogeneous = points @ H_from_to[..., :, :2].swapaxes(-1, -2) + H_from_to[..., None, :, 2]
    return homogeneous[..., :2] / homogeneous[..., 2:]


def pixel_grid(size: Size, device: torch.device | str = "cpu") -> torch.Tensor:
    """Centres of all pixels of an image, row by row.

    Args:
        size: (height, width).
        device: of the result.

    Returns:
        (height * width, 2) float32, pixels (x, y).
    """
    ys, xs = torch.meshgrid(
        torch.arange(size[0], device=device), torch.arange(size[1], device=device), indexing="ij"
    )
    return torch.stack([xs, ys], dim=-1).reshape(-1, 2).float()


def pixels_to_cells(points: Array, stride: float) -> Array:
    """Pixel coordinates to coordinates on a map with one cell per ``stride`` pixels.

    Convention:
        Cell 0 covers pixels 0 ... stride - 1, so its centre lies at pixel (stride - 1) / 2
        (``align_corners=False``).

    Args:
        points: (..., 2), pixels of the image.
        stride: image pixels per cell.

    Returns:
        (..., 2), cells; cell centres at integers.
    """
    return (points + 0.5) / stride - 0.5


def cells_to_pixels(cells: Array, stride: float) -> Array:
    """Inverse of :func:`pixels_to_cells`.

    Args:
        cells: (..., 2), cells; cell centres at integers.
        stride: image pixels per cell.

    Returns:
        (..., 2), pixels of the image.
    """
    return (cells + 0.5) * stride - 0.5


def sample_map(
    feature_map: torch.Tensor, points: torch.Tensor, stride: float = 1.0
) -> torch.Tensor:
    """Sample a map at pixel positions with bilinear interpolation.

    Convention:
        ``points`` are pixels (x, y) of the *image*, not normalised; the map has exactly
        image size / stride cells, placed as in :func:`pixels_to_cells` (``align_corners=False``).
        Padding: the border value continues outside.

    Args:
        feature_map: (B, C, H, W).
        points: (B, N, 2).
        stride: image pixels per cell.

    Returns:
        (B, N, C)
    """
    height, width = feature_map.shape[-2:]
    cells = pixels_to_cells(points, stride)
    # The sizes stay numbers: a tensor of them would have to be copied to the device first.
    x, y = (2.0 * cells + 1.0).unbind(-1)
    grid = torch.stack([x / width - 1.0, y / height - 1.0], dim=-1)[:, :, None]
    sampled = torch.nn.functional.grid_sample(
        feature_map,
        grid.to(feature_map.dtype),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return sampled[..., 0].transpose(1, 2)


def inside(points: Array, size: Size, margin_px: float = 0.0) -> Array:
    """Which points lie within an image.

    Convention:
        The image covers -0.5 <= x <= width - 0.5: half a pixel beyond the outer pixel centres.

    Args:
        points: (..., 2), pixels (x, y).
        size: (height, width) of the image.
        margin_px: least distance from the border.

    Returns:
        (...) bool; False for NaN and infinite points.
    """
    x, y = points[..., 0], points[..., 1]
    return (
        (x >= margin_px - 0.5)
        & (x <= size[1] - 0.5 - margin_px)
        & (y >= margin_px - 0.5)
        & (y <= size[0] - 0.5 - margin_px)
    )


def on_mask(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Which points lie on a pixel of a mask.

    Args:
        points: (N, 2), pixels (x, y) of the mask.
        mask: (H, W) in [0, 1] or bool; a pixel above 0.5 belongs to it.

    Returns:
        (N,) bool; false outside of the image.
    """
    pixels = np.round(points).astype(int)
    height, width = mask.shape
    on_image = inside(pixels, (height, width))
    x, y = np.where(on_image[:, None], pixels, 0).T
    return on_image & (mask[y, x] > 0.5)


def image_corners(size: Size) -> np.ndarray:
    """Centres of the four corner pixels, clockwise from the top left.

    Args:
        size: (height, width).

    Returns:
        (4, 2) float64, pixels (x, y).
    """
    return np.array(
        [[0, 0], [size[1] - 1, 0], [size[1] - 1, size[0] - 1], [0, size[0] - 1]], dtype=float
    )


def corner_shift(H_before: np.ndarray, H_after: np.ndarray, fixed_size: Size) -> float:
    """Largest distance between a corner of the fixed image under two matrices.

    Args:
        H_before, H_after: ``H_fix_to_mov`` (3, 3).
        fixed_size: (height, width) of the fixed image.

    Returns:
        Moving pixels; infinite where a mapped corner is not finite.
    """
    corners = image_corners(fixed_size)
    shift = np.linalg.norm(
        warp_points(corners, H_after) - warp_points(corners, H_before), axis=1
    ).max()
    return float(shift) if np.isfinite(shift) else float("inf")
