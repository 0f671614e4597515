"""Resample image files by a saved transform: single images, stacks, DICOM with several frames."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tifffile

from geometry.transform_files import SavedTransform
from geometry.warped_frames import FIXED, warp_frame
from utils.dicom_files import count_frames, read_dicom
from utils.errors import InputError
from utils.files import replace_atomically, write_bytes_atomically
from utils.image_decoding import orientation_of, read_head
from utils.stored_image import Spacing, is_dicom, split_selector, upright
from utils.tiff_files import is_planar, is_tiff, resolution_arguments, resolution_of

ORIENTATION = 274  # number of the tag


class Page(NamedTuple):
    """One page of a stack.

    Attributes:
        pixels: (H, W) or (H, W, C), upright; planes of a planar page are its channels.
        arguments: of ``tifffile`` that write it in its own form.
    """

    pixels: np.ndarray
    arguments: dict[str, Any]


def warp_file(path: Path, out: Path, transform: SavedTransform, frame: str, nearest: bool) -> int:
    """Resample an image file, a TIFF or DICOM page by page.

    A TIFF gets the size of a pixel of the other frame where ``transform`` has it, and keeps its own
    resolution tags otherwise.

    Args:
        path: of the image, with or without ``#<number of a frame>``.
        out: the file to write.
        transform: between the two frames.
        frame: in which the image lies, "moving" or "fixed".
        nearest: nearest neighbour instead of bilinear interpolation.

    Returns:
        Number of pages.

    Raises:
        InputError: unreadable file, or one that does not fit the transform; the message names it.
    """
    file, selector = split_selector(path)
    head = read_head(file)
    if is_tiff(head) or is_dicom(head, file):
        pages = _pages_of_tiff(file) if is_tiff(head) else _pages_of_dicom(file, selector)
        return _warp_pages(file, pages, out, transform, frame, nearest)
    try:
        warped = warp_frame(_read_with_opacity(file), transform, frame, nearest)
    except InputError as error:
        raise error if str(file) in str(error) else InputError(f"{file}: {error}") from error
    encoded, data = cv2.imencode(out.suffix, warped)
    if not encoded:
        raise InputError(f"{file}: cannot be written as {out.suffix}; convert it to PNG or TIFF.")
    write_bytes_atomically(out, data.tobytes())
    return 1


def _read_with_opacity(path: Path) -> np.ndarray:
    """All channels of an image, upright, in OpenCV's order, in which they are written again."""
    data = np.fromfile(path, dtype=np.uint8)
    orientation = orientation_of(path, data)
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise InputError(f"{path}: unreadable image; export it again as PNG, JPEG or TIFF.")
    return upright(image, orientation)


def _pages_of_dicom(path: Path, selector: str) -> Iterator[Page]:
    numbers = [selector] if selector else map(str, range(1, count_frames(path) + 1))
    for number in numbers:
        stored = read_dicom(path, number)
        yield Page(stored.pixels, resolution_arguments(stored.spacing_mm) | _form_of(stored.pixels))


def _form_of(pixels: np.ndarray) -> dict[str, Any]:
    return {"photometric": "rgb" if pixels.ndim == 3 else "minisblack"}


def _pages_of_tiff(path: Path) -> Iterator[Page]:
    """One page at a time, because a recording can exceed the memory."""
    try:
        with tifffile.TiffFile(path) as file:
            for number, page in enumerate(file.pages, start=1):
                yield _page_of(path, number, page, page.asarray())
    except (tifffile.TiffFileError, ValueError, OSError, struct.error, RuntimeError) as error:
        # A truncated header raises struct.error, damaged compressed data RuntimeError. Faults of
        # the output file are raised by the writer, outside this function.
        raise InputError(f"{path}: unreadable TIFF ({error}); export it again.") from error


def _page_of(path: Path, number: int, page: Any, pixels: np.ndarray) -> Page:
    """A page with what is needed to write it in its own form.

    Planes that are stored one after the other stay so. They may be the colours of an image, or the
    frames of a stack: many programs write a stack of three frames in this way.
    """
    arguments: dict[str, Any] = resolution_arguments(None, resolution_of(page))
    planar = is_planar(page) and pixels.ndim == 3
    if planar:
        pixels = np.moveaxis(pixels, 0, -1)
        arguments["planarconfig"] = "separate"
    elif pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise InputError(
            f"{path}: page {number} has the shape {pixels.shape}; grey or colour pages are needed."
        )
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        arguments["photometric"] = "miniswhite"
    elif page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        arguments |= {"photometric": "palette", "colormap": page.colormap}
    elif page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
        arguments["photometric"] = "separated"
    elif planar and page.photometric != tifffile.PHOTOMETRIC.RGB:
        arguments["photometric"] = "minisblack"
    else:
        arguments["photometric"] = "rgb" if pixels.ndim == 3 else "minisblack"
    turn = page.tags.get(ORIENTATION)
    return Page(upright(pixels, 1 if turn is None else int(turn.value)), arguments)


def _warp_pages(
    path: Path,
    pages: Iterator[Page],
    out: Path,
    transform: SavedTransform,
    frame: str,
    nearest: bool,
) -> int:
    spacing = transform.moving_spacing_mm if frame == FIXED else transform.fixed_spacing_mm
    n_pages = 0
    with replace_atomically(out) as temporary, tifffile.TiffWriter(temporary) as writer:
        for n_pages, page in enumerate(pages, start=1):
            try:
                warped = warp_frame(page.pixels, transform, frame, nearest or _is_index(page))
            except InputError as error:
                raise InputError(f"{path}: page {n_pages}: {error}") from error
            if page.arguments.get("planarconfig"):
                warped = np.moveaxis(warped, -1, 0)
            writer.write(
                np.ascontiguousarray(warped),
                compression="zlib",
                metadata=None,  # plain pages, which every reader takes for one stack
                **(page.arguments | _target_resolution(spacing)),
            )
    return n_pages


def _target_resolution(spacing: Spacing | None) -> dict[str, Any]:
    return resolution_arguments(spacing) if spacing is not None else {}


def _is_index(page: Page) -> bool:
    """Whether the pixels are numbers of colours, between which nothing can be interpolated."""
    return page.arguments.get("photometric") == "palette"
