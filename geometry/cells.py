"""Geometry of a coarse grid of cells: where cells sit, which hold vessels, and which of two images correspond.

Convention: cell (x, y) of a grid of stride s sits on pixel ``s * (x, y) + offset_px``; a point belongs to the cell it is
nearest to, so a cell reaches s / 2 pixels to each side. Cells are numbered row by row. Matrices are ``H_fix_to_mov`` in
pixels (geometry/__init__.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from geometry.matrices import Size
from geometry.points import inside, pixel_grid, sample_map, warp_points


class CellMatches(NamedTuple):
    """Corresponding cells of a batch of pairs.

    Attributes:
        batch: (M,) index of the pair.
        fixed_cell, moving_cell: (M,) numbers of the cells.
        offset_px: (M, 2), where the centre of the fixed cell truly maps to, relative to the centre of the moving cell,
            moving pixels; at most half a stride along either axis.
    """

    batch: torch.Tensor
    fixed_cell: torch.Tensor
    moving_cell: torch.Tensor
    offset_px: torch.Tensor

    def pick(self, rows: torch.Tensor | slice) -> CellMatches:
        """Some of the matches, by index, by bool or by slice."""
        return CellMatches(*(column[rows] for column in self))


def grid_size(image_size: Size, stride: int) -> Size:
    """Rows and columns of cells of an image of ``image_size`` (multiples of the stride)."""
    return image_size[0] // stride, image_size[1] // stride


def cell_centres(
    image_size: Size, stride: int, offset_px: float = 0.0, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Pixels (x, y) on which the cells of an image sit, row by row: (number of cells, 2)."""
    return pixel_grid(grid_size(image_size, stride), device) * stride + offset_px


def nearest_cell(
    points: torch.Tensor, image_size: Size, stride: int, offset_px: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cell to which each point (..., 2) belongs: its number (...), 0 where outside of the grid, and bool (...) inside."""
    rows, columns = grid_size(image_size, stride)
    cells = torch.round((points - offset_px) / stride)
    # Also false for what is not a number: a homography may send a point to infinity.
    on_grid = inside(cells, (rows, columns))
    cells = torch.where(on_grid[..., None], cells, torch.zeros_like(cells)).long()
    return cells[..., 1] * columns + cells[..., 0], on_grid


def vessel_cells(mask: torch.Tensor, stride: int, min_area: float) -> torch.Tensor:
    """Which cells hold a vessel, by area: a vessel one pixel wide that crosses a cell of 8 px covers an eighth of it, and
    would be lost to a mask that is sampled or averaged and rounded.

    Args:
        mask: (B, 1, H, W), 1 on vessels.
        min_area: least share of the cell's pixels.

    Returns:
        (B, number of cells) float, 0 or 1.
    """
    rows, columns = grid_size(tuple(mask.shape[-2:]), stride)
    # Cell i reaches from pixel stride * i - stride / 2 on.
    area = F.avg_pool2d(mask.float(), stride, stride, padding=stride // 2, count_include_pad=False)
    return (area[..., :rows, :columns] >= min_area).float().flatten(1)


def find_cell_matches(
    H_fix_to_mov: torch.Tensor,
    fixed_fov: torch.Tensor,
    moving_fov: torch.Tensor,
    stride: int,
    offset_px: float = 0.0,
) -> CellMatches:
    """True matches of a pair with a known transform: cells that are each other's nearest, where both images show retina.

    Args:
        H_fix_to_mov: (B, 3, 3).
        fixed_fov: (B, 1, H, W), moving_fov: (B, 1, Hm, Wm), 1 inside the field of view.
        stride, offset_px: of the grid.
    """
    fixed_size, moving_size = (tuple(fov.shape[-2:]) for fov in (fixed_fov, moving_fov))
    device, n_pairs = H_fix_to_mov.device, len(H_fix_to_mov)
    fixed_centres, moving_centres = (
        cell_centres(size, stride, offset_px, device).expand(n_pairs, -1, -1)
        for size in (fixed_size, moving_size)
    )
    mapped = warp_points(fixed_centres, H_fix_to_mov)
    to_moving, on_moving = nearest_cell(mapped, moving_size, stride, offset_px)
    back = warp_points(
        moving_centres, torch.linalg.inv(H_fix_to_mov.double()).to(H_fix_to_mov.dtype)
    )
    to_fixed, on_fixed = nearest_cell(back, fixed_size, stride, offset_px)
    numbers = torch.arange(fixed_centres.shape[1], device=device)
    mutual = (
        on_moving
        & (torch.gather(to_fixed, 1, to_moving) == numbers)
        & torch.gather(on_fixed, 1, to_moving)
    )
    # Where the point truly lies must be seen by the moving image, not only the cell it falls into.
    seen = (sample_map(fixed_fov, fixed_centres)[..., 0] > 0.5) & inside(mapped, moving_size)
    seen &= (
        sample_map(moving_fov, torch.where(on_moving[..., None], mapped, torch.zeros_like(mapped)))[
            ..., 0
        ]
        > 0.5
    )
    batch, fixed_cell = torch.nonzero(mutual & seen, as_tuple=True)
    moving_cell = to_moving[batch, fixed_cell]
    return CellMatches(
        batch,
        fixed_cell,
        moving_cell,
        mapped[batch, fixed_cell] - moving_centres[batch, moving_cell],
    )
