"""What an image file holds: pixels as stored, the size of a pixel, the side of the body.

A path may name one image of a file that holds several, after a ``#``: ``photo.dcm#3`` and
``movie.tif#3`` are the third frame, ``scan.vol#slo`` is one of the images of an OCT export.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from utils.errors import InputError

MIN_SIDE_PX = 16
# Limits against files that unpack to more than the memory. The largest fundus montages have about
# 100 million pixels.
MAX_PIXELS = 150_000_000
MAX_SIDE_PX = 32_000
MAX_FILE_BYTES = 2 << 30
EXPORT_AGAIN = "export it again as PNG, JPEG or TIFF"
# Accepted sizes of a pixel on the retina, mm; chosen by hand. A photograph of 4000 px over 45
# degrees (13 mm) has 0.003 mm, a 64 x 64 OCTA of 12 mm 0.19 mm.
MIN_SPACING_MM, MAX_SPACING_MM = 0.0005, 0.25

DICOM_SUFFIXES = (".dcm", ".dicom")

Spacing = tuple[float, float]  # width and height of a pixel, mm on the retina


@dataclass(frozen=True)
class StoredImage:
    """One image of a file.

    Attributes:
        pixels: (H, W), or (H, W, 3) RGB; uint8, uint16 or float32, upright.
        spacing_mm: (x, y) width and height of a pixel on the retina, mm; None where the file does
            not say it.
        laterality: "R" or "L"; "" where the file does not say it.
        provenance: further facts for ``transform.json``. None identifies a patient.
    """

    pixels: np.ndarray
    spacing_mm: Spacing | None = None
    laterality: str = ""
    provenance: dict[str, str] = field(default_factory=dict)


def is_dicom(head: bytes, path: Path) -> bool:
    """Whether a file is DICOM, by its content or else by its name.

    Args:
        head: its first bytes, at least 132 where it has so many.
        path: of the file.
    """
    return head[128:132] == b"DICM" or path.suffix.lower() in DICOM_SUFFIXES


def split_selector(path: str | Path) -> tuple[Path, str]:
    """Split a path into the file and the image of it that is asked for.

    Args:
        path: of an image, with or without ``#<selector>``.

    Returns:
        The file and what follows the last ``#``; the whole path and "" where there is no such file.
    """
    text = os.fspath(path)
    name, mark, selector = text.rpartition("#")
    # os.path.exists returns False for impossible names, for which pathlib raises exceptions.
    if not mark or os.path.exists(text) or not os.path.isfile(name):
        return Path(path), ""
    return Path(name), selector.strip().lower()


def file_of(path: str | Path) -> Path:
    """The file that holds an image: the path without ``#<selector>``.

    Args:
        path: of an image, with or without ``#<selector>``.
    """
    return split_selector(path)[0]


def choose_frame(path: Path, selector: str, n_frames: int) -> int:
    """Index of the frame that a path asks for; it must ask where there are several.

    Args:
        path: of the file.
        selector: number of a frame, from 1; "" where the path has none.
        n_frames: in the file.

    Returns:
        Index, from 0.

    Raises:
        InputError: a frame that the file lacks, or none chosen of several.
    """
    if not selector and n_frames == 1:
        return 0
    frames = f"holds {n_frames} frame{'s' * (n_frames > 1)}"
    if not selector:
        raise InputError(f"{path}: {frames}; choose one, {path}#1 to {path}#{n_frames}.")
    if not selector.isascii() or not selector.isdigit() or not 1 <= int(selector) <= n_frames:
        raise InputError(f"{path}#{selector}: {path.name} {frames}; give one as {path}#1.")
    return int(selector) - 1


def check_size(path: Path, width: int, height: int) -> None:
    """Check the size in the header before the image is decoded.

    Args:
        path: named in messages.
        width, height: pixels.

    Raises:
        InputError: more than ``MAX_PIXELS`` pixels, or a side longer than ``MAX_SIDE_PX``.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE_PX:
        raise InputError(
            f"{path}: {width} x {height} px; at most {MAX_PIXELS // 10**6} million pixels and "
            f"{MAX_SIDE_PX} px a side are read. Export it smaller."
        )


def usable_spacing(x_mm: float, y_mm: float) -> Spacing | None:
    """A size of a pixel; None where it cannot be that of a retinal image.

    Args:
        x_mm, y_mm: width and height of a pixel, mm; may be NaN or 0.
    """
    plausible = all(MIN_SPACING_MM <= value <= MAX_SPACING_MM for value in (x_mm, y_mm))
    return (float(x_mm), float(y_mm)) if plausible else None


def to_full_range(values: np.ndarray, bits: int) -> np.ndarray:
    """Scale values of fewer than 8 bits to 8 bits; others unchanged.

    Args:
        values: unsigned integers, any shape.
        bits: that are used of each.
    """
    if bits >= 8:
        return values
    return (values.astype(np.uint16) * 255 // (2**bits - 1)).astype(np.uint8)


def as_storable(values: np.ndarray) -> np.ndarray:
    """Bring pixels to one of the three types: uint8, uint16 or float32.

    Args:
        values: any shape; integers, floats or bool.
    """
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype.kind in "iu" and values.size and values.min() >= 0:
        for kind in (np.uint8, np.uint16):
            if values.dtype.itemsize <= np.dtype(kind).itemsize:
                return values.astype(kind, copy=False)
    return values.astype(np.float32, copy=False)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an image as its orientation tag (EXIF and TIFF, tag 274) asks.

    Args:
        pixels: (H, W) or (H, W, C) as stored.
        orientation: 1 to 8; other values leave the image as it is.

    Returns:
        (H, W[, C]) or (W, H[, C]).
    """
    if orientation in (5, 6, 7, 8):  # rows and columns are exchanged
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
