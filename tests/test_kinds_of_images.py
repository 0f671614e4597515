"""Images as they come: colours of print, palettes, orientation, deep files, stacks, their size."""

from __future__ import annotations

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from dicom_cases import picture
from PIL import Image

from utils.errors import InputError
from utils.image_decoding import read_stored
from utils.image_files import read_gray, write_image
from utils.stored_image import file_of, split_selector
from utils.tiff_files import write_tiff

COLOR = cv2.GaussianBlur(picture(colors=3), (0, 0), 3.0)
HEIGHT, WIDTH = COLOR.shape[:2]


def difference(path, wanted=COLOR) -> float:
    """Mean difference of the pixels of a file from those wanted, grey levels."""
    pixels = read_stored(path).pixels
    assert pixels.shape == wanted.shape
    return float(np.abs(pixels.astype(float) - wanted).mean())


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".gif"])
def test_palette_images_become_rgb(tmp_path, suffix):
    Image.fromarray(COLOR).quantize(128).save(tmp_path / f"a{suffix}")
    assert difference(tmp_path / f"a{suffix}") < 5.0


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_images_become_rgb(tmp_path, suffix):
    cmyk = Image.fromarray(COLOR).convert("CMYK")
    cmyk.save(tmp_path / f"a{suffix}", **({"quality": 97} if suffix == ".jpg" else {}))
    assert difference(tmp_path / f"a{suffix}") < 3.0
    ink = np.asarray(cmyk).copy()
    black = np.minimum.reduce(ink[..., :3], axis=-1)  # the same colours, with black ink
    ink = np.dstack([ink[..., :3] - black[..., None], black])
    tifffile.imwrite(tmp_path / "k.tif", ink, photometric="separated")
    assert read_stored(tmp_path / "k.tif").pixels.shape == COLOR.shape


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_photograph_is_honoured(tmp_path, suffix, orientation):
    from PIL import ImageOps

    path, exif = tmp_path / f"a{suffix}", Image.Exif()
    exif[274] = orientation
    Image.fromarray(COLOR).save(path, exif=exif, **({"quality": 97} if suffix == ".jpg" else {}))
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    assert (wanted.shape[0] == WIDTH) == (orientation >= 5)
    assert difference(path, wanted.astype(float)) < 2.0


def test_a_damaged_exif_block_does_not_spoil_the_image(tmp_path):
    Image.fromarray(COLOR).save(tmp_path / "a.jpg", exif=b"Exif\0\0no such block")
    assert read_gray(tmp_path / "a.jpg").shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
def test_deep_tiffs_are_read_exactly(tmp_path, bits, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(bits), compression=compression)
    assert np.array_equal(read_stored(path).pixels, picture(bits))
    tifffile.imwrite(path, picture(bits, 3), photometric="rgb", compression=compression)
    assert np.array_equal(read_stored(path).pixels, picture(bits, 3))
    tifffile.imwrite(path, picture(bits), photometric="miniswhite")
    assert np.array_equal(read_stored(path).pixels, 65535 - picture(bits))


def test_packed_12_bit_tiff(tmp_path):
    values = picture(12)
    high, low = values.reshape(-1, 2).astype(int).T
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], -1).astype(np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        iter([packed.tobytes()]),
        shape=values.shape,
        dtype=np.uint16,
        bitspersample=12,
        rowsperstrip=HEIGHT,
        photometric="minisblack",
        compression=1,
    )
    assert np.array_equal(read_stored(path).pixels, values)


def test_deep_jpeg_and_deep_png(tmp_path):
    (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg8_encode(picture(12), bitspersample=12))
    assert read_stored(tmp_path / "a.jpg").pixels.dtype == np.uint16
    assert difference(tmp_path / "a.jpg", picture(12)) < 200.0
    assert cv2.imwrite(str(tmp_path / "a.png"), picture(16, 3)[..., ::-1])
    assert np.array_equal(read_stored(tmp_path / "a.png").pixels, picture(16, 3))


def test_numbers_of_any_type(tmp_path):
    for kind in (np.int16, np.int32, np.uint32, np.float16, np.float64):
        tifffile.imwrite(tmp_path / "a.tif", (picture() + 3).astype(kind))
        pixels = read_stored(tmp_path / "a.tif").pixels
        assert pixels.dtype in (np.uint16, np.float32) and np.array_equal(pixels, picture() + 3)
    tifffile.imwrite(tmp_path / "a.tif", picture() > 100)
    assert set(np.unique(read_stored(tmp_path / "a.tif").pixels)) == {0, 255}


