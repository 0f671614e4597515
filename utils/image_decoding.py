"""Decode an image file of any kind: PNG, JPEG, TIFF, BMP, DICOM, exports of OCT devices."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.oct_files import is_oct_export, read_oct_export
from utils.stored_image import (
    EXPORT_AGAIN,
    MAX_FILE_BYTES,
    MIN_SIDE_PX,
    StoredImage,
    as_storable,
    check_size,
    choose_frame,
    is_dicom,
    split_selector,
    upright,
)
from utils.tiff_files import is_tiff, read_tiff

ORIENTATION = 274  # number of the EXIF tag
MAX_UPRIGHT_ORIENTATION = 4  # larger ones exchange width and height
DEEP_JPEG_FRAMES = (0xC1, 0xC3)  # extended and lossless JPEG may have more than 8 bits


def read_stored(path: str | Path) -> StoredImage:
    """Decode an image as stored: its own depth and channels, upright, in RGB.

    Opacity is left out; CMYK and palettes become RGB.

    Args:
        path: of the image, with or without ``#<selector>`` (:mod:`utils.stored_image`).

    Raises:
        InputError: missing, empty, truncated or undecodable file, an image beyond the limits, or
            several images and none chosen.
    """
    file, selector = split_selector(path)
    head = read_head(file)
    if is_dicom(head, file):
        # Imported here because it takes a quarter of a second.
        from utils.dicom_files import read_dicom  # noqa: PLC0415

        stored = read_dicom(file, selector)
    elif is_oct_export(file):
        stored = read_oct_export(file, selector)
    elif is_tiff(head):
        stored = read_tiff(file, selector)
    else:
        choose_frame(file, selector, 1)
        stored = _read_picture(file)
    if stored.pixels.ndim not in (2, 3):  # of a damaged header
        raise InputError(f"{path}: unreadable or truncated image; {EXPORT_AGAIN}.")
    height, width = stored.pixels.shape[:2]
    if min(height, width) < MIN_SIDE_PX:
        raise InputError(
            f"{path}: only {width} x {height} px; at least {MIN_SIDE_PX} px a side needed."
        )
    return stored


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image as :func:`read_stored` yields it.

    From the header where Pillow reads it, without decoding.

    Args:
        path: of the image, with or without ``#<selector>``.

    Raises:
        InputError: see :func:`read_stored`.
    """
    file, _ = split_selector(path)
    head = read_head(file)
    if not (is_dicom(head, file) or is_oct_export(file) or is_tiff(head)):
        try:
            with Image.open(file) as image:
                check_size(file, *image.size)
                sideways = orientation_in(image) > MAX_UPRIGHT_ORIENTATION
                width, height = reversed(image.size) if sideways else image.size
                return height, width
        except Image.UnidentifiedImageError:
            pass  # a kind that another reader knows
    height, width = read_stored(path).pixels.shape[:2]
    return height, width


def read_head(path: Path) -> bytes:
    """The first 132 bytes of a file that is there and not too large.

    Args:
        path: of the file.

    Raises:
        InputError: it is not.
    """
    try:
        # os.path.isfile returns False for impossible names (a NUL character, too long), for which
        # pathlib raises exceptions.
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such image file; check the path.")
        if path.stat().st_size > MAX_FILE_BYTES:
            limit = f"{MAX_FILE_BYTES >> 30} GB"
            raise InputError(f"{path}: larger than {limit}; export a single image.")
        with open(path, "rb") as handle:
            head = handle.read(132)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check its permissions and the "
            "disk."
        ) from error
    if not head:
        raise InputError(f"{path}: the file is empty; export or copy the image again.")
    return head


def _read_picture(path: Path) -> StoredImage:
    """A file with one image: PNG, JPEG, BMP and whatever else OpenCV reads."""
    data = np.fromfile(path, dtype=np.uint8)
    orientation = orientation_of(path, data)
    try:
        image = _decode_deep_jpeg(path, data)
        if image is None:
            image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"{path}: cannot be decoded ({error.err}); {EXPORT_AGAIN}.") from error
    if image is None or _is_truncated(data):
        raise InputError(f"{path}: unreadable or truncated image; {EXPORT_AGAIN}.")
    if image.ndim == 3:
        image = image[..., 2::-1] if image.shape[2] >= 3 else image[..., 0]
    return StoredImage(as_storable(upright(image, orientation)))


def orientation_of(path: Path, data: np.ndarray) -> int:
    """The orientation that EXIF gives, 1 to 8; 1 without. The size in the header is checked too.

    Args:
        path: of the file.
        data: its content, (N,) uint8.

    Raises:
        InputError: an image beyond the limits, or an unreadable header.
    """
    deep = _deep_jpeg_size(data)
    if deep is not None:
        check_size(path, *deep)
        return 1
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images; the limit that counts is MAX_PIXELS.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                check_size(path, *image.size)
                return orientation_in(image)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: {error}; export it smaller.") from error
    except InputError:
        raise
    # A damaged header can make these readers raise any exception.
    except Exception as error:
        reason = f"unreadable or truncated image ({type(error).__name__})"
        raise InputError(f"{path}: {reason}; {EXPORT_AGAIN}.") from error


def orientation_in(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 without.

    ``Image.getexif`` would decode a whole PNG to look for it behind the pixels.

    Args:
        image: opened, not yet decoded.
    """
    block = image.info.get("exif")
    if not block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(block)
        return int(exif.get(ORIENTATION, 1))
    except (ValueError, TypeError, SyntaxError, KeyError, OverflowError):
        return 1  # a damaged block of camera settings does not spoil the image


def _deep_jpeg_size(data: np.ndarray) -> tuple[int, int] | None:
    """Width and height of a JPEG with more than 8 bits, which neither OpenCV nor Pillow reads."""
    head = data[: 1 << 20].tobytes()
    place = 2
    while head.startswith(b"\xff\xd8") and place + 9 < len(head) and head[place] == 0xFF:
        marker, length = head[place + 1], int.from_bytes(head[place + 2 : place + 4], "big")
        if marker in DEEP_JPEG_FRAMES and head[place + 4] > 8:
            height = int.from_bytes(head[place + 5 : place + 7], "big")
            return int.from_bytes(head[place + 7 : place + 9], "big"), height
        if marker == 0xDA or 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return None
        place += 2 + length
    return None


def _decode_deep_jpeg(path: Path, data: np.ndarray) -> np.ndarray | None:
    """A JPEG with more than 8 bits, channels in OpenCV's order; None for any other file."""
    if _deep_jpeg_size(data) is None:
        return None
    try:
        image = imagecodecs.jpeg_decode(data.tobytes())
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path}: unreadable or truncated image; {EXPORT_AGAIN}.") from error
    return image[..., ::-1] if image.ndim == 3 else image


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
