"""DICOM as input: every colour space and transfer syntax that the installed readers know."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_cases import (
    LOSSLESS,
    LOSSY,
    SIZE,
    SPACING,
    UNCOMPRESSED,
    has_patient,
    in_frame_groups,
    picture,
    subsampled,
    write_dicom,
    write_palette,
    ybr_of,
)
from helpers import truncate
from pydicom.sequence import Sequence
from pydicom.uid import MPEG2MPML, JPEGExtended12Bit, JPEGLosslessSV1, RLELossless

from utils.errors import InputError
from utils.image_decoding import read_stored
from utils.image_files import read_color, read_gray, read_mask


@pytest.mark.parametrize("syntax", [*UNCOMPRESSED, *LOSSLESS], ids=lambda uid: uid.name)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_grey_of_every_depth_is_read_exactly(tmp_path, syntax, bits):
    path = write_dicom(tmp_path / "a.dcm", picture(bits), syntax=syntax, bits=bits)
    stored = read_stored(path)
    assert stored.pixels.dtype == picture(bits).dtype
    assert np.array_equal(stored.pixels, picture(bits))


@pytest.mark.parametrize("syntax", [*UNCOMPRESSED, *LOSSLESS], ids=lambda uid: uid.name)
def test_rgb_is_read_exactly(tmp_path, syntax):
    path = write_dicom(tmp_path / "a.dcm", picture(colors=3), "RGB", syntax)
    assert np.array_equal(read_stored(path).pixels, picture(colors=3))
    assert np.abs(read_color(path) - picture(colors=3) / 255.0).max() < 1e-6
    assert np.array_equal(read_gray(path), read_color(path)[..., 1])


@pytest.mark.parametrize("syntax", LOSSY, ids=lambda uid: uid.name)
def test_lossy_grey_and_colour(tmp_path, syntax):
    path = write_dicom(tmp_path / "grey.dcm", picture(), syntax=syntax)
    assert np.abs(read_stored(path).pixels - picture().astype(float)).mean() < 2.0
    colors = "RGB" if "JPEG-LS" in syntax.name or "2000" in syntax.name else "YBR_FULL_422"
    path = write_dicom(tmp_path / "color.dcm", picture(colors=3), colors, syntax)
    assert np.abs(read_stored(path).pixels - picture(colors=3).astype(float)).mean() < 5.0


def test_jpeg_of_12_bits(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", picture(12), syntax=JPEGExtended12Bit, bits=12)
    assert np.abs(read_stored(path).pixels - picture(12).astype(float)).mean() < 20.0


def test_uncompressed_ybr_becomes_rgb(tmp_path):
    rgb = picture(colors=3)
    full = write_dicom(tmp_path / "full.dcm", ybr_of(rgb), "YBR_FULL")
    assert np.abs(read_stored(full).pixels - rgb.astype(float)).max() <= 2
    half = np.repeat(rgb[:, ::2], 2, axis=1)  # chroma is shared by two pixels
    path = write_dicom(tmp_path / "half.dcm", ybr_of(half), "YBR_FULL_422")
    content = path.read_bytes()
    path.write_bytes(content.replace(ybr_of(half).tobytes(), subsampled(ybr_of(half))))
    assert path.stat().st_size < len(content)
    import pydicom

    data = pydicom.dcmread(full)
    data.PhotometricInterpretation = "YBR_FULL_422"
    data.PixelData = subsampled(ybr_of(half))
    data.save_as(path)
    assert np.abs(read_stored(path).pixels - half.astype(float)).max() <= 2


def test_planar_rgb(tmp_path):
    planes = np.ascontiguousarray(np.moveaxis(picture(colors=3), -1, 0))
    path = write_dicom(tmp_path / "a.dcm", picture(colors=3), "RGB", PlanarConfiguration=1)
    path.write_bytes(path.read_bytes().replace(picture(colors=3).tobytes(), planes.tobytes()))
    assert np.array_equal(read_stored(path).pixels, picture(colors=3))


@pytest.mark.parametrize("entry_bits", [8, 16])
def test_palettes_become_rgb(tmp_path, entry_bits):
    path, colors = write_palette(tmp_path / "a.dcm", entry_bits)
    stored = read_stored(path)
    assert stored.pixels.dtype == np.uint8 and np.array_equal(stored.pixels, colors)


@pytest.mark.parametrize("bits", [8, 12])
def test_bright_is_bright_in_monochrome1(tmp_path, bits):
    inverted = (2**bits - 1 - picture(bits)).astype(picture(bits).dtype)
    path = write_dicom(tmp_path / "a.dcm", inverted, "MONOCHROME1", bits=bits)
    assert np.array_equal(read_stored(path).pixels, picture(bits))


def test_signed_pixels_and_unused_bits(tmp_path):
    signed = (picture(12).astype(np.int32) - 2048).astype(np.int16)
    path = write_dicom(tmp_path / "signed.dcm", signed, bits=12)
    assert np.array_equal(read_stored(path).pixels, picture(12))
    overlay = picture(12) | np.uint16(0x5000)  # old files keep other things in the unused bits
    path = write_dicom(tmp_path / "overlay.dcm", overlay, bits=12)
    assert np.array_equal(read_stored(path).pixels, picture(12))


def test_frames_are_chosen_by_number(tmp_path):
    frames = np.stack([picture(), picture()[::-1], picture()[:, ::-1]])
    for syntax in (UNCOMPRESSED[0], RLELossless, JPEGLosslessSV1):
        path = write_dicom(tmp_path / "a.dcm", frames, syntax=syntax, frames=True)
        for number in (1, 2, 3):
            stored = read_stored(f"{path}#{number}")
            assert np.array_equal(stored.pixels, frames[number - 1])
            assert stored.provenance["frame"] == str(number)
    with pytest.raises(InputError, match=r"a.dcm: holds 3 frames; choose one.*a.dcm#3"):
        read_gray(path)
    for wrong in ("0", "4", "x", "-1"):
        with pytest.raises(InputError, match="holds 3 frames"):
            read_gray(f"{path}#{wrong}")


def test_a_mask_in_dicom(tmp_path):
    path = write_dicom(tmp_path / "m.dcm", (picture() > 128).astype(np.uint8), bits=1)
    assert np.array_equal(read_mask(path), picture() > 128)


def test_spacing_laterality_and_provenance(tmp_path):
    stored = read_stored(write_dicom(tmp_path / "a.dcm", picture()))
    assert stored.spacing_mm == pytest.approx((SPACING[1], SPACING[0])), "x, then y"
    assert stored.laterality == "R"
    assert stored.provenance == {
        "format": "DICOM",
        "modality": "OP",
        "manufacturer": "Maker",
        "model": "Camera 5",
        "colors": "MONOCHROME2",
        "bits_stored": "8",
        "transfer_syntax": "Explicit VR Little Endian",
        "frame": "1",
    }


def test_spacing_and_laterality_of_enhanced_images(tmp_path):
    shared, own = in_frame_groups((0.02, 0.01), "L"), in_frame_groups((0.04, 0.03), "L")
    none = {"PixelSpacing": None, "ImageLaterality": None}
    frames = np.stack([picture(), picture()])
    groups = {"SharedFunctionalGroupsSequence": Sequence([shared])}
    path = write_dicom(tmp_path / "a.dcm", frames, frames=True, **none, **groups)
    assert read_stored(f"{path}#2").spacing_mm == pytest.approx((0.01, 0.02))
    assert read_stored(f"{path}#2").laterality == "L"
    groups |= {"PerFrameFunctionalGroupsSequence": Sequence([in_frame_groups(None, "L"), own])}
    path = write_dicom(tmp_path / "b.dcm", frames, frames=True, **none, **groups)
    assert read_stored(f"{path}#1").spacing_mm == pytest.approx((0.01, 0.02))
    assert read_stored(f"{path}#2").spacing_mm == pytest.approx((0.03, 0.04))


@pytest.mark.parametrize("spacing", [None, [0.0, 0.01], [1.0, 1.0], [-0.01, 0.01]])
def test_a_spacing_that_no_retina_has_is_not_used(tmp_path, spacing):
    path = write_dicom(tmp_path / "a.dcm", picture(), PixelSpacing=spacing)
    assert read_stored(path).spacing_mm is None
    path = write_dicom(
        tmp_path / "b.dcm", picture(), PixelSpacing=None, ImagerPixelSpacing=[0.005] * 2
    )
    assert read_stored(path).spacing_mm is None, "that of the sensor"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("syntax", [UNCOMPRESSED[0], RLELossless, JPEGLosslessSV1])
def test_damaged_files_are_named_and_their_patients_are_not(tmp_path, share, syntax):
    path = write_dicom(tmp_path / "a.dcm", picture(), syntax=syntax)
    truncate(path, share)
    with pytest.raises(InputError, match="a.dcm") as caught:
        read_gray(path)
    assert "Doeworthy" not in str(caught.value) and caught.value.__cause__ is None


def test_foreign_files_and_colours_are_refused(tmp_path):
    (tmp_path / "no.dcm").write_bytes(b"hello" * 100)
    with pytest.raises(InputError, match="no.dcm: not a readable DICOM"):
        read_gray(tmp_path / "no.dcm")
    path = write_dicom(tmp_path / "a.dcm", picture(colors=3), "HSV")
    with pytest.raises(InputError, match="a.dcm.*'HSV'.*RGB"):
        read_gray(path)
    path = write_dicom(tmp_path / "b.dcm", picture(), syntax=RLELossless)
    import pydicom

    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = MPEG2MPML
    data.save_as(path)
    with pytest.raises(InputError, match="b.dcm.*MPEG2.*unknown"):
        read_gray(path)


def test_dicom_is_known_by_its_content_and_bounded_by_its_header(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "IM000001", picture())
    assert read_gray(path).shape == SIZE and has_patient(path)
    from utils import stored_image

    monkeypatch.setattr(stored_image, "MAX_PIXELS", 100)
    with pytest.raises(InputError, match="128 x 96 px.*smaller"):
        read_gray(path)
