"""Views made in whole batches on the device of the training (``data.augment_on: device``).

The data workers read the stacks and draw the views (:func:`pack_view`); the device warps them and
changes their appearance (:func:`make_views`). A packed view is 1.6 to 2.6 MB for views of 512 px;
a finished one is 8.4 MB. Both ways draw the same and differ by rounding only, see
tests/test_device_views.py. On one kind of device equal keys give equal views, whatever else is in
their batch. Nothing here makes the host wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from kornia.geometry.transform import remap
from torch.nn.functional import avg_pool2d, pad
from torch.utils.data import default_collate

from dataset.photometric import NOISE_VALUES, SHADE_TERMS, Look, noise_table
from dataset.samples import Channel
from dataset.view_rendering import (
    FIXED_CHANNELS,
    MOVING_CHANNELS,
    N_RANKS,
    ROLES,
    ViewPlan,
    rank_table,
)
from geometry.matrices import Size, resize_matrix
from geometry.points import pixel_grid, warp_points
from geometry.rasters import NOTICEABLE_SHRINK, mean_shrink

PACKED = "packed"  # entry of an item or a batch that is not made yet
REDUCED = "reduced"  # numbers of the views whose resolution falls, by role
OTHERS = "others"  # numbers of the other views
BLUR_SIGMAS = 4.0  # radius of the Gaussian of cv2.GaussianBlur for float images


def blur_taps(max_blur_px: float) -> int:
    """Length of the longest kernel of a defocus, as cv2.GaussianBlur chooses it.

    Args:
        max_blur_px: largest standard deviation, pixels.
    """
    return round(2 * BLUR_SIGMAS * max_blur_px + 1) | 1


def pack_view(
    stack: torch.Tensor, plan: ViewPlan, long_side: int, n_taps: int | None
) -> dict[str, Any]:
    """What the device needs of a view.

    Args:
        stack: (6, H, W) uint8 of the sample.
        plan: of the view.
        long_side: of all samples, pixels; stacks are padded with zeros to a square of it, so that
            no sample depends on the sizes of the others in its batch.
        n_taps: see :func:`blur_taps`; None where no view of the data set changes its appearance.
    """
    square = torch.zeros((len(Channel), long_side, long_side), dtype=torch.uint8)
    square[:, : stack.shape[1], : stack.shape[2]] = stack
    H_by_role, reduced = {"fixed": plan.H_fix_to_own, "moving": plan.H_mov_to_own}, {}
    fine_size = (2 * plan.size[0], 2 * plan.size[1])
    for role, H in H_by_role.items():
        reduced[role] = mean_shrink(torch.from_numpy(H)[None]) > NOTICEABLE_SHRINK
        H_out_to_own = H @ resize_matrix(fine_size, plan.size) if reduced[role] else H
        H_by_role[role] = _to_unit((long_side, long_side)) @ H_out_to_own
    packed: dict[str, Any] = {
        "stack": square,
        "size": plan.size,
        "H": {role: torch.from_numpy(H) for role, H in H_by_role.items()},
        "H_fix_to_mov": torch.from_numpy(_to_unit(plan.size) @ plan.H_fix_to_mov),
        "ranks_at": plan.ranks_at,
        "anchor_shifts": torch.from_numpy(plan.anchor_shifts),
        REDUCED: reduced,
    }
    if n_taps is not None:
        looks = zip(ROLES, plan.looks, strict=True)
        packed["looks"] = {role: _pack_look(look, plan.size, n_taps) for role, look in looks}
    return packed


def _to_unit(size: Size) -> np.ndarray:
    """Matrix (3, 3) from pixels to coordinates in [-1, 1] between the centres of outer pixels.

    The device gets matrices to these coordinates, because kornia would make its factors there
    from numbers of the host, and wait.
    """
    scale_y, scale_x = (2.0 / max(side - 1, 1) for side in size)
    return np.array([[scale_x, 0.0, -1.0], [0.0, scale_y, -1.0], [0.0, 0.0, 1.0]])


def _pack_look(look: Look | None, size: Size, n_taps: int) -> dict[str, Any]:
    """A look as arrays of equal sizes for all views; what is None there changes nothing here."""
    kernel = np.zeros(n_taps, dtype=np.float32)
    if look is None or not look.blur_px:
        kernel[n_taps // 2] = 1.0
    else:
        taps = blur_taps(look.blur_px)
        start = (n_taps - taps) // 2
        kernel[start : start + taps] = cv2.getGaussianKernel(taps, look.blur_px, cv2.CV_32F)[:, 0]
    new_field = np.ones(size, np.uint8) if look is None or look.new_field is None else None
    cover = np.zeros(size, np.uint8) if look is None or look.cover is None else None
    stripes = np.ones(size[0], np.float32) if look is None or look.stripes is None else None
    names = ("surround", "gamma", "contrast", "shading", "gain", "cover_level", "speckle", "noise")
    numbers = {name: np.float32(getattr(look, name) if look else 0.0) for name in names}
    return {
        **numbers,
        "changed": look is not None,
        "invert": bool(look and look.invert),
        "clean_surround": bool(look and look.clean_surround),
        "speckle_at": look.speckle_at if look else 0,
        "noise_at": look.noise_at if look else 0,
        "shade_rows": look.shade_rows if look else np.zeros((size[0], SHADE_TERMS), np.float32),
        "shade_columns": (
            look.shade_columns if look else np.zeros((size[1], SHADE_TERMS), np.float32)
        ),
        "new_field": look.new_field if new_field is None and look else new_field,
        "cover": look.cover if cover is None and look else cover,
        "stripes": look.stripes if stripes is None and look else stripes,
        "kernel": kernel,
    }


def collate_packed(packed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of packed views.

    Args:
        packed: of :func:`pack_view`, all of one size.
    """
    apart = (REDUCED, "size")
    batch = default_collate(
        [{name: value for name, value in each.items() if name not in apart} for each in packed]
    )
    batch["size"] = packed[0]["size"]
    for name, wanted in ((REDUCED, True), (OTHERS, False)):
        batch[name] = {
            role: torch.tensor(
                [n for n, each in enumerate(packed) if each[REDUCED][role] == wanted],
                dtype=torch.long,
            )
            for role in ROLES
        }
    return batch


