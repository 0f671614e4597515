"""Resample images as stored, with their depth and channels, by a saved transform."""

from __future__ import annotations

import cv2
import numpy as np

from geometry.matrices import Size
from geometry.rasters import register_onto_fixed
from geometry.transform_files import SavedTransform
from geometry.transforms import MatrixTransform, Transform
from utils.errors import InputError

FIXED, MOVING = "fixed", "moving"
FRAMES = (MOVING, FIXED)
KEPT_TYPES = (np.uint8, np.uint16, np.float32)


def warp_frame(
    image: np.ndarray, transform: SavedTransform, frame: str = MOVING, nearest: bool = False
) -> np.ndarray:
    """Resample an image into the other frame.

    Args:
        image: (H, W) or (H, W, C), uint8, uint16 or float32, of the size of its frame.
        transform: between the two frames.
        frame: in which the image lies, "moving" or "fixed".
        nearest: nearest neighbour instead of bilinear interpolation, for label images.

    Returns:
        (*size of the other frame[, C]) of the same type; 0 where the image shows nothing.

    Raises:
        InputError: the image has another size than its frame, or another type.
    """
    source, target = transform.moving_size, transform.fixed_size
    if frame == FIXED:
        source, target = target, source
    if image.shape[:2] != source:
        other = MOVING if frame == FIXED else FIXED
        swapped = f" It has the size of the {other} image: is it --from {other}?"
        raise InputError(
            f"{image.shape[1]} x {image.shape[0]} px, but the transform is for {frame} images of "
            f"{source[1]} x {source[0]} px; give frames of the same size."
            + swapped
            * (image.shape[:2] == target)
        )
    if image.dtype not in KEPT_TYPES:
        raise InputError(f"pixels of type {image.dtype}; 8 or 16 bit or 32-bit float are needed.")
    out_to_source = transform.mov_to_fix if frame == FIXED else transform.fix_to_mov
    if nearest:
        return _warp_nearest(image, out_to_source, target)
    warped = register_onto_fixed(image.astype(np.float32), out_to_source, target)
    if np.issubdtype(image.dtype, np.integer):
        warped = np.clip(np.rint(warped), 0, np.iinfo(image.dtype).max)
    return warped.astype(image.dtype)


def _warp_nearest(image: np.ndarray, out_to_source: Transform, size: Size) -> np.ndarray:
    """Nearest-neighbour resampling, 0 outside."""
    if isinstance(out_to_source, MatrixTransform):
        return cv2.warpPerspective(
            image,
            out_to_source.H_fix_to_mov,
            size[::-1],
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        )
    places = np.nan_to_num(out_to_source.dense_map(size), nan=-1.0)
    columns, rows = np.rint(places).astype(int).transpose(2, 0, 1)
    inside = (columns >= 0) & (rows >= 0) & (columns < image.shape[1]) & (rows < image.shape[0])
    warped = image[np.where(inside, rows, 0), np.where(inside, columns, 0)]
    warped[~inside] = 0
    return warped
