"""Read TIFF files as stored, with the size of a pixel, and write them with it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from tifffile import PHOTOMETRIC, TiffPage

from utils.errors import InputError
from utils.files import replace_atomically
from utils.stored_image import (
    EXPORT_AGAIN,
    Spacing,
    StoredImage,
    as_storable,
    check_size,
    choose_frame,
    to_full_range,
    upright,
    usable_spacing,
)

# What it says of damaged files is said by an InputError.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF and BigTIFF, both byte orders
# Resolutions that describe paper or screens, not the retina, pixels per inch.
PRINT_DPI = (72, 75, 96, 100, 120, 144, 150, 180, 200, 240, 300, 350, 400, 600, 1200, 2400)
MM_PER_UNIT = {2: 25.4, 3: 10.0}  # of the tag ResolutionUnit: inch, centimetre
IMAGEJ_MM = {"mm": 1.0, "cm": 10.0, "micron": 1e-3, "um": 1e-3, "\\u00b5m": 1e-3, "µm": 1e-3}
MAX_CHANNELS = 6  # colours and extra samples of a pixel


@dataclass(frozen=True)
class Resolution:
    """Resolution tags of a page: pixels per unit along x and y, and the unit (1, 2 or 3)."""

    x: float
    y: float
    unit: int


def is_tiff(head: bytes) -> bool:
    """Whether a file is a TIFF.

    Args:
        head: its first bytes, at least 4.
    """
    return head[:4] in TIFF_HEADS


def read_tiff(path: Path, selector: str) -> StoredImage:
    """Read one page of a TIFF.

    Args:
        path: of the file.
        selector: number of the page, from 1; "" where the path has none.

    Raises:
        InputError: unreadable file, several pages and none chosen, or colours that have no meaning
            here.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            first = tiff.pages.first
            check_size(path, first.imagewidth, first.imagelength)
            pages: list[Any] = [page for page in tiff.pages if _is_like(page, first)]
            if len(pages) == 1 and selector and is_planar(first):
                return _image_of(path, tiff, first, choose_frame(path, selector, 3))
            return _image_of(path, tiff, pages[choose_frame(path, selector, len(pages))], None)
    except InputError:
        raise
    # Damaged headers and data raise any exception, in the readers of every compression.
    except Exception as error:
        reason = f"unreadable or truncated image ({type(error).__name__})"
        raise InputError(f"{path}: {reason}; {EXPORT_AGAIN}.") from error


def _is_like(page: Any, first: TiffPage) -> bool:
    """Whether a page is a frame like the first; reduced copies and icons are not."""
    sizes = (page.imagelength, page.imagewidth), (first.imagelength, first.imagewidth)
    return sizes[0] == sizes[1] and not getattr(page, "is_reduced", False)


def is_planar(page: TiffPage) -> bool:
    """Whether the samples of a page are stored one after the other, (S, H, W).

    Args:
        page: of a TIFF.
    """
    return page.samplesperpixel > 1 and page.planarconfig == 2


def _image_of(
    path: Path, tiff: tifffile.TiffFile, page: TiffPage, plane: int | None
) -> StoredImage:
    if page.samplesperpixel > MAX_CHANNELS or page.imagedepth > 1:
        raise InputError(
            f"{path}: {page.samplesperpixel} samples a pixel in {page.imagedepth} layers; "
            f"{EXPORT_AGAIN}, grey or RGB."
        )
    values = decode_page(path, page)
    values = values[plane] if plane is not None else _to_grey_or_rgb(path, page, values)
    orientation = page.tags.get(274)
    spacing = _spacing(tiff, page)
    turn = 1 if orientation is None else int(orientation.value)
    if spacing is not None and turn in (5, 6, 7, 8):
        spacing = spacing[::-1]
    return StoredImage(as_storable(upright(values, turn)), spacing, "", {"format": "TIFF"})


def decode_page(path: Path, page: TiffPage) -> np.ndarray:
    """Pixels of a page as stored: (H, W), (H, W, S), or (S, H, W) of a planar page.

    Args:
        path: of the file, for the message.
        page: of it.

    Raises:
        InputError: pixel data that end too early.
    """
    if any(
        offset + count > page.parent.filehandle.size
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
    ):
        raise InputError(f"{path}: unreadable or truncated image; {EXPORT_AGAIN}.")
    return page.asarray()


