"""Tiles and thumbnails of the images of a pair, drawn when the page asks for them.

An image is kept as a pyramid of halved levels. A tile is a square of one level, so that a page
never gets more pixels than its screen shows. The registered image has no pyramid: each tile is
resampled from the level of the moving image whose resolution fits, for its region alone.

Convention:
    Level l of an image of ``size`` has :func:`level_size`; the borders of all levels coincide
    (``geometry.matrices.resize_matrix``).
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from geometry.matrices import (
    Size,
    compose,
    fit_within,
    local_linear_part,
    resize_matrix,
    size_of_image,
    translation_matrix,
)
from geometry.transforms import MatrixTransform, Transform
from pictures.drawing import checkerboard
from utils.image_files import read_color_8bit

TILE_PX = 512
SMALLEST_LEVEL_PX = 256  # long side from which no further level is made
MAX_IMAGE_BYTES = 512 << 20  # of all pyramids; eight images of 4,000 x 4,000 px
MAX_THUMBNAIL_BYTES = 64 << 20  # of all thumbnails; about 4,000
THUMBNAIL_PX = 256
TILE_QUALITY, THUMBNAIL_QUALITY = 92, 80  # of JPEG


class BoundedCache:
    """Values by key; the least recently used are dropped above a number of bytes.

    Two threads that ask for one key compute it once.

    Args:
        max_bytes: of all values together; a single larger value is kept alone.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._busy: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The value of a key.

        Args:
            key: of the value.
            make: computes the value and its number of bytes, if it is not kept.
        """
        with self._lock:
            busy = self._busy.setdefault(key, threading.Lock())
        with busy:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key][0]
            value, size = make()
            with self._lock:
                self._values[key] = (value, size)
                self.n_bytes += size
                while self.n_bytes > self.max_bytes and len(self._values) > 1:
                    _, (_, dropped) = self._values.popitem(last=False)
                    self.n_bytes -= dropped
                self._busy.pop(key, None)
        return value


class Pyramid(NamedTuple):
    """An image at its own and at halved resolutions.

    Attributes:
        levels: (h, w, 3) uint8 RGB each, the full resolution first.
    """

    levels: list[np.ndarray]

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return size_of_image(self.levels[0])

    def H_image_to_level(self, level: int) -> np.ndarray:
        """Matrix (3, 3) from pixels of the image to pixels of a level."""
        return resize_matrix(self.size, size_of_image(self.levels[level]))


def level_size(size: Size, level: int) -> Size:
    """(height, width) of a level; the page computes the same.

    Args:
        size: (height, width) of the image.
        level: 0 for the full resolution.
    """
    return max(1, math.ceil(size[0] / 2**level)), max(1, math.ceil(size[1] / 2**level))


def n_levels(size: Size) -> int:
    """Number of levels of an image.

    Args:
        size: (height, width).
    """
    return 1 + max(0, math.ceil(math.log2(max(size) / SMALLEST_LEVEL_PX)))


def make_pyramid(image: np.ndarray) -> Pyramid:
    """Halve an image until it is small.

    Args:
        image: (H, W, 3) uint8.
    """
    size, levels = size_of_image(image), [image]
    for level in range(1, n_levels(size)):
        target = level_size(size, level)
        levels.append(cv2.resize(levels[-1], target[::-1], interpolation=cv2.INTER_AREA))
    return Pyramid(levels)


class Images:
    """Pyramids and thumbnails of files, kept in memory within bounds."""

    def __init__(self) -> None:
        self._pyramids = BoundedCache(MAX_IMAGE_BYTES)
        self._thumbnails = BoundedCache(MAX_THUMBNAIL_BYTES)

    def pyramid(self, path: Path) -> Pyramid:
        """The pyramid of an image file.

        Args:
            path: of the image.

        Raises:
            InputError: unreadable image.
        """

        def make() -> tuple[Pyramid, int]:
            pyramid = make_pyramid(read_color_8bit(path))
            return pyramid, sum(level.nbytes for level in pyramid.levels)

        return self._pyramids.get((path, path.stat().st_mtime_ns), make)

    def thumbnail(self, key: Hashable, make: Callable[[], np.ndarray]) -> bytes:
        """A small picture as JPEG.

        Args:
            key: that changes with the content.
            make: draws it, (H, W, 3) uint8 RGB, if it is not kept.
        """

        def encoded() -> tuple[bytes, int]:
            data = encode_jpeg(make(), THUMBNAIL_QUALITY)
            return data, len(data)

        return self._thumbnails.get(key, encoded)


def encode_jpeg(image: np.ndarray, quality: int = TILE_QUALITY) -> bytes:
    """An image as JPEG.

    Args:
        image: (H, W, 3) uint8 RGB.
        quality: of JPEG, 0 to 100.
    """
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags)[1].tobytes()


def tile_window(size: Size, level: int, column: int, row: int) -> tuple[int, int, int, int] | None:
    """Pixels of a level that a tile holds: left, top, right, bottom; None beyond the image.

    Args:
        size: (height, width) of the image.
        level, column, row: of the tile.
    """
    height, width = level_size(size, level)
    left, top = column * TILE_PX, row * TILE_PX
    if not (0 <= level < n_levels(size) and 0 <= left < width and 0 <= top < height):
        return None
    return left, top, min(left + TILE_PX, width), min(top + TILE_PX, height)


def plain_tile(pyramid: Pyramid, level: int, column: int, row: int) -> np.ndarray | None:
    """A tile of an image in its own frame.

    Args:
        pyramid: of the image.
        level, column, row: of the tile.

    Returns:
        (h, w, 3) uint8; None beyond the image.
    """
    window = tile_window(pyramid.size, level, column, row)
    if window is None:
        return None
    left, top, right, bottom = window
    return pyramid.levels[level][top:bottom, left:right]


def registered_tile(
    moving: Pyramid, transform: Transform, fixed_size: Size, level: int, column: int, row: int
) -> np.ndarray | None:
    """A tile of the moving image, resampled into the fixed frame for this region alone.

    Args:
        moving: pyramid of the moving image.
        transform: fixed pixels to moving pixels.
        fixed_size: (height, width) of the fixed image.
        level, column, row: of the tile, in the levels of the fixed image.

    Returns:
        (h, w, 3) uint8, 0 outside of the moving image; None beyond the fixed image.
    """
    window = tile_window(fixed_size, level, column, row)
    if window is None:
        return None
    left, top, right, bottom = window
    H_level_to_fixed = resize_matrix(level_size(fixed_size, level), fixed_size)
    H_tile_to_fixed = compose(translation_matrix((left, top)), H_level_to_fixed)
    return resample(moving, transform, H_tile_to_fixed, (bottom - top, right - left))


def resample(
    moving: Pyramid, transform: Transform, H_out_to_fixed: np.ndarray, out_size: Size
) -> np.ndarray:
    """The moving image in a window of the fixed frame, at the resolution of the window.

    Convention: direction output -> source, as :mod:`geometry.rasters`.

    Args:
        moving: pyramid of the moving image.
        transform: fixed pixels to moving pixels.
        H_out_to_fixed: (3, 3), pixels of the window to fixed pixels.
        out_size: (height, width) of the window.

    Returns:
        (*out_size, 3) uint8, 0 outside of the moving image.
    """
    centre = np.array([(out_size[1] - 1) / 2, (out_size[0] - 1) / 2])
    H_out_to_moving = compose(H_out_to_fixed, transform.approximate_matrix())
    # Moving pixels per pixel of the window, which choose the level.
    shrink = math.sqrt(abs(np.linalg.det(local_linear_part(H_out_to_moving, centre))))
    level = int(np.clip(math.floor(math.log2(max(shrink, 1e-6))), 0, len(moving.levels) - 1))
    source = moving.levels[level]
    local = transform.rescaled(H_out_to_fixed, moving.H_image_to_level(level))
    if isinstance(local, MatrixTransform):
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpPerspective(source, local.H_fix_to_mov, out_size[::-1], flags=flags)
    # NaN and far places alike are outside of the source.
    outside = -2.0 * max(source.shape)
    places = np.nan_to_num(local.dense_map(out_size), nan=outside)
    columns, rows = (np.ascontiguousarray(places[..., axis]) for axis in range(2))
    return cv2.remap(source, columns, rows, cv2.INTER_LINEAR)


def registered_small(
    fixed: Pyramid, moving: Pyramid, transform: Transform, long_side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fixed and registered image at a given long side.

    Args:
        fixed, moving: pyramids.
        transform: fixed pixels to moving pixels.
        long_side: of the result, pixels.

    Returns:
        Two (h, w, 3) uint8 images of one size.
    """
    size = fit_within(fixed.size, min(long_side, max(fixed.size)))
    H_small_to_fixed = resize_matrix(size, fixed.size)
    registered = resample(moving, transform, H_small_to_fixed, size)
    return small(fixed, long_side), registered


