"""DICOM files made by the tests: every colour space and transfer syntax, with a patient in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
from helpers import blurred_noise
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    generate_uid,
)

SIZE = (96, 128)
SPACING = (0.0125, 0.0061)  # of a row and of a column, mm: DICOM's order
PATIENT = {
    "PatientName": "Doeworthy^Janette",
    "PatientID": "PID-7734421",
    "PatientBirthDate": "19610923",
    "PatientComments": "likes hiking in Xanadu",
    "OtherPatientNames": "Smithersby^Janette",
    "AccessionNumber": "ACC-9917",
    "ReferringPhysicianName": "Quacksworth^Ernest",
    "InstitutionName": "Clinic of Nowherestadt",
    "StudyDescription": "retina of Doeworthy",
    "ImageComments": "Doeworthy, born 19610923",
}
SECRETS = ("Doeworthy", "Janette", "7734421", "19610923", "Xanadu", "Smithersby", "9917",
           "Quacksworth", "Nowherestadt")  # fmt: skip
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
LOSSLESS = (RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless)
LOSSY = (JPEGBaseline8Bit, JPEGLSNearLossless, JPEG2000)


def picture(bits: int = 8, colors: int = 1) -> np.ndarray:
    """A smooth picture (H, W) or (H, W, 3), of uint8 or uint16, that uses all of its bits."""
    noise = blurred_noise((SIZE[0], SIZE[1] * colors))
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    image = np.rint(noise * (2**bits - 1)).astype(np.uint8 if bits <= 8 else np.uint16)
    return image if colors == 1 else np.dstack(np.split(image, colors, axis=1))


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    colors: str = "MONOCHROME2",
    syntax: str = ExplicitVRLittleEndian,
    bits: int | None = None,
    frames: bool = False,
    **elements: Any,
) -> Path:
    """Write a DICOM file with a patient in it.

    Args:
        path: of the file.
        pixels: (H, W), (H, W, 3), or with one more axis before where ``frames``.
        colors: photometric interpretation.
        syntax: transfer syntax.
        bits: stored; all of the type when None.
        frames: whether the first axis counts frames.
        elements: further ones, by keyword; None leaves one out.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.1"  # ophthalmic photograph
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(
        str(path),
        {},
        file_meta=meta,
        preamble=b"\0" * 128,
        is_implicit_VR=syntax == ImplicitVRLittleEndian,
        is_little_endian=syntax != ExplicitVRBigEndian,
    )
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.Modality, data.Manufacturer, data.ManufacturerModelName = "OP", "Maker", "Camera 5"
    data.PixelSpacing, data.ImageLaterality = list(SPACING), "R"
    for name, value in PATIENT.items():
        setattr(data, name, value)
    stack = pixels if frames else pixels[None]
    data.Rows, data.Columns = stack.shape[1:3]
    data.SamplesPerPixel = 3 if stack.ndim == 4 else 1
    if stack.ndim == 4:
        data.PlanarConfiguration = 0
    if frames:
        data.NumberOfFrames = len(stack)
    data.PhotometricInterpretation = colors
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    _add_pixels(data, stack, syntax)
    data.save_as(path, enforce_file_format=True)
    return path


def _add_pixels(data: FileDataset, stack: np.ndarray, syntax: str) -> None:
    if syntax in UNCOMPRESSED:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        data.PixelData = stack.astype(stack.dtype.newbyteorder(order)).tobytes()
        data["PixelData"].VR = "OW" if data.BitsAllocated > 8 else "OB"
    elif syntax == RLELossless:
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.PixelData = stack.tobytes()
        data["PixelData"].VR = "OW" if data.BitsAllocated > 8 else "OB"
        data.compress(RLELossless)
    else:
        data.PixelData = encapsulate([encoded(frame, syntax, data.BitsStored) for frame in stack])
        data["PixelData"].VR = "OB"


def encoded(frame: np.ndarray, syntax: str, bits: int) -> bytes:
    """One frame as a code stream of a transfer syntax."""
    if syntax == JPEGBaseline8Bit:
        return imagecodecs.jpeg8_encode(frame, level=97)
    if syntax == JPEGExtended12Bit:
        return imagecodecs.jpeg8_encode(frame, level=97, bitspersample=12)
    if syntax == JPEGLosslessSV1:
        if frame.ndim == 3:
            return imagecodecs.jpeg8_encode(frame, lossless=True, colorspace="rgb")
        return imagecodecs.ljpeg_encode(frame, bitspersample=bits)
    if syntax in (JPEGLSLossless, JPEGLSNearLossless):
        return imagecodecs.jpegls_encode(frame, level=0 if syntax == JPEGLSLossless else 2)
    if syntax == HTJ2KLossless:
        return imagecodecs.htj2k_encode(frame, level=0, reversible=True)
    return imagecodecs.jpeg2k_encode(
        frame,
        level=0 if syntax == JPEG2000Lossless else 45,
        reversible=syntax == JPEG2000Lossless,
        codecformat="j2k",
        bitspersample=bits,
        mct=False,
    )


def write_palette(path: Path, entry_bits: int = 16) -> tuple[Path, np.ndarray]:
    """A palette image; returns its path and its colours (H, W, 3) uint8."""
    index = (picture() // 4).astype(np.uint8)
    table = np.stack([np.linspace(250, 5, 64), np.linspace(0, 255, 64), np.arange(64) % 7 * 30])
    table = np.rint(table).astype(np.uint8)
    elements: dict[str, Any] = {}
    for name, row in zip(("Red", "Green", "Blue"), table, strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [64, 0, entry_bits]
        entries = row.astype("<u2") * 257 if entry_bits == 16 else row
        elements[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    write_dicom(path, index, "PALETTE COLOR", **elements)
    return path, np.moveaxis(table[:, index], 0, -1)


def in_frame_groups(spacing: tuple[float, float] | None, side: str) -> Dataset:
    """The functional group of one frame of an enhanced image."""
    group = Dataset()
    if spacing:
        measures = Dataset()
        measures.PixelSpacing = list(spacing)
        group.PixelMeasuresSequence = Sequence([measures])
    anatomy = Dataset()
    anatomy.FrameLaterality = side
    group.FrameAnatomySequence = Sequence([anatomy])
    return group


def ybr_of(rgb: np.ndarray) -> np.ndarray:
    """YBR_FULL of RGB, (H, W, 3) uint8, by OpenCV."""
    return np.ascontiguousarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]])


def subsampled(ybr: np.ndarray) -> bytes:
    """YBR_FULL_422 of YBR_FULL: two luminances, then the chroma that they share."""
    pairs = ybr.reshape(ybr.shape[0], -1, 2, 3)
    parts = [pairs[..., 0, 0], pairs[..., 1, 0], pairs[..., 0, 1], pairs[..., 0, 2]]
    return np.stack(parts, axis=-1).tobytes()


def names_in(path: Path) -> list[str]:
    """What of the patient's data stands in a file, plain or as UTF-16."""
    content = path.read_bytes()
    return [
        secret
        for secret in SECRETS
        if secret.encode() in content or secret.encode("utf-16-le") in content
    ]


def has_patient(path: Path) -> bool:
    """Whether a DICOM file names its patient, so that a test of secrecy has something to find."""
    return str(pydicom.dcmread(path).PatientName) == PATIENT["PatientName"]
