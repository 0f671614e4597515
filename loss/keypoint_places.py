"""Remembered places of the keypoint expansion in the frames of a batch of views; their spots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from geometry.matrices import inverse
from geometry.point_sets import PointSet
from geometry.points import warp_points
from loss.value_map import ValueMap
from utils.transfer import to_device

SPOT_SIGMAS = 3.0  # reach of a drawn spot, standard deviations
# The pixels near a place are those where a wider Gaussian spot drawn there is high.
NEAR_SPOT_WIDTH = 1.5  # its standard deviation, in units of the label's sigma; by hand
NEAR_SPOT_HEIGHT = 0.1  # its height from which a pixel is near; by hand


class Memory(NamedTuple):
    """What the value map knows of the samples of a batch.

    Attributes:
        own: remembered places, pixels of the own frame of each sample.
        fixed: the same places in fixed pixels, inside the view or not.
        admitted: (B, P) bool, those that are labels.
        partner_probability: (B,), threshold of the geometric test, [0, 1].
    """

    own: PointSet
    fixed: PointSet
    admitted: torch.Tensor
    partner_probability: torch.Tensor

    @classmethod
    def of(cls, batch: Mapping[str, Any], value_map: ValueMap) -> Memory:
        """The memory of a batch, brought to its device in one transfer.

        Args:
            batch: collated views; see :class:`loss.term_inputs.TermInputs`.
            value_map: read only.
        """
        packed = to_device(value_map.packed(batch["key"]), batch["H_fix_to_own"].device)
        places, flags, threshold = packed.split([2, 2, 1], dim=2)
        known, admitted = (flags > 0.5).unbind(2)
        own = PointSet(places, known)
        return cls(own, own.warped(inverse(batch["H_fix_to_own"])), admitted, threshold[:, 0, 0])


class AdmittedPlaces(NamedTuple):
    """Admitted places of a batch.

    Attributes:
        in_fixed: inside the field of view of the fixed image; fixed pixels.
        in_moving: inside the field of view of the moving image; moving pixels.
        in_both: inside the overlap; fixed pixels.
    """

    in_fixed: PointSet
    in_moving: PointSet
    in_both: PointSet


def admitted_places(
    memory: Memory, batch: Mapping[str, Any], overlap: torch.Tensor
) -> AdmittedPlaces:
    """Admitted places of each sample that its views show.

    A place that only one of the two images shows is a keypoint of that image.

    Args:
        memory: of the batch.
        batch: collated views; see :class:`loss.term_inputs.TermInputs`.
        overlap: (B, 1, H, W), 1 where both images show retina, fixed frame.
    """
    in_fixed = memory.fixed.only(memory.admitted)
    in_moving = PointSet(warp_points(in_fixed.points, batch["H_fix_to_mov"]), in_fixed.valid)
    return AdmittedPlaces(
        in_fixed.on(batch["fixed_fov"]), in_moving.on(batch["moving_fov"]), in_fixed.on(overlap)
    )


def draw_places(heatmap: torch.Tensor, places: PointSet, sigma_px: float) -> torch.Tensor:
    """Add Gaussian spots of height 1 to label heatmaps; where they overlap, the maximum counts.

    As in ``dataset.junctions.gaussian_heatmap``, a spot ends ``SPOT_SIGMAS`` standard deviations
    from the pixel of its centre.

    Args:
        heatmap: (B, 1, H, W) in [0, 1].
        places: pixels (x, y).
        sigma_px: standard deviation of a spot, pixels.

    Returns:
        A new (B, 1, H, W) in [0, 1].
    """
    height, width = heatmap.shape[-2:]
    points, images, valid = places.flat()
    points = points.to(heatmap)
    reach = math.ceil(SPOT_SIGMAS * sigma_px)
    window = torch.arange(-reach, reach + 1, device=heatmap.device)
    pixels = points.round().long()[:, :, None] + window  # (N, 2, K): x and y of the window
    along = torch.exp(-0.5 * ((pixels - points[:, :, None]) / sigma_px) ** 2)
    x, y = pixels.unbind(1)
    inner_x, inner_y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    # Padding and what is outside of the image have a height of 0, which adds nothing.
    along_x = along[:, 0] * ((inner_x == x) & valid[:, None])
    values = (along[:, 1] * (inner_y == y))[:, :, None] * along_x[:, None]
    rows = images[:, None] * height + inner_y
    target = rows[:, :, None] * width + inner_x[:, None]
    drawn = heatmap.flatten().scatter_reduce(0, target.flatten(), values.flatten(), "amax")
    return drawn.reshape(heatmap.shape)


def near_places(raster: torch.Tensor, places: PointSet, sigma_px: float) -> torch.Tensor:
    """Pixels that the spot of a label at one of the places would reach.

    Args:
        raster: (B, 1, H, W), of the size and on the device of the result.
        places: pixels (x, y).
        sigma_px: standard deviation of the spots in the labels, pixels.

    Returns:
        (B, 1, H, W) bool.
    """
    spots = draw_places(torch.zeros_like(raster), places, NEAR_SPOT_WIDTH * sigma_px)
    return spots >= NEAR_SPOT_HEIGHT
