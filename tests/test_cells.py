"""Geometry of the coarse grid: centres, vessel cells, and true matches of a known transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from geometry.cells import cell_centres, find_cell_matches, nearest_cell, vessel_cells
from geometry.matrices import affine_about, image_centre
from geometry.points import warp_points

STRIDE = 8


def fields(n_pairs=1, size=(64, 96)):
    return torch.ones(n_pairs, 1, *size), torch.ones(n_pairs, 1, *size)


def matrix(H):
    return torch.from_numpy(np.asarray(H)).float()[None]


@pytest.mark.parametrize("offset", [0.0, -0.5, 3.5])
def test_every_centre_is_nearest_to_its_own_cell(offset):
    centres = cell_centres((64, 96), STRIDE, offset)
    cells, on_grid = nearest_cell(centres, (64, 96), STRIDE, offset)
    assert on_grid.all() and torch.equal(cells, torch.arange(8 * 12))
    assert centres[13].tolist() == [8 + offset, 8 + offset]


def test_points_outside_or_not_finite_are_on_no_cell():
    points = torch.tensor(
        [[-5.0, 3.0], [95.0, 3.0], [float("nan"), 0.0], [float("inf"), 0.0], [3.9, 3.9]]
    )
    cells, on_grid = nearest_cell(points, (64, 96), STRIDE)
    assert on_grid.tolist() == [False, False, False, False, True] and cells.tolist() == [0] * 5


def test_identity_matches_every_cell_with_itself():
    matches = find_cell_matches(torch.eye(3)[None], *fields(), STRIDE)
    assert torch.equal(matches.fixed_cell, torch.arange(96)) and torch.equal(
        matches.moving_cell, torch.arange(96)
    )
    assert matches.offset_px.abs().max() == 0


def test_shift_by_a_cell_and_a_bit():
    H = matrix([[1, 0, 8 + 1.25], [0, 1, -0.75], [0, 0, 1]])
    matches = find_cell_matches(H, *fields(), STRIDE)
    assert torch.equal(matches.moving_cell, matches.fixed_cell + 1)
    assert torch.allclose(
        matches.offset_px, torch.tensor([1.25, -0.75]).expand(len(matches.batch), 2), atol=1e-5
    )
    assert (matches.fixed_cell % 12 < 11).all()


@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_matches_agree_with_the_transform_and_are_mutual(offset):
    size = (96, 128)
    matrices = torch.cat(
        [
            matrix(
                affine_about(
                    angle, scale, 0.05, image_centre(size), image_centre(size) + [7.3, -4.1]
                )
            )
            for angle, scale in ((33.0, 1.2), (-70.0, 0.8), (180.0, 1.0))
        ]
    )
    fixed_fov, moving_fov = fields(3, size)
    matches = find_cell_matches(matrices, fixed_fov, moving_fov, STRIDE, offset)
    centres = cell_centres(size, STRIDE, offset)
    for index in range(3):
        own = matches.pick(matches.batch == index)
        assert len(own.batch) > 20
        truth = warp_points(centres[own.fixed_cell], matrices[index])
        assert torch.allclose(centres[own.moving_cell] + own.offset_px, truth, atol=1e-3)
        assert own.offset_px.abs().max() <= STRIDE / 2 + 1e-3
        for cells in (own.fixed_cell, own.moving_cell):
            assert len(torch.unique(cells)) == len(cells)


def test_only_where_both_images_show_retina():
    fixed_fov, moving_fov = fields()
    fixed_fov[..., :, :48] = 0
    moving_fov[..., :32, :] = 0
    matches = find_cell_matches(torch.eye(3)[None], fixed_fov, moving_fov, STRIDE)
    rows, columns = matches.fixed_cell // 12, matches.fixed_cell % 12
    assert columns.min() == 6 and rows.min() == 4 and len(matches.batch) == 6 * 4


def test_no_overlap_gives_no_match():
    matches = find_cell_matches(matrix([[1, 0, 500], [0, 1, 0], [0, 0, 1]]), *fields(), STRIDE)
    assert len(matches.batch) == 0 and matches.offset_px.shape == (0, 2)


@pytest.mark.parametrize("shift", range(8))
def test_vessel_of_one_pixel_survives_the_mask(shift):
    """Wherever it lies against the grid, each row of cells that it crosses keeps a vessel cell."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20 + shift] = 1
    cells = vessel_cells(mask, STRIDE, 0.05).view(8, 8)
    column = (20 + shift + 4) // 8
    assert torch.equal(cells.sum(1), torch.ones(8)) and torch.equal(cells[:, column], torch.ones(8))


def test_vessel_cells_follow_their_threshold():
    mask = torch.zeros(2, 1, 64, 64)
    mask[1, 0, 28:36, 28:32] = 1
    assert vessel_cells(mask, STRIDE, 0.5)[0].sum() == 0
    assert torch.nonzero(vessel_cells(mask, STRIDE, 0.5)[1]).flatten().tolist() == [4 * 8 + 4]
    assert vessel_cells(mask, STRIDE, 0.51)[1].sum() == 0