@torch.no_grad()
def make_views(batch: dict[str, Any]) -> dict[str, Any]:
    """Make the views of a batch on the device on which it lies; other batches stay as they are.

    Args:
        batch: collated items of :class:`dataset.aligned_pairs.AlignedPairs`.
    """
    if PACKED not in batch:
        return batch
    batch = dict(batch)
    packed = batch.pop(PACKED)
    with torch.autocast(packed["stack"].device.type, enabled=False):
        fixed = _warped(packed, "fixed", FIXED_CHANNELS)
        moving = _warped(packed, "moving", MOVING_CHANNELS)
        for role, rasters in zip(ROLES, (fixed, moving), strict=True):
            look = packed["looks"][role] if "looks" in packed else None
            batch |= _images(role, rasters, look)
        anchors, valid = _choose_anchors(batch["fixed_mask"], batch["moving_fov"], packed)
    return batch | {"anchors": anchors, "anchor_valid": valid}


def _warped(packed: dict[str, Any], role: str, channels: Sequence[Channel]) -> torch.Tensor:
    """Rasters in the frames of the views, as :func:`geometry.rasters.warp_image` resamples them.

    Args:
        packed: see :func:`collate_packed`.
        role: of the image, "fixed" or "moving".
        channels: of the stacks.

    Returns:
        (B, C, *size) float32 in [0, 1].
    """
    size, H = packed["size"], packed["H"][role]
    source = torch.stack([packed["stack"][:, channel] for channel in channels], dim=1).float()
    out = source.new_empty((*source.shape[:2], *size))
    others, reduced = packed[OTHERS][role], packed[REDUCED][role]
    if len(others):
        out[others] = _remapped(source[others], H[others], size)
    if len(reduced):
        fine = _remapped(source[reduced], H[reduced], (2 * size[0], 2 * size[1]))
        out[reduced] = avg_pool2d(fine, 2)
    return out.div_(255.0)


def _remapped(
    source: torch.Tensor, H_out_to_unit: torch.Tensor, size: Size, mode: str = "bilinear"
) -> torch.Tensor:
    """Rasters (B, C, H, W) at the places of the output pixels.

    Args:
        source: of the resampling.
        H_out_to_unit: (B, 3, 3) float64, to coordinates of :func:`_to_unit`.
        size: (height, width) of the output.
        mode: "bilinear" or "nearest".
    """
    grid = pixel_grid(size, source.device).double().expand(len(source), -1, -1)
    x, y = warp_points(grid, H_out_to_unit).float().reshape(-1, *size, 2).unbind(-1)
    return remap(
        source,
        x,
        y,
        mode=mode,
        padding_mode="zeros",
        align_corners=True,
        normalized_coordinates=True,
    )


