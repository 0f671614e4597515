"""Admitted places of the keypoint expansion, in the frames of a batch of views."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from geometry.points import inside, sample_map, warp_points
from loss.value_map import ValueMap

SPOT_SIGMAS = 3.0  # reach of a drawn spot, standard deviations
# The pixels near a place are those where a wider Gaussian spot drawn there is high.
NEAR_SPOT_WIDTH = 1.5  # its standard deviation, in units of the label's sigma; by hand
NEAR_SPOT_HEIGHT = 0.1  # its height from which a pixel is near; by hand


class AdmittedPlaces(NamedTuple):
    """Admitted places of a batch, one (N, 2) tensor of pixels (x, y) per sample.

    Attributes:
        in_fixed: inside the field of view of the fixed image; fixed pixels.
        in_moving: inside the field of view of the moving image; moving pixels.
        in_both: inside the overlap; fixed pixels.
    """

    in_fixed: list[torch.Tensor]
    in_moving: list[torch.Tensor]
    in_both: list[torch.Tensor]


def admitted_places(
    batch: Mapping[str, Any], value_map: ValueMap, overlap: torch.Tensor
) -> AdmittedPlaces:
    """Admitted places of each sample that its views show.

    A place that only one of the two images shows is a keypoint of that image.

    Args:
        batch: collated views; see :class:`loss.term_inputs.TermInputs`.
        value_map: read only.
        overlap: (B, 1, H, W), 1 where both images show retina, fixed frame.
    """
    places = AdmittedPlaces([], [], [])
    for index, key in enumerate(batch["key"]):
        in_fixed = own_to_fixed(value_map.admitted(key), batch["H_fix_to_own"][index])
        in_moving = warp_points(in_fixed, batch["H_fix_to_mov"][index])
        places.in_both.append(in_fixed[in_mask(in_fixed, overlap[index])])
        places.in_fixed.append(in_fixed[in_mask(in_fixed, batch["fixed_fov"][index])])
        places.in_moving.append(in_moving[in_mask(in_moving, batch["moving_fov"][index])])
    return places


def own_to_fixed(points: torch.Tensor, H_fix_to_own: torch.Tensor) -> torch.Tensor:
    """Map points (N, 2) from the sample's own frame to fixed pixels.

    Convention: the matrix (3, 3) is the *inverse* direction, fixed to own; the result is on its
    device and of its type.
    """
    return warp_points(points.to(H_fix_to_own), torch.linalg.inv(H_fix_to_own))


def in_mask(points: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Which points (N, 2), pixels (x, y), lie on a pixel of a mask (1, H, W): (N,) bool."""
    height, width = mask.shape[-2:]
    on_image = inside(points, (height, width))
    if len(points) == 0:
        return on_image
    return on_image & (sample_map(mask[None], points[None])[0, :, 0] > 0.5)


def draw_places(heatmap: torch.Tensor, places: list[torch.Tensor], sigma_px: float) -> torch.Tensor:
    """Add Gaussian spots of height 1 to label heatmaps; where they overlap, the maximum counts.

    As in ``dataset.junctions.gaussian_heatmap``, a spot ends ``SPOT_SIGMAS`` standard deviations
    from the pixel of its centre.

    Args:
        heatmap: (B, 1, H, W) in [0, 1].
        places: per sample (N, 2), pixels (x, y).
        sigma_px: standard deviation of a spot, pixels.

    Returns:
        A new (B, 1, H, W) in [0, 1].
    """
    height, width = heatmap.shape[-2:]
    points = torch.cat(places).to(heatmap)
    counts = torch.tensor([len(each) for each in places], device=heatmap.device)
    sample = torch.repeat_interleave(torch.arange(len(places), device=heatmap.device), counts)
    reach = math.ceil(SPOT_SIGMAS * sigma_px)
    window = torch.arange(-reach, reach + 1, device=heatmap.device)
    pixels = points.round().long()[:, :, None] + window  # (N, 2, K): x and y of the window
    along = torch.exp(-0.5 * ((pixels - points[:, :, None]) / sigma_px) ** 2)
    values = along[:, 1, :, None] * along[:, 0, None, :]
    x, y = pixels[:, 0, None, :], pixels[:, 1, :, None]
    on_image = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    target = (sample[:, None, None] * height + y) * width + x
    drawn = heatmap.flatten().scatter_reduce(0, target[on_image], values[on_image], "amax")
    return drawn.reshape(heatmap.shape)


def near_places(raster: torch.Tensor, places: list[torch.Tensor], sigma_px: float) -> torch.Tensor:
    """Pixels that the spot of a label at one of the places would reach.

    Args:
        raster: (B, 1, H, W), of the size and on the device of the result.
        places: per sample (N, 2), pixels (x, y).
        sigma_px: standard deviation of the spots in the labels, pixels.

    Returns:
        (B, 1, H, W) bool.
    """
    spots = draw_places(torch.zeros_like(raster), places, NEAR_SPOT_WIDTH * sigma_px)
    return spots >= NEAR_SPOT_HEIGHT
