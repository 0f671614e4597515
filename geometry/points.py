"""Points of an image: mapped by matrices, tested against borders, and read off maps."""

from __future__ import annotations

import numpy as np
import torch

from geometry.matrices import Array, Size

# --- points and maps -------------------------------------------------------------------------------------------------


def warp_points(points: Array, H_from_to: Array) -> Array:
    """Map points by a matrix.

    Args:
        points: (..., N, 2), (x, y) in pixels of the *from* frame.
        H_from_to: (..., 3, 3), numpy or torch like the points.

    Returns:
        (..., N, 2), pixels of the *to* frame.
    """
    homogeneous = points @ H_from_to[..., :, :2].swapaxes(-1, -2) + H_from_to[..., None, :, 2]
    return homogeneous[..., :2] / homogeneous[..., 2:]


def pixel_grid(size: Size, device: torch.device | str = "cpu") -> torch.Tensor:
    """Centres (x, y) of all pixels of an image, row by row: (height * width, 2) float32."""
    ys, xs = torch.meshgrid(
        torch.arange(size[0], device=device), torch.arange(size[1], device=device), indexing="ij"
    )
    return torch.stack([xs, ys], dim=-1).reshape(-1, 2).float()


def pixels_to_cells(points: Array, stride: float) -> Array:
    """Pixel coordinates to coordinates on a map of ``stride`` pixels a cell.

    Convention: cell 0 covers pixels 0 ... stride - 1, so its centre lies at pixel (stride - 1) / 2.
    """
    return (points + 0.5) / stride - 0.5


def cells_to_pixels(cells: Array, stride: float) -> Array:
    """Inverse of :func:`pixels_to_cells`."""
    return (cells + 0.5) * stride - 0.5


def sample_map(
    feature_map: torch.Tensor, points: torch.Tensor, stride: float = 1.0
) -> torch.Tensor:
    """Read a map at pixel positions, bilinearly; the border value continues outside.

    Convention: ``points`` are pixels of the *image*; the map has exactly image size / stride cells.

    Args:
        feature_map: (B, C, H, W).
        points: (B, N, 2), (x, y).
        stride: image pixels per cell.

    Returns:
        (B, N, C)
    """
    height, width = feature_map.shape[-2:]
    cells = pixels_to_cells(points, stride)
    size = torch.tensor([width, height], dtype=cells.dtype, device=cells.device)
    grid = ((2.0 * cells + 1.0) / size - 1.0)[:, :, None].to(feature_map.dtype)
    sampled = torch.nn.functional.grid_sample(
        feature_map, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[..., 0].transpose(1, 2)


def inside(points: Array, size: Size, margin_px: float = 0.0) -> Array:
    """Which points (..., 2) lie on pixels of an image of ``size``, at least ``margin_px`` from its border: bool (...)."""
    x, y = points[..., 0], points[..., 1]
    return (
        (x >= margin_px - 0.5)
        & (x <= size[1] - 0.5 - margin_px)
        & (y >= margin_px - 0.5)
        & (y <= size[0] - 0.5 - margin_px)
    )


def image_corners(size: Size) -> np.ndarray:
    """Centres (x, y) of the four corner pixels: (4, 2)."""
    return np.array(
        [[0, 0], [size[1] - 1, 0], [size[1] - 1, size[0] - 1], [0, size[0] - 1]], dtype=float
    )


def corner_shift(H_before: np.ndarray, H_after: np.ndarray, fixed_size: Size) -> float:
    """By how many moving pixels the farthest moved of the fixed image's corners differs under two ``H_fix_to_mov``; infinite
    where one of them is not finite there."""
    corners = image_corners(fixed_size)
    shift = np.linalg.norm(
        warp_points(corners, H_after) - warp_points(corners, H_before), axis=1
    ).max()
    return float(shift) if np.isfinite(shift) else float("inf")