def _images(
    role: str, rasters: torch.Tensor, look: dict[str, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """The four entries of an image from its rasters (B, 4, H, W)."""
    image, mask, heatmap, field = rasters.unbind(1)
    seen = field > 0.5
    if look is not None:
        image, seen = _apply_looks(image, seen, look)
    items = {"image": image, "fov": seen.float(), "mask": (seen & (mask > 0.5)).float()}
    items["heatmap"] = heatmap * items["fov"]
    return {f"{role}_{name}": raster[:, None].contiguous() for name, raster in items.items()}


def _apply_looks(
    image: torch.Tensor, seen: torch.Tensor, look: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`dataset.photometric.apply_look` does, for (B, H, W) images and fields of view."""

    def number(name: str) -> torch.Tensor:
        return look[name][:, None, None]

    seen = seen & (look["new_field"] > 0)
    new = image.clamp(0.0, 1.0)
    new = torch.where(number("invert"), 1.0 - new, new) ** number("gamma")
    mean = new.mean(dim=(1, 2), keepdim=True)
    new = new * number("contrast") + (1.0 - number("contrast")) * mean
    # A sum instead of a matrix product, which may be computed in less than single precision.
    shade = sum(
        look["shade_rows"][:, :, None, term] * look["shade_columns"][:, None, :, term]
        for term in range(SHADE_TERMS)
    )
    assert isinstance(shade, torch.Tensor)
    new = new * (number("gain") * (1.0 + number("shading") * shade.clamp(-1.0, 1.0)))
    new = new + look["cover"].float() / 255.0 * (number("cover_level") - new)
    new = torch.where(seen, new, number("surround"))
    new = _blurred(new, look["kernel"]) * look["stripes"][:, :, None]
    new = new * (1.0 + number("speckle") * _noise(look["speckle_at"], new))
    new = new + number("noise") * _noise(look["noise_at"], new)
    new = torch.where(seen | ~number("clean_surround"), new, number("surround"))
    return torch.where(number("changed"), new.clamp(0.0, 1.0), image), seen


def _blurred(image: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Images (B, H, W) convolved with the kernels (B, K) along both axes, reflected at borders."""
    radius = kernel.shape[1] // 2
    for axis, margins in ((1, (0, 0, radius, radius)), (2, (radius, radius, 0, 0))):
        padded = pad(image[:, None], margins, mode="reflect")[:, 0]
        terms = (
            kernel[:, tap, None, None] * padded.narrow(axis, tap, image.shape[axis])
            for tap in range(kernel.shape[1])
        )
        image = next(terms)
        for term in terms:
            image = image + term
    return image


@cache
def _on_device(name: str, device: torch.device) -> torch.Tensor:
    """A table of random numbers, once on each device."""
    table = {"noise": noise_table, "ranks": rank_table}[name]()
    return torch.from_numpy(table.copy()).to(device)


def _runs(name: str, start: torch.Tensor, n_values: int, length: int) -> torch.Tensor:
    """Runs of a table from the places ``start`` (B,): (B, n_values)."""
    places = start[:, None] + torch.arange(n_values, device=start.device)
    return _on_device(name, start.device)[places % length]


def _noise(start: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return _runs("noise", start, math.prod(image.shape[1:]), NOISE_VALUES).reshape(image.shape)


def _choose_anchors(
    fixed_mask: torch.Tensor, moving_fov: torch.Tensor, packed: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Anchors (B, n_anchors, 2) and which of them are points; masks and fields (B, 1, H, W)."""
    size, shifts = packed["size"], packed["anchor_shifts"]
    seen = _remapped(moving_fov, packed["H_fix_to_mov"], size, mode="nearest")
    suitable = ((fixed_mask > 0.5) & (seen > 0.5)).flatten(1)
    ranks = _runs("ranks", packed["ranks_at"], suitable.shape[1], N_RANKS)
    ranks = torch.where(suitable, ranks, -1)
    n_chosen = min(shifts.shape[1], ranks.shape[1])
    highest, places = ranks.topk(n_chosen, dim=1)
    points = torch.stack([places % size[1], places // size[1]], dim=-1).float()
    anchors, valid = torch.zeros_like(shifts), shifts.new_zeros(shifts.shape[:2], dtype=torch.bool)
    valid[:, :n_chosen] = highest >= 0
    anchors[:, :n_chosen] = points + shifts[:, :n_chosen]
    return anchors * valid[..., None], valid