def test_opacity_is_left_out(tmp_path):
    Image.fromarray(np.dstack([COLOR, picture()])).save(tmp_path / "a.png")
    grey = Image.fromarray(picture())
    Image.merge("LA", (grey, grey)).save(tmp_path / "la.png")
    assert difference(tmp_path / "a.png") == 0.0
    assert np.array_equal(read_gray(tmp_path / "la.png"), picture() / np.float32(255.0))


def test_a_frame_of_a_stack_is_chosen_by_number(tmp_path):
    frames, path = np.stack([picture(), picture()[::-1], picture()[:, ::-1]]), tmp_path / "a.tif"
    tifffile.imwrite(path, frames, photometric="minisblack")
    for number in (1, 2, 3):
        assert np.array_equal(read_stored(f"{path}#{number}").pixels, frames[number - 1])
    with pytest.raises(InputError, match="a.tif: holds 3 frames; choose one"):
        read_gray(path)
    with pytest.raises(InputError, match="a.tif#4"):
        read_gray(f"{path}#4")
    tifffile.imwrite(path, frames, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_stored(path).pixels, np.moveaxis(frames, 0, -1))
    assert np.array_equal(read_stored(f"{path}#3").pixels, frames[2])


def test_a_reduced_copy_in_a_tiff_is_no_second_frame(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(picture())
        writer.write(picture()[::2, ::2].copy(), subfiletype=1)
    assert read_gray(tmp_path / "a.tif").shape == (HEIGHT, WIDTH)


def test_names_with_the_mark_of_a_selector(tmp_path):
    write_image(tmp_path / "visit#2.png", picture())
    assert split_selector(tmp_path / "visit#2.png") == (tmp_path / "visit#2.png", "")
    assert read_gray(tmp_path / "visit#2.png").shape == (HEIGHT, WIDTH)
    (tmp_path / "some#folder").mkdir()
    (tmp_path / "some#folder" / "a.dcm").write_bytes(b"-")
    assert file_of(tmp_path / "some#folder" / "a.dcm#3") == tmp_path / "some#folder" / "a.dcm"
    with pytest.raises(InputError, match=r"gone#1.png: no such image"):
        read_gray(tmp_path / "gone#1.png")
    write_image(tmp_path / "a.png", picture())
    assert np.array_equal(read_gray(tmp_path / "a.png#1"), read_gray(tmp_path / "a.png"))
    with pytest.raises(InputError, match="holds 1 frame;"):
        read_gray(tmp_path / "a.png#2")


@pytest.mark.parametrize(
    "image", [picture(), picture(16), picture(16, 3), picture() / np.float32(9)]
)
def test_tiff_keeps_pixels_and_spacing(tmp_path, image):
    write_tiff(tmp_path / "a.tif", image, (0.0061, 0.0125))
    stored = read_stored(tmp_path / "a.tif")
    assert stored.pixels.dtype == image.dtype and np.array_equal(stored.pixels, image)
    assert stored.spacing_mm == pytest.approx((0.0061, 0.0125), rel=1e-5)
    write_tiff(tmp_path / "a.tif", image, None)
    assert read_stored(tmp_path / "a.tif").spacing_mm is None


@pytest.mark.parametrize("dpi", [72, 96, 300, 600, 10])
def test_the_resolution_of_paper_is_no_spacing(tmp_path, dpi):
    tifffile.imwrite(tmp_path / "a.tif", picture(), resolution=(dpi, dpi), resolutionunit="INCH")
    assert read_stored(tmp_path / "a.tif").spacing_mm is None


def test_spacing_of_imagej(tmp_path):
    for unit, factor in (("mm", 1.0), ("um", 1e3), (r"\u00B5m", 1e3)):
        scale = 100.0 / factor
        tifffile.imwrite(
            tmp_path / "a.tif", picture(), imagej=True, resolution=(scale, 2 * scale),
            metadata={"unit": unit},
        )  # fmt: skip
        assert read_stored(tmp_path / "a.tif").spacing_mm == pytest.approx((0.01, 0.005), rel=1e-4)
