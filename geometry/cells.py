"""Coarse grid of cells over an image: cell centres, vessel cells, true matches between two images.

Convention:
    The centre of cell (x, y) of a grid of stride s is pixel ``s * (x, y) + offset_px``. A point
    belongs to the cell with the nearest centre, so a cell extends s / 2 pixels to each side. Cells
    are numbered row by row. Matrices are ``H_fix_to_mov`` in pixels (see :mod:`geometry`). This
    differs from :func:`geometry.points.pixels_to_cells`, where cells cover whole pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from geometry.matrices import Size, inverse, size_of_raster
from geometry.points import inside, pixel_grid, sample_map, warp_points


class CellMatches(NamedTuple):
    """Corresponding cells of a batch of pairs.

    Attributes:
        batch: (M,) int64, index of the pair.
        fixed_cell, moving_cell: (M,) int64, numbers of the cells.
        offset_px: (M, 2), true position of the centre of the fixed cell in the moving image minus
            the centre of the moving cell, moving pixels (x, y); at most half a stride along either
            axis.
    """

    batch: torch.Tensor
    fixed_cell: torch.Tensor
    moving_cell: torch.Tensor
    offset_px: torch.Tensor

    def pick(self, rows: torch.Tensor | slice) -> CellMatches:
        """Select matches.

        Args:
            rows: (K,) indices, (M,) bool, or a slice.
        """
        return CellMatches(*(column[rows] for column in self))


def grid_size(image_size: Size, stride: int) -> Size:
    """Rows and columns of cells of an image.

    Args:
        image_size: (height, width), multiples of the stride.
        stride: pixels per cell.
    """
    return image_size[0] // stride, image_size[1] // stride


def cell_centres(
    image_size: Size, stride: int, offset_px: float = 0.0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Centres of the cells of an image, row by row.

    Args:
        image_size: (height, width), multiples of the stride.
        stride: pixels per cell.
        offset_px: centre of cell (0, 0), pixels.
        device: of the result.

    Returns:
        (number of cells, 2) float32, pixels (x, y).
    """
    return pixel_grid(grid_size(image_size, stride), device) * stride + offset_px


def nearest_cell(
    points: torch.Tensor, image_size: Size, stride: int, offset_px: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cell to which each point belongs.

    Args:
        points: (..., 2), pixels (x, y).
        image_size: (height, width), multiples of the stride.
        stride: pixels per cell.
        offset_px: centre of cell (0, 0), pixels.

    Returns:
        Number of the cell (...) int64, 0 outside of the grid; on the grid (...) bool.
    """
    rows, columns = grid_size(image_size, stride)
    cells = torch.round((points - offset_px) / stride)
    # Also False for NaN and infinity: a homography can map a point to infinity.
    on_grid = inside(cells, (rows, columns))
    cells = torch.where(on_grid[..., None], cells, torch.zeros_like(cells)).long()
    return cells[..., 1] * columns + cells[..., 0], on_grid


def vessel_cells(mask: torch.Tensor, stride: int, min_area: float) -> torch.Tensor:
    """Which cells contain a vessel, by area.

    A vessel one pixel wide that crosses a cell of 8 px covers an eighth of it; sampling the mask,
    or averaging and rounding it, would lose such a vessel.

    Args:
        mask: (B, 1, H, W), 1 on vessels.
        stride: pixels per cell.
        min_area: least share of vessel pixels in a cell.

    Returns:
        (B, number of cells) float, 0 or 1.
    """
    rows, columns = grid_size(size_of_raster(mask), stride)
    # Cell i starts at pixel stride * i - stride / 2.
    area = F.avg_pool2d(mask.float(), stride, stride, padding=stride // 2, count_include_pad=False)
    return (area[..., :rows, :columns] >= min_area).float().flatten(1)


def find_cell_matches(
    H_fix_to_mov: torch.Tensor,
    fixed_fov: torch.Tensor,
    moving_fov: torch.Tensor,
    stride: int,
    offset_px: float = 0.0,
) -> CellMatches:
    """Ground-truth matches of pairs with a known matrix.

    Two cells match when each is the nearest cell to the mapped centre of the other, and both
    images show retina there.

    Args:
        H_fix_to_mov: (B, 3, 3).
        fixed_fov: (B, 1, H, W), 1 inside the field of view of the fixed image.
        moving_fov: (B, 1, Hm, Wm), 1 inside the field of view of the moving image.
        stride: pixels per cell.
        offset_px: centre of cell (0, 0), pixels.
    """
    fixed_size, moving_size = (size_of_raster(fov) for fov in (fixed_fov, moving_fov))
    device, n_pairs = H_fix_to_mov.device, len(H_fix_to_mov)
    fixed_centres, moving_centres = (
        cell_centres(size, stride, offset_px, device).expand(n_pairs, -1, -1)
        for size in (fixed_size, moving_size)
    )
    mapped = warp_points(fixed_centres, H_fix_to_mov)
    to_moving, on_moving = nearest_cell(mapped, moving_size, stride, offset_px)
    back = warp_points(moving_centres, inverse(H_fix_to_mov.double()).to(H_fix_to_mov.dtype))
    to_fixed, on_fixed = nearest_cell(back, fixed_size, stride, offset_px)
    numbers = torch.arange(fixed_centres.shape[1], device=device)
    mutual = (
        on_moving
        & (torch.gather(to_fixed, 1, to_moving) == numbers)
        & torch.gather(on_fixed, 1, to_moving)
    )
    # The mapped centre itself must be inside the moving image, not only its cell.
    seen = (sample_map(fixed_fov, fixed_centres)[..., 0] > 0.5) & inside(mapped, moving_size)
    finite = torch.where(on_moving[..., None], mapped, torch.zeros_like(mapped))
    seen &= sample_map(moving_fov, finite)[..., 0] > 0.5
    batch, fixed_cell = torch.nonzero(mutual & seen, as_tuple=True)
    moving_cell = to_moving[batch, fixed_cell]
    return CellMatches(
        batch=batch,
        fixed_cell=fixed_cell,
        moving_cell=moving_cell,
        offset_px=mapped[batch, fixed_cell] - moving_centres[batch, moving_cell],
    )


def possible_cells(
    H_fix_to_mov: torch.Tensor,
    tolerance_px: torch.Tensor,
    fixed_size: Size,
    moving_size: Size,
    stride: int,
    offset_px: float = 0.0,
) -> torch.Tensor:
    """Pairs of cells that may match, given how exactly the matrix is known.

    A moving cell is possible for a fixed cell if the mapped centre of the fixed cell is within the
    tolerance of the square of the moving cell.

    Args:
        H_fix_to_mov: (B, 3, 3).
        tolerance_px: (B,), moving pixels; a pair with 0 has none.
        fixed_size, moving_size: (height, width) of the images, multiples of the stride.
        stride: pixels per cell.
        offset_px: centre of cell (0, 0), pixels.

    Returns:
        (B, number of fixed cells, number of moving cells) bool.
    """
    fixed_centres, moving_centres = (
        cell_centres(size, stride, offset_px, H_fix_to_mov.device)
        for size in (fixed_size, moving_size)
    )
    mapped = warp_points(fixed_centres.expand(len(H_fix_to_mov), -1, -1), H_fix_to_mov)
    gap = (mapped[:, :, None] - moving_centres).abs()
    outside = (gap - 0.5 * stride).clamp_min(0.0).norm(dim=-1)
    radius = tolerance_px[:, None, None]
    return (outside <= radius) & (radius > 0)
