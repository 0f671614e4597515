"""Read and write images; all image files of the project pass through this module.

Arrays are float32 in [0, 1], of shape (H, W) for one channel and (H, W, 3) in RGB order.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image

from utils.errors import InputError
from utils.files import write_bytes_atomically

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MIN_SIDE_PX = 16
# Limits against files that unpack to more than the memory. The largest fundus montages have about
# 100 million pixels.
MAX_PIXELS = 150_000_000
MAX_SIDE_PX = 32_000
MAX_FILE_BYTES = 2 << 30
MIN_RANGE = 2.0 / 255.0  # an image with a smaller range of grey levels counts as blank
EXPORT_AGAIN = "export it again as PNG, JPEG or TIFF"


def _decode(path: str | Path) -> np.ndarray:
    """Decode a file as stored: (H, W) or (H, W, C) in OpenCV's BGR order, 8 or 16 bit or float.

    Raises:
        InputError: missing, empty, truncated or undecodable file, or an image beyond the limits.
    """
    path = Path(path)
    try:
        # os.path.isfile returns False for impossible names (a NUL character, too long), for which
        # pathlib raises exceptions.
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such image file; check the path.")
        if path.stat().st_size > MAX_FILE_BYTES:
            limit = f"{MAX_FILE_BYTES >> 30} GB"
            raise InputError(f"{path}: larger than {limit}; export a single image.")
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check its permissions and the "
            "disk."
        ) from error
    if data.size == 0:
        raise InputError(f"{path}: the file is empty; export or copy the image again.")
    _check_size(path)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"{path}: cannot be decoded ({error.err}); {EXPORT_AGAIN}.") from error
    if image is None or _is_truncated(data):
        raise InputError(f"{path}: unreadable or truncated image; {EXPORT_AGAIN}.")
    if min(image.shape[:2]) < MIN_SIDE_PX:
        raise InputError(
            f"{path}: only {image.shape[1]} x {image.shape[0]} px; at least {MIN_SIDE_PX} px a "
            "side needed."
        )
    return image


def _check_size(path: Path) -> None:
    """Check the size in the header before the image is decoded.

    Raises:
        InputError: more than ``MAX_PIXELS`` pixels, a side longer than ``MAX_SIDE_PX``, or an
            unreadable header.
    """
    try:
        width, height = _size_in_header(path)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {error}; export it smaller.") from error
    # A damaged header can make these readers raise any exception.
    except Exception as error:
        reason = f"unreadable or truncated image ({type(error).__name__})"
        raise InputError(f"{path}: {reason}; {EXPORT_AGAIN}.") from error
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE_PX:
        raise InputError(
            f"{path}: {width} x {height} px; at most {MAX_PIXELS // 10**6} million pixels and "
            f"{MAX_SIDE_PX} px a side are read. Export it smaller."
        )


def _size_in_header(path: Path) -> tuple[int, int]:
    """Width and height without decoding, by Pillow, or by tifffile for float colour TIFFs."""
    with warnings.catch_warnings():
        # Pillow warns of large images; the limit that counts is MAX_PIXELS.
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                return image.size
        except Image.UnidentifiedImageError:
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                return page.imagewidth, page.imagelength


def stores_more_than_8_bits(path: str | Path) -> bool:
    """Whether an image is stored with 16 bits or as floats.

    Args:
        path: of the image.

    Raises:
        InputError: unreadable image.
    """
    return _decode(path).dtype != np.uint8


def _is_truncated(data: np.ndarray) -> bool:
    """Whether a PNG or JPEG lacks its end marker; OpenCV fills missing parts with grey or black."""
    tail = data[-64:].tobytes()
    head = data[:8].tobytes()
    if head.startswith(b"\x89PNG"):
        return b"IEND" not in tail
    if head.startswith(b"\xff\xd8"):
        # Some cameras append data after the end-of-image marker, so the second half is searched.
        return b"\xff\xd9" not in data[data.size // 2 :].tobytes()
    return False


def to_unit_range(image: np.ndarray, path: str | Path) -> np.ndarray:
    """Scale to float32 in [0, 1].

    8-bit images are divided by 255, float images in [0, 1] are kept. Other images are scaled by
    their own range, because 12-bit cameras store their values in 16-bit files; the range is that
    of the percentiles 0.1 and 99.9, so that single hot pixels do not determine it.

    Args:
        image: (H, W) or (H, W, C), uint8, uint16 or float.
        path: named in messages.

    Returns:
        Array of the same shape, float32 in [0, 1].

    Raises:
        InputError: NaN or infinite pixels.
    """
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255.0
    values = image.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{path}: holds NaN or infinite pixels; export the image again.")
    if np.issubdtype(image.dtype, np.floating) and values.min() >= 0.0 and values.max() <= 1.0:
        return values
    low, high = (float(value) for value in np.percentile(values, [0.1, 99.9]))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return np.clip((values - low) / (high - low), 0.0, 1.0) if high > low else np.zeros_like(values)


def check_content(image: np.ndarray, path: str | Path) -> None:
    """Refuse a blank image.

    Args:
        image: (H, W) or (H, W, C) float32 in [0, 1].
        path: named in messages.

    Raises:
        InputError: all pixels are alike.
    """
    if float(image.max()) - float(image.min()) < MIN_RANGE:
        raise InputError(
            f"{path}: all pixels are alike (black or blank image); it cannot be registered."
        )


def read_gray(path: str | Path) -> np.ndarray:
    """Read an image as one channel: of colour the green channel, where vessels have most contrast.

    Args:
        path: of the image.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        InputError: unreadable, truncated, blank or tiny image.
    """
    image = _decode(path)
    if image.ndim == 3:
        image = image[..., 1] if image.shape[2] >= 3 else image[..., 0]
    gray = to_unit_range(image, path)
    check_content(gray, path)
    return np.ascontiguousarray(gray)


def read_color(path: str | Path) -> np.ndarray:
    """Read an image as RGB, for pictures.

    Args:
        path: of the image.

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        InputError: unreadable, truncated, blank or tiny image.
    """
    image = _decode(path)
    if image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    elif image.shape[2] == 2:
        image = np.repeat(image[..., :1], 3, axis=2)
    color = to_unit_range(image[..., :3], path)
    check_content(color, path)
    return np.ascontiguousarray(color[..., ::-1])


def read_color_8bit(path: str | Path) -> np.ndarray:
    """Read an image as 8-bit RGB, for the screen; large files take a quarter of the memory.

    Args:
        path: of the image.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: unreadable, truncated or tiny image.
    """
    image = _decode(path)
    if image.ndim == 2 or image.shape[2] == 2:
        image = np.repeat(image.reshape(*image.shape[:2], -1)[..., :1], 3, axis=2)
    if image.dtype != np.uint8:
        image = (to_unit_range(image[..., :3], path) * 255.0 + 0.5).astype(np.uint8)
    return cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_BGR2RGB)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a binary mask, whose file may hold 0 and 255, 0 and 1, or 0 and 65535.

    Args:
        path: of the mask; a blank mask is allowed.

    Returns:
        (H, W) bool, True where the stored value exceeds half of the largest value.

    Raises:
        InputError: unreadable or truncated file.
    """
    image = _decode(path)
    if image.ndim == 3:
        image = image[..., :3].max(axis=2)
    return image > 0.5 * float(image.max())


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image without aliasing.

    Convention: the borders of both images coincide, see ``geometry.matrices.resize_matrix``.

    Args:
        image: (H, W).
        size: (height, width) of the result.

    Returns:
        (*size) float32.
    """
    image = image.astype(np.float32)
    if image.shape == size:
        return image
    shrinking = size[0] < image.shape[0] or size[1] < image.shape[1]
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(image, size[::-1], interpolation=interpolation)


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an 8-bit image file atomically; missing parent folders are made.

    Args:
        path: of the file; its suffix selects the format, PNG without one.
        image: (H, W) or (H, W, 3) RGB, float in [0, 1], uint8 or bool.

    Raises:
        InputError: a suffix that OpenCV cannot write.
    """
    path = Path(path)
    if image.dtype != np.uint8:
        image = (np.clip(image.astype(np.float32), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    if image.ndim == 3:
        image = np.ascontiguousarray(image[..., ::-1])
    encoded, buffer = cv2.imencode(path.suffix or ".png", image)
    if not encoded:
        raise InputError(f"{path}: cannot write this kind of image; use .png, .jpg or .tif.")
    write_bytes_atomically(path, buffer.tobytes())
