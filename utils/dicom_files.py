"""Read DICOM images with pydicom: pixels, size of a pixel and side of the body, nothing personal.

Only the elements of ``ELEMENTS`` are read, so that no name, birth date or identifier of a patient
can reach a result. pydicom's own messages may quote other elements and are not passed on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import HTJ2K, UID, HTJ2KLossless, HTJ2KLosslessRPCL, JPEGExtended12Bit

from utils.errors import InputError
from utils.stored_image import (
    Spacing,
    StoredImage,
    as_storable,
    check_size,
    choose_frame,
    to_full_range,
    usable_spacing,
)

COLORS = (
    "MONOCHROME1",
    "MONOCHROME2",
    "PALETTE COLOR",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
)
PIXEL_ELEMENTS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
PALETTE_ELEMENTS = tuple(
    f"{kind}{color}PaletteColorLookupTable{part}"
    for color in ("Red", "Green", "Blue")
    for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
)
ELEMENTS = (
    *PIXEL_ELEMENTS,
    *PALETTE_ELEMENTS,
    "PixelSpacing",
    "Laterality",
    "ImageLaterality",
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
# Compressions that neither gdcm nor Pillow reads.
FURTHER_DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    JPEGExtended12Bit: imagecodecs.jpeg_decode,
    HTJ2K: imagecodecs.jpeg2k_decode,
    HTJ2KLossless: imagecodecs.jpeg2k_decode,
    HTJ2KLosslessRPCL: imagecodecs.jpeg2k_decode,
}
MAX_TEXT = 64  # characters of an element in the provenance, the limit of DICOM's LO


def read_dicom(path: Path, selector: str) -> StoredImage:
    """Read one frame of a DICOM image.

    MONOCHROME1 is inverted, so that in every result bright is bright; palettes and YBR become RGB.

    Args:
        path: of the file.
        selector: number of the frame, from 1; "" where the path has none.

    Raises:
        InputError: unreadable file, several frames and none chosen, or colours or a compression
            that the installed readers do not know.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote elements
        header = _read_header(path)
        frame = choose_frame(path, selector, int(header.get("NumberOfFrames") or 1))
        try:
            values = _decode(path, header, frame)
        # Damaged data raise any exception, in the readers of every compression. ``from None``,
        # because their messages may quote elements.
        except Exception as error:
            syntax = UID(header.file_meta.TransferSyntaxUID)
            raise InputError(
                f"{path}: the pixels cannot be decoded ({type(error).__name__}; {syntax.name}); "
                "the file is damaged, or its compression is unknown; export it again, or as PNG or "
                "TIFF."
            ) from None
        pixels = _upright_colors(values, header)
    return StoredImage(
        pixels, _spacing(header, frame), _laterality(header, frame), _provenance(header, frame)
    )


def count_frames(path: Path) -> int:
    """Number of frames of a DICOM file.

    Args:
        path: of the file.

    Raises:
        InputError: no readable DICOM image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return int(_read_header(path).get("NumberOfFrames") or 1)


def _decode(path: Path, header: Dataset, frame: int) -> np.ndarray:
    """One frame, (H, W) or (H, W, 3), as pydicom gives it: RGB, unused bits cleared."""
    decode = FURTHER_DECODERS.get(header.file_meta.TransferSyntaxUID)
    if decode is None:
        return pixel_array(path, index=frame)
    stream = pydicom.dcmread(path, specific_tags=["PixelData"]).PixelData
    n_frames = int(header.get("NumberOfFrames") or 1)
    return decode(get_frame(stream, frame, number_of_frames=n_frames))


def _read_header(path: Path) -> Dataset:
    """The elements of ``ELEMENTS``, checked.

    Raises:
        InputError: no DICOM image, or one that cannot be used.
    """
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(ELEMENTS))
        colors, size = str(header.PhotometricInterpretation), (header.Columns, header.Rows)
        _ = header.file_meta.TransferSyntaxUID, int(header.BitsStored)
    except Exception as error:
        raise InputError(
            f"{path}: not a readable DICOM image ({type(error).__name__}); export it again, or as "
            "PNG or TIFF."
        ) from None
    if colors not in COLORS:
        raise InputError(
            f"{path}: colours of the kind {colors[:MAX_TEXT]!r}; {', '.join(COLORS)} are read. "
            "Export it as PNG or TIFF."
        )
    check_size(path, *size)
    return header


def _upright_colors(values: np.ndarray, header: Dataset) -> np.ndarray:
    """Grey (H, W) with bright as bright, or RGB (H, W, 3); uint8, uint16 or float32.

    Convention: pydicom has already turned YBR into RGB and cleared unused bits.
    """
    bits, colors = int(header.BitsStored), str(header.PhotometricInterpretation)
    if colors == "PALETTE COLOR":
        rgb = apply_color_lut(values, header)
        # Palettes of 16 bits describe pixels of 8 bits.
        return (rgb >> 8).astype(np.uint8) if rgb.dtype == np.uint16 else rgb.astype(np.uint8)
    if values.dtype.kind == "f":
        return as_storable(values)
    if values.dtype.kind == "i":
        values = values.astype(np.int64) + 2 ** (bits - 1)
    if colors == "MONOCHROME1":
        values = 2**bits - 1 - values
    if bits <= 8:
        return to_full_range(np.clip(values, 0, 2**bits - 1).astype(np.uint8), bits)
    return as_storable(values.astype(np.uint16) if bits <= 16 else values)


def _groups(header: Dataset, frame: int) -> list[Dataset]:
    """The functional groups of a frame: its own, then those that all frames share."""
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    return [*own[frame : frame + 1], *shared[:1]]


def _nested(header: Dataset, frame: int, sequence: str, element: str) -> Any:
    """An element of the first functional group that has it; None without."""
    for group in _groups(header, frame):
        for item in group.get(sequence) or []:
            if item.get(element):
                return item.get(element)
    return None


def _spacing(header: Dataset, frame: int) -> Spacing | None:
    """Width and height of a pixel, mm. ``ImagerPixelSpacing`` is that of the sensor: not used."""
    value = header.get("PixelSpacing") or _nested(
        header, frame, "PixelMeasuresSequence", "PixelSpacing"
    )
    try:
        row_mm, column_mm = (float(number) for number in value)
    except (TypeError, ValueError):
        return None
    return usable_spacing(column_mm, row_mm)


def _laterality(header: Dataset, frame: int) -> str:
    """ "R" or "L"; "" where the file says neither."""
    value = (
        header.get("ImageLaterality")
        or header.get("Laterality")
        or _nested(header, frame, "FrameAnatomySequence", "FrameLaterality")
    )
    return str(value) if value in ("R", "L") else ""


def _provenance(header: Dataset, frame: int) -> dict[str, str]:
    """Facts about the image, none about the patient."""
    texts = {
        "modality": header.get("Modality"),
        "manufacturer": header.get("Manufacturer"),
        "model": header.get("ManufacturerModelName"),
        "colors": header.PhotometricInterpretation,
        "bits_stored": header.BitsStored,
        "transfer_syntax": UID(header.file_meta.TransferSyntaxUID).name,
        "frame": frame + 1,
    }
    found = {name: str(text)[:MAX_TEXT] for name, text in texts.items() if text not in (None, "")}
    return {"format": "DICOM", **found}
