"""Keypoint extraction, sampling of descriptors, and descriptor matching."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dataset.junctions import gaussian_heatmap
from geometry.matrices import affine_about, image_centre
from geometry.points import pixel_grid, warp_points
from geometry.rasters import warp_image
from model.super_retina_multimodal import ModelSettings, SuperRetinaMultimodal
from registration.keypoints import (
    extract_keypoints,
    match_descriptors,
    non_maximum_suppression,
    refine_peaks,
    sample_descriptors,
)
from registration.trained_matchers import build_model

SIZE = (64, 96)


def heatmap_of(
    points: np.ndarray, sigma: float = 2.0, heights: tuple[float, ...] = ()
) -> torch.Tensor:
    """(1, 1, *SIZE) with a Gaussian at each point."""
    heights = heights or (1.0,) * len(points)
    maps = [
        height * gaussian_heatmap(point[None], SIZE, sigma)
        for point, height in zip(points, heights, strict=True)
    ]
    return torch.from_numpy(np.maximum.reduce(maps))[None, None]


# --- detections ---


def test_peaks_are_found_to_a_tenth_of_a_pixel():
    points = np.array([[20.3, 31.6], [70.45, 12.1], [50.0, 50.0], [85.25, 40.75]])
    keypoints, scores = extract_keypoints(heatmap_of(points), 0.1, 4, 100)[0]
    assert keypoints.shape == (4, 2) and scores.min() > 0.9
    distance = torch.cdist(keypoints, torch.tensor(points, dtype=torch.float32))
    assert distance.amin(1).max() < 0.1 and distance.amin(0).max() < 0.1


def test_refinement_moves_by_half_a_pixel_at_most_and_keeps_border_peaks():
    heatmap = torch.rand(*SIZE, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.nonzero(
        non_maximum_suppression(heatmap[None, None], 1)[0, 0], as_tuple=True
    )
    peaks = torch.stack([columns, rows], dim=1)
    moved = (refine_peaks(heatmap[None], peaks[None])[0] - peaks).abs().amax(1)
    border = (columns == 0) | (rows == 0) | (columns == SIZE[1] - 1) | (rows == SIZE[0] - 1)
    assert border.any() and (moved[border] == 0).all()
    assert moved.max() <= 0.5 and (moved[~border] > 0).any()


def test_strongest_come_first_and_are_the_ones_kept():
    points = np.array([[20.0, 20.0], [40.0, 40.0], [70.0, 30.0]])
    heatmap = heatmap_of(points, heights=(0.5, 0.9, 0.7))
    keypoints, scores = extract_keypoints(heatmap, 0.1, 4, 2)[0]
    assert torch.allclose(keypoints, torch.tensor(points[[1, 2]], dtype=torch.float32), atol=0.05)
    assert torch.allclose(scores, torch.tensor([0.9, 0.7]))
    assert len(extract_keypoints(heatmap, 0.6, 4, 10)[0][0]) == 2, "weaker than min_probability"


def test_suppression_keeps_the_larger_of_two_near_peaks_only():
    heatmap = heatmap_of(
        np.array([[30.0, 30.0], [34.0, 33.0], [50.0, 30.0]]), sigma=1.0, heights=(0.8, 0.9, 0.7)
    )
    keypoints, _ = extract_keypoints(heatmap, 0.1, 4, 10)[0]
    assert keypoints.round().tolist() == [[34.0, 33.0], [50.0, 30.0]]
    assert len(extract_keypoints(heatmap, 0.1, 2, 10)[0][0]) == 3, (
        "all three are further than 2 px apart"
    )


def test_a_flat_top_is_one_keypoint():
    """Two equal neighbouring pixels (a saturated detector) give one keypoint."""
    heatmap = torch.zeros(1, 1, *SIZE)
    heatmap[..., 30, 40:42] = 0.8
    assert len(extract_keypoints(heatmap, 0.1, 4, 10)[0][0]) == 1


def test_no_keypoint_outside_the_allowed_region_or_on_the_border():
    points = np.array([[20.0, 20.0], [60.0, 20.0], [2.0, 30.0], [93.0, 40.0], [50.0, 61.25]])
    heatmap = heatmap_of(points, sigma=1.5)
    allowed = torch.ones_like(heatmap)
    allowed[..., 40:] = 0
    keypoints, _ = extract_keypoints(heatmap, 0.1, 4, 10, allowed)[0]
    assert keypoints.round().tolist() == [[20.0, 20.0]]
    keypoints, _ = extract_keypoints(heatmap, 0.1, 4, 10, border_px=4)[0]
    assert sorted(keypoints.round().tolist()) == [[20.0, 20.0], [60.0, 20.0]]
    assert len(extract_keypoints(heatmap, 0.1, 4, 10, border_px=0)[0][0]) == 5


def test_empty_maps_and_batches():
    batch = torch.cat([torch.zeros(1, 1, *SIZE), heatmap_of(np.array([[30.0, 30.0]]))])
    empty, one = extract_keypoints(batch, 0.1, 4, 10)
    assert empty[0].shape == (0, 2) and empty[1].shape == (0,) and len(one[0]) == 1
    assert sample_descriptors(torch.rand(1, 8, 16, 24), empty[0][None], 4).shape == (1, 0, 8)


def test_extraction_is_not_differentiable():
    heatmap = heatmap_of(np.array([[30.0, 30.0]])).requires_grad_()
    keypoints, scores = extract_keypoints(heatmap, 0.1, 4, 10)[0]
    assert not keypoints.requires_grad and not scores.requires_grad


# --- descriptors ---


@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("angle, scale", [(0, 1.0), (30, 1.15), (180, 0.9)])
def test_descriptors_find_the_same_place_under_a_warp(stride, angle, scale):
    """Descriptors (mean colour of each cell) are found at mapped points of a warped image.

    The cells are averages of smooth random images, so the warp is visible in the images only.
    """
    fixed_size, moving_size = (128, 192), (160, 144)
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 32, 128 // 8, 192 // 8, generator=generator)
    fixed = F.interpolate(coarse, size=fixed_size, mode="bicubic", align_corners=False)
    H = affine_about(angle, scale, 0.0, image_centre(fixed_size), image_centre(moving_size))
    H_mov_to_fix = torch.tensor(np.linalg.inv(H)).float()[None]
    moving = warp_image(fixed, H_mov_to_fix, moving_size)
    fixed_map, moving_map = F.avg_pool2d(fixed, stride), F.avg_pool2d(moving, stride)
    points = torch.rand(1, 40, 2, generator=generator) * torch.tensor([80.0, 50.0]) + torch.tensor(
        [56.0, 39.0]
    )
    wanted = sample_descriptors(fixed_map, points, stride)[0]
    # All positions of the moving image, four per cell: the nearest descriptor must be at the mapped
    # position.
    everywhere = pixel_grid((moving_size[0] // 2, moving_size[1] // 2))[None] * 2.0 + 0.5
    found = sample_descriptors(moving_map, everywhere, stride)[0]
    nearest = everywhere[0][(wanted @ found.T).argmax(1)]
    error = (nearest - warp_points(points[0], torch.tensor(H).float())).norm(dim=1) / stride
    assert error.median() < 0.5 and (error - error.median()).abs().median() < 0.5
    bias = (nearest - warp_points(points[0], torch.tensor(H).float())).mean(0) / stride
    assert bias.abs().max() < 0.2, "no systematic offset"


def test_descriptors_have_unit_length():
    descriptors = sample_descriptors(5 * torch.randn(2, 16, 16, 24), torch.rand(2, 30, 2) * 60, 4)
    assert torch.allclose(descriptors.norm(dim=-1), torch.ones(2, 30), atol=1e-5)


NETWORKS = {
    "lite": ModelSettings(stem="raw", widths=(8, 16, 16), descriptor_dim=16),
    "lite with ridge stem": ModelSettings(widths=(8, 16, 16), descriptor_dim=16),
    "published": ModelSettings(architecture="published"),
}


def random_network(settings: ModelSettings, seed: int) -> SuperRetinaMultimodal:
    """A network with Kaiming initialisation, so that its descriptors vary over the image."""
    torch.manual_seed(seed)
    model = build_model(settings).eval()
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            # Into a contiguous tensor: the draw must not depend on the memory layout.
            module.weight.data.copy_(
                torch.nn.init.kaiming_normal_(torch.empty(module.weight.shape))
            )
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_shifting_the_image_shifts_the_descriptor_map(name):
    """Descriptors at x equal those at x + d of the image shifted by d; non-square image."""
    torch.manual_seed(5)
    texture = F.interpolate(
        torch.rand(1, 1, 30, 40), size=(96, 128), mode="bicubic", align_corners=False
    ).clamp(0, 1)
    image = torch.full((1, 1, 160, 224), 0.5)
    image[..., 32:128, 32:160] = texture
    model = random_network(NETWORKS[name], 0)
    stride, shift = model.descriptor_stride, 2 * model.size_multiple  # whole cells of every level
    shifted = torch.roll(image, (shift // 2, shift), dims=(2, 3))
    with torch.no_grad():
        maps = model.describe(torch.cat([image, shifted]), "fixed").descriptors
    assert maps.shape[-2:] == (160 // stride, 224 // stride)
    points = torch.rand(1, 50, 2) * torch.tensor([64.0, 40.0]) + torch.tensor([64.0, 60.0])
    before = sample_descriptors(maps[:1], points, stride)
    after = sample_descriptors(maps[1:], points + torch.tensor([shift, shift // 2]), stride)
    elsewhere = sample_descriptors(maps[1:], points, stride)
    agreement, chance = (before * after).sum(-1), (before * elsewhere).sum(-1)
    assert agreement.min() > 0.999
    assert (1 - agreement).mean() < 0.1 * (1 - chance).mean(), "the map is not constant"


@pytest.mark.parametrize("name", NETWORKS)
def test_receptive_field_is_centred_on_the_keypoint(name):
    """The receptive field of a descriptor is centred on the pixel of its keypoint, to half a cell.

    Its centre is the centre of mass of the squared gradient with respect to the image, averaged
    over a block of the coarsest level and over random networks.
    """
    size, offsets = (96, 160), []
    for seed in range(4):
        model = random_network(NETWORKS[name], seed)
        image = torch.rand(1, 1, *size).requires_grad_()
        descriptors = model.describe(image, "fixed").descriptors
        block, stride = max(16, model.size_multiple), model.descriptor_stride
        direction = torch.randn(1, 1, descriptors.shape[1])
        for y in torch.arange(stride / 2 - 0.5, block, stride) + 2 * 16:
            for x in torch.arange(stride / 2 - 0.5, block, stride) + 4 * 16:
                point = torch.tensor([[[float(x), float(y)]]])
                response = (sample_descriptors(descriptors, point, stride) * direction).sum()
                weight = (
                    torch.autograd.grad(response, image, retain_graph=True)[0].square().reshape(-1)
                )
                centre = (pixel_grid(size) * weight[:, None]).sum(0) / weight.sum()
                offsets.append(centre - point[0, 0])
    bias = torch.stack(offsets).mean(0) / stride
    assert bias.abs().max() < 0.5, bias


# --- matches ---


def test_mutual_matches_undo_a_permutation():
    fixed = F.normalize(torch.randn(30, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    pairs, similarity = match_descriptors(fixed, fixed[order])
    assert len(pairs) == 30 and (order[pairs[:, 1]] == pairs[:, 0]).all()
    assert torch.allclose(similarity, torch.ones(30), atol=1e-5)


def test_a_match_must_be_mutual():
    moving = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1)
    fixed = F.normalize(torch.tensor([[1.0, 0.05], [1.0, 0.2]]), dim=1)
    assert match_descriptors(fixed, moving)[0].tolist() == [[0, 0]], (
        "both have 0 as nearest, whose nearest is the first"
    )


def test_ratio_test_drops_the_ambiguous():
    fixed = torch.eye(3)[:2]
    moving = F.normalize(
        torch.tensor([[1.0, 0.30, 0.0], [1.0, 0.0, 0.32], [0.0, 1.0, 0.02], [0.3, 0.0, 1.0]]), dim=1
    )
    assert match_descriptors(fixed, moving)[0].tolist() == [[0, 0], [1, 2]]
    assert match_descriptors(fixed, moving, 0.8)[0].tolist() == [[1, 2]]
    assert len(match_descriptors(fixed[:1], moving[:1], 0.8)[0]) == 1, (
        "with one candidate there is no ratio"
    )


@pytest.mark.parametrize("n_fixed, n_moving", [(0, 5), (5, 0), (0, 0)])
def test_no_descriptors_give_no_matches(n_fixed, n_moving):
    pairs, similarity = match_descriptors(torch.ones(n_fixed, 4), torch.ones(n_moving, 4), 0.8)
    assert pairs.shape == (0, 2) and pairs.dtype == torch.long and similarity.shape == (0,)
