"""Reading and writing images: every image enters and leaves the project through this module.

Arrays are float32 in [0, 1], shape (H, W) for one channel and (H, W, 3) in RGB order for colour.
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
# A small file can unpack to an image that fills the memory; the largest fundus montages have about 100 million pixels.
MAX_PIXELS = 150_000_000
MAX_SIDE_PX = 32_000
MAX_FILE_BYTES = 2 << 30


def _decode(path: str | Path) -> np.ndarray:
    """Decode a file as stored: (H, W) or (H, W, C) in OpenCV's BGR order, 8 or 16 bit or float.

    Raises:
        InputError: missing, empty, truncated or undecodable file, or an image of an absurd size.
    """
    path = Path(path)
    try:
        # os.path and not pathlib: an impossible name (a NUL in it, too long) is simply not there.
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such image file; check the path.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(
                f"{path}: larger than {MAX_FILE_BYTES >> 30} GB; export a single image."
            )
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check its rights and the disk."
        ) from error
    if data.size == 0:
        raise InputError(f"{path}: the file is empty; export or copy the image again.")
    _refuse_absurd_size(path)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(
            f"{path}: cannot be decoded ({error.err}); export it again as PNG, JPEG or TIFF."
        ) from error
    if image is None or _is_truncated(path, data):
        raise InputError(
            f"{path}: unreadable or truncated image; export it again as PNG, JPEG or TIFF."
        )
    if min(image.shape[:2]) < MIN_SIDE_PX:
        raise InputError(
            f"{path}: only {image.shape[1]} x {image.shape[0]} px; at least {MIN_SIDE_PX} px a side needed."
        )
    return image


def _refuse_absurd_size(path: Path) -> None:
    """Look at the size in the header before anything is unpacked.

    Raises:
        InputError: more pixels than ``MAX_PIXELS``, a side beyond ``MAX_SIDE_PX``, or no readable header.
    """
    try:
        width, height = _size_in_header(path)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {error}; export it smaller.") from error
    # What a damaged header makes these readers raise is not limited to their own errors.
    except Exception as error:
        raise InputError(
            f"{path}: unreadable or truncated image ({type(error).__name__}); export it again as PNG, JPEG or "
            "TIFF."
        ) from error
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE_PX:
        raise InputError(
            f"{path}: {width} x {height} px; at most {MAX_PIXELS // 10**6} million pixels and {MAX_SIDE_PX} px a "
            "side are read. Export it smaller."
        )


def _size_in_header(path: Path) -> tuple[int, int]:
    """Width and height without decoding. Pillow lacks some kinds of TIFF (float colour), which tifffile knows."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Pillow warns of large images itself; the limit here is ours
        try:
            with Image.open(path) as image:
                return image.size
        except Image.UnidentifiedImageError:
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages[0]
                return page.imagewidth, page.imagelength


def stores_more_than_8_bits(path: str | Path) -> bool:
    """Whether a readable image is stored with 16 bits or as floats."""
    return _decode(path).dtype != np.uint8


def _is_truncated(path: Path, data: np.ndarray) -> bool:
    """OpenCV fills what a cut-off PNG or JPEG lacks with grey or black without a word, so look for the end marker."""
    tail = data[-64:].tobytes()
    head = data[:8].tobytes()
    if head.startswith(b"\x89PNG"):
        return b"IEND" not in tail
    if head.startswith(b"\xff\xd8"):
        # Some cameras append their own bytes behind the end-of-image marker: look in the whole second half.
        return b"\xff\xd9" not in data[data.size // 2 :].tobytes()
    return False


def to_unit_range(image: np.ndarray, path: str | Path) -> np.ndarray:
    """Scale to float32 [0, 1]: by the type's maximum for 8 bit, by the image's own range for deeper data.

    Twelve-bit cameras store their range in 16-bit files, so dividing by 65535 would leave those images almost black;
    a single hot pixel must not darken the rest either, so the range is that of all but a thousandth at each end.

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
    """Refuse an image in which all pixels are alike; ``path`` names it in the error.

    Raises:
        InputError
    """
    if float(image.max()) - float(image.min()) < 2.0 / 255.0:
        raise InputError(
            f"{path}: all pixels are alike (black or blank image); nothing can be registered in it."
        )


def read_gray(path: str | Path) -> np.ndarray:
    """Read any image as one channel for the network: the green channel of colour, where vessels contrast best.

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
    """Read any image as RGB for pictures. Returns (H, W, 3) float32 in [0, 1].

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


def read_mask(path: str | Path) -> np.ndarray:
    """Read a binary mask. Returns (H, W) bool, True where the stored value exceeds half of the largest one: files hold
    0 and 255, or 0 and 1, or 0 and 65535.

    Raises:
        InputError: unreadable or truncated file. A blank mask is allowed: whether that is sensible is the caller's.
    """
    image = _decode(path)
    if image.ndim == 3:
        image = image[..., :3].max(axis=2)
    return image > 0.5 * float(image.max())


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W) to ``size`` = (height, width) without aliasing, float32; see ``geometry.matrices.resize_matrix``."""
    image = image.astype(np.float32)
    if image.shape == size:
        return image
    shrinking = size[0] < image.shape[0] or size[1] < image.shape[1]
    return cv2.resize(
        image, size[::-1], interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    )


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) RGB, float in [0, 1] or uint8 or bool, as an 8-bit file, atomically.

    The file appears under its name only when it is complete; missing parent folders are made.
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