def small(pyramid: Pyramid, long_side: int) -> np.ndarray:
    """An image at a given long side, never enlarged.

    Args:
        pyramid: of the image.
        long_side: of the result, pixels.

    Returns:
        (h, w, 3) uint8.
    """
    size = fit_within(pyramid.size, min(long_side, max(pyramid.size)))
    source = next(level for level in reversed(pyramid.levels) if max(level.shape[:2]) >= max(size))
    return cv2.resize(source, size[::-1], interpolation=cv2.INTER_AREA)


def draw_thumbnail(fixed: Pyramid, moving: Pyramid, transform: Transform | None) -> np.ndarray:
    """The checkerboard of a pair, or both images side by side without a transform.

    Args:
        fixed, moving: pyramids.
        transform: fixed pixels to moving pixels; None without one.

    Returns:
        (h, w, 3) uint8.
    """
    if transform is not None:
        first, second = registered_small(fixed, moving, transform, THUMBNAIL_PX)
        return checkerboard(first / np.float32(255.0), second / np.float32(255.0))
    halves = [small(pyramid, THUMBNAIL_PX // 2) for pyramid in (fixed, moving)]
    canvas = np.zeros((max(half.shape[0] for half in halves), THUMBNAIL_PX, 3), np.uint8)
    for index, half in enumerate(halves):
        left = index * THUMBNAIL_PX // 2
        canvas[: half.shape[0], left : left + half.shape[1]] = half
    return canvas