def _to_grey_or_rgb(path: Path, page: TiffPage, values: np.ndarray) -> np.ndarray:
    """Grey (H, W) or RGB (H, W, 3) from the colours of a page."""
    if is_planar(page):
        values = np.moveaxis(values, 0, -1)
    bits, photometric = int(page.bitspersample), page.photometric
    if photometric == PHOTOMETRIC.PALETTE:
        # Entries have 16 bits, of which photographs use the upper 8.
        colors = np.asarray(page.colormap)[:, values.astype(int)]
        return np.moveaxis(colors >> 8 if colors.max() > 255 else colors, 0, -1).astype(np.uint8)
    if values.ndim == 3 and values.shape[2] == 2:
        values = values[..., 0]  # grey and opacity
    if photometric == PHOTOMETRIC.MINISWHITE:
        values = ~values if values.dtype == bool else 2**bits - 1 - values
    elif photometric == PHOTOMETRIC.SEPARATED and values.ndim == 3 and values.shape[2] >= 4:
        values = rgb_of_cmyk(values)
    elif photometric == PHOTOMETRIC.YCBCR and page.compression not in (6, 7):
        values = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB))
    elif photometric not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR):
        kind = getattr(photometric, "name", photometric)
        raise InputError(f"{path}: colours of the kind {kind}; {EXPORT_AGAIN}, in RGB.")
    if values.ndim == 3:
        values = values[..., :3] if values.shape[2] >= 3 else values[..., 0]
    return to_full_range(values, bits) if values.dtype == np.uint8 else values


def rgb_of_cmyk(values: np.ndarray) -> np.ndarray:
    """RGB of the colours of print, without a colour profile: R = (1 - C) (1 - K).

    Args:
        values: (H, W, 4 or more), uint8 or uint16; 0 is no ink.

    Returns:
        (H, W, 3) of the same type.
    """
    top = np.iinfo(values.dtype).max
    ink = values.astype(np.float32) / top
    rgb = (1.0 - ink[..., :3]) * (1.0 - ink[..., 3:4])
    return np.rint(rgb * top).astype(values.dtype)


def resolution_of(page: TiffPage) -> Resolution | None:
    """The resolution tags of a page; None without.

    Args:
        page: of a TIFF.
    """
    values = [tag.value for code in (282, 283) if (tag := page.tags.get(code)) is not None]
    if len(values) < 2 or any(not value[1] for value in values):
        return None
    x, y = (value[0] / value[1] for value in values)
    unit = page.tags.get(296)
    return Resolution(x, y, 2 if unit is None else int(unit.value)) if x > 0 < y else None


def _spacing(tiff: tifffile.TiffFile, page: TiffPage) -> Spacing | None:
    """Size of a pixel on the retina, of the resolution tags or of ImageJ's description."""
    resolution = resolution_of(page)
    if resolution is None:
        return None
    x, y, unit = resolution.x, resolution.y, MM_PER_UNIT.get(resolution.unit)
    if tiff.is_imagej:
        unit = IMAGEJ_MM.get(str((tiff.imagej_metadata or {}).get("unit", "")).lower())
    elif unit is not None and any(
        math.isclose(25.4 / unit * x, dpi, rel_tol=2e-3) for dpi in PRINT_DPI
    ):
        return None
    return None if unit is None else usable_spacing(unit / x, unit / y)


def resolution_arguments(
    spacing_mm: Spacing | None, resolution: Resolution | None = None
) -> dict[str, Any]:
    """Arguments for ``tifffile`` that write the size of a pixel.

    Args:
        spacing_mm: (x, y), mm; written as pixels per centimetre.
        resolution: tags that are written where ``spacing_mm`` is None.
    """
    if spacing_mm is not None:
        resolution = Resolution(10.0 / spacing_mm[0], 10.0 / spacing_mm[1], 3)
    if resolution is None:
        return {}
    return {"resolution": (resolution.x, resolution.y), "resolutionunit": resolution.unit}


def write_tiff(path: Path, image: np.ndarray, spacing_mm: Spacing | None) -> None:
    """Write a TIFF of one page atomically, with the size of a pixel.

    Args:
        path: of the file.
        image: (H, W) or (H, W, 3) RGB; uint8, uint16 or float32.
        spacing_mm: (x, y), mm; None where it is unknown.
    """
    with replace_atomically(path) as temporary:
        tifffile.imwrite(
            temporary,
            image,
            photometric="rgb" if image.ndim == 3 else "minisblack",
            compression="zlib",
            metadata=None,
            **resolution_arguments(spacing_mm),
        )
