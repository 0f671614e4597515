"""A registered pair in the fixed frame, and its vessel mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.ridge_labels import find_ridges
from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import Size, fit_within, size_of_image
from geometry.rasters import register_onto_fixed
from geometry.transform_files import SavedTransform
from utils.errors import InputError
from utils.image_decoding import read_stored
from utils.image_files import check_content, read_mask, resize_image, to_unit_range

RIDGE_SIDE_PX = 512  # for which the constants of the ridge mask are chosen
MIN_OVERLAP = 0.02  # of the fixed image; with less there is nothing to learn, chosen by hand
MIN_COVERAGE = 0.5  # of a pixel after resizing, to count as vessel


@dataclass(frozen=True)
class AlignedImages:
    """Both images in the fixed frame, at the size that is written.

    Attributes:
        fixed, moving: (H, W) or (H, W, 3) float32 in [0, 1]; the moving image is 0 where it shows
            nothing.
        fixed_field, moving_field: (H, W) bool, fields of view.
        full_size: (height, width) of the fixed image as stored.
    """

    fixed: np.ndarray
    moving: np.ndarray
    fixed_field: np.ndarray
    moving_field: np.ndarray
    full_size: Size


def align(fixed: str, moving: str, transform: SavedTransform, long_side: int) -> AlignedImages:
    """Read a pair and resample the moving image into the fixed frame.

    Args:
        fixed, moving: paths.
        transform: of the pair.
        long_side: of the result, pixels; smaller images keep their size.

    Raises:
        InputError: unreadable files, files of another size than the transform is for, or images
            that hardly overlap.
    """
    sizes = {"fixed": transform.fixed_size, "moving": transform.moving_size}
    units = {}
    for role, path in (("fixed", fixed), ("moving", moving)):
        if not path:
            raise InputError(f"neither the table nor its transform.json names its {role} image")
        pixels = read_stored(path).pixels
        units[role] = to_unit_range(pixels, path)
        check_content(units[role], path)
        if size_of_image(pixels) != sizes[role]:
            height, width = sizes[role]
            raise InputError(
                f"{path}: the transform is for a {role} image of {width} x {height} px; register "
                "the pair again."
            )
    full = transform.fixed_size
    size = full if max(full) <= long_side else fit_within(full, long_side)
    field = estimate_field_of_view(_grey(units["moving"])).astype(np.float32)
    warped, seen = (
        register_onto_fixed(image, transform.fix_to_mov, full) for image in (units["moving"], field)
    )
    images = AlignedImages(
        resize_image(units["fixed"], size),
        resize_image(warped, size),
        resize_image(estimate_field_of_view(_grey(units["fixed"])), size) > 0.5,
        resize_image(seen, size) > 0.5,
        full,
    )
    if (images.fixed_field & images.moving_field).mean() < MIN_OVERLAP:
        raise InputError("its images hardly overlap")
    return images


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W) of (H, W) or (H, W, 3): the green channel."""
    return image[..., 1] if image.ndim == 3 else image


def ridge_mask(images: AlignedImages) -> np.ndarray:
    """Vessel mask of a pair: ridges of both images in their overlap, of the fixed one elsewhere.

    Args:
        images: aligned.

    Returns:
        (H, W) bool, True on vessels.
    """
    size = size_of_image(images.fixed)
    work = fit_within(size, RIDGE_SIDE_PX)
    fixed, moving, fixed_field, moving_field = (
        resize_image(image, work)
        for image in (
            _grey(images.fixed), _grey(images.moving), images.fixed_field, images.moving_field
        )
    )  # fmt: skip
    overlap = (fixed_field > 0.5) & (moving_field > 0.5)
    both = find_ridges(fixed, moving, overlap)
    alone = find_ridges(fixed, fixed, fixed_field > 0.5)
    return resize_image(np.where(overlap, both, alone), size) > MIN_COVERAGE


def read_given_mask(path: Path, images: AlignedImages) -> np.ndarray:
    """A vessel mask that the user gives, at the size of the images.

    Args:
        path: of the mask, white on black, of the size of the fixed image.
        images: aligned.

    Returns:
        (H, W) bool, True on vessels.

    Raises:
        InputError: unreadable mask, or one of another size.
    """
    mask = read_mask(path)
    if mask.shape != images.full_size:
        height, width = images.full_size
        raise InputError(
            f"{path}: {mask.shape[1]} x {mask.shape[0]} px, but the fixed image has {width} x "
            f"{height}."
        )
    return resize_image(mask, size_of_image(images.fixed)) > MIN_COVERAGE
