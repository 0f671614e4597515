"""Read and write images in [0, 1]; utils/image_decoding.py decodes the files.

Arrays are float32 in [0, 1], of shape (H, W) for one channel and (H, W, 3) in RGB order.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from utils.errors import InputError
from utils.files import write_bytes_atomically
from utils.image_decoding import read_stored
from utils.stored_image import DICOM_SUFFIXES, file_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", *DICOM_SUFFIXES)
PNG_START = b"\x89PNG"
PNG_DEPTH_BYTE = 24  # bits per channel, in the header chunk that every PNG begins with
MIN_RANGE = 2.0 / 255.0  # an image with a smaller range of grey levels counts as blank


def stores_more_than_8_bits(path: str | Path) -> bool:
    """Whether an image is stored with 16 bits or as floats.

    Args:
        path: of the image.

    Raises:
        InputError: unreadable image.
    """
    with open(file_of(path), "rb") as file:
        head = file.read(PNG_DEPTH_BYTE + 1)
    if head.startswith(PNG_START) and len(head) > PNG_DEPTH_BYTE:
        return head[PNG_DEPTH_BYTE] > 8
    return read_stored(path).pixels.dtype != np.uint8


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
    return gray_of(read_stored(path).pixels, path)


def gray_of(pixels: np.ndarray, path: str | Path) -> np.ndarray:
    """One channel of pixels as stored, see :func:`read_gray`.

    Args:
        pixels: (H, W) or (H, W, 3) RGB, uint8, uint16 or float.
        path: named in messages.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        InputError: blank image, or NaN or infinite pixels.
    """
    gray = to_unit_range(pixels[..., 1] if pixels.ndim == 3 else pixels, path)
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
    return color_of(read_stored(path).pixels, path)


def color_of(pixels: np.ndarray, path: str | Path) -> np.ndarray:
    """RGB of pixels as stored, see :func:`read_color`.

    Args:
        pixels: (H, W) or (H, W, 3) RGB, uint8, uint16 or float.
        path: named in messages.

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        InputError: blank image, or NaN or infinite pixels.
    """
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    color = to_unit_range(pixels, path)
    check_content(color, path)
    return np.ascontiguousarray(color)


def read_color_8bit(path: str | Path) -> np.ndarray:
    """Read an image as 8-bit RGB, for the screen; large files take a quarter of the memory.

    Args:
        path: of the image.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: unreadable, truncated or tiny image.
    """
    pixels = read_stored(path).pixels
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.dtype != np.uint8:
        pixels = (to_unit_range(pixels, path) * 255.0 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def read_mask(path: str | Path) -> np.ndarray:
    """Read a binary mask, whose file may hold 0 and 255, 0 and 1, or 0 and 65535.

    Args:
        path: of the mask; a blank mask is allowed.

    Returns:
        (H, W) bool, True where the stored value exceeds half of the largest value.

    Raises:
        InputError: unreadable or truncated file.
    """
    image = read_stored(path).pixels
    if image.ndim == 3:
        image = image.max(axis=2)
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
    """Write an image file atomically; missing parent folders are made.

    Args:
        path: of the file; its suffix selects the format, PNG without one.
        image: (H, W) or (H, W, 3) RGB; uint8 or uint16, or float in [0, 1] or bool, which are
            written with 8 bits.

    Raises:
        InputError: a suffix that OpenCV cannot write.
    """
    path = Path(path)
    if image.dtype not in (np.uint8, np.uint16):
        image = (np.clip(image.astype(np.float32), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    if image.ndim == 3:
        image = np.ascontiguousarray(image[..., ::-1])
    encoded, buffer = cv2.imencode(path.suffix or ".png", image)
    if not encoded:
        raise InputError(f"{path}: cannot write this kind of image; use .png, .jpg or .tif.")
    write_bytes_atomically(path, buffer.tobytes())
