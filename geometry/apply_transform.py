"""Apply a saved transform to further images (other frames of the same examination, masks, stacks) or to points.

    python -m geometry.apply_transform --transform out/pair/transform.json late_phase.png frames.tif --out warped
    python -m geometry.apply_transform --transform out/pair/transform.json --inverse vessels_of_cf.png --out warped --nearest
    python -m geometry.apply_transform --transform out/pair/transform.json --points points_of_cf.txt --out points_of_fa.txt

Each image lies in the frame of the moving image (with ``--inverse``: of the fixed one) and has its size; the result lies in
the frame of the other, and keeps its bit depth, its channels and, in a TIFF, its pages. What the image does not show is 0.

Points, one ``x y`` per line, go the other way: from the fixed image into the moving one, as ``H_fix_to_mov`` does (with
``--inverse`` back).
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile
from tqdm import tqdm

from geometry.matrices import Size
from geometry.point_files import read_points, write_points
from geometry.rasters import register_onto_fixed
from geometry.transform_files import SavedTransform, read_transform
from geometry.transforms import MatrixTransform, Transform
from utils.errors import InputError, run_script
from utils.files import replace_atomically, write_bytes_atomically

TIFF_SUFFIXES = (".tif", ".tiff")
KEPT_TYPES = (np.uint8, np.uint16, np.float32)


def warp_frame(
    image: np.ndarray, transform: SavedTransform, inverse: bool = False, nearest: bool = False
) -> np.ndarray:
    """One image in the frame of the other.

    Convention: from the moving frame to the fixed one; ``inverse``: from the fixed frame to the moving one.

    Args:
        image: (H, W) or (H, W, C), uint8, uint16 or float32.
        nearest: no interpolation, for label images.

    Returns:
        (*size[, C]) of the same type.

    Raises:
        InputError: the image has another size than the transform holds for, or another type.
    """
    source, target = (
        (transform.fixed_size, transform.moving_size)
        if inverse
        else (transform.moving_size, transform.fixed_size)
    )
    if image.shape[:2] != source:
        raise InputError(
            f"{image.shape[1]} x {image.shape[0]} px, but the transform holds for "
            f"{'fixed' if inverse else 'moving'} images of {source[1]} x {source[0]} px; give frames of the same "
            "size."
        )
    if image.dtype not in KEPT_TYPES:
        raise InputError(f"pixels of type {image.dtype}; 8 or 16 bit or 32-bit float are needed.")
    out_to_source = transform.mov_to_fix if inverse else transform.fix_to_mov
    if nearest:
        return _warp_nearest(image, out_to_source, target)
    warped = register_onto_fixed(image.astype(np.float32), out_to_source, target)
    if np.issubdtype(image.dtype, np.integer):
        warped = np.clip(np.rint(warped), 0, np.iinfo(image.dtype).max)
    return warped.astype(image.dtype)


def _warp_nearest(image: np.ndarray, out_to_source: Transform, size: Size) -> np.ndarray:
    """Read an image at the nearest pixels, 0 outside."""
    if isinstance(out_to_source, MatrixTransform):
        return cv2.warpPerspective(
            image,
            out_to_source.H_fix_to_mov,
            size[::-1],
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        )
    columns, rows = (
        np.rint(np.nan_to_num(out_to_source.dense_map(size), nan=-1.0))
        .astype(int)
        .transpose(2, 0, 1)
    )
    inside = (columns >= 0) & (rows >= 0) & (columns < image.shape[1]) & (rows < image.shape[0])
    warped = image[np.where(inside, rows, 0), np.where(inside, columns, 0)]
    warped[~inside] = 0
    return warped


def warp_file(
    path: Path, out: Path, transform: SavedTransform, inverse: bool, nearest: bool
) -> int:
    """Warp a file, page by page where it has pages. Returns the number of pages.

    Raises:
        InputError: unreadable file, or one that does not fit the transform; the message names it.
    """
    try:
        if path.suffix.lower() in TIFF_SUFFIXES:
            return _warp_tiff(path, out, transform, inverse, nearest)
        image = _read_as_stored(path)
        warped = warp_frame(image, transform, inverse, nearest)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    encoded, data = cv2.imencode(out.suffix, warped)
    if not encoded:
        raise InputError(f"{path}: cannot be written as {out.suffix}; convert it to PNG or TIFF.")
    write_bytes_atomically(out, data.tobytes())
    return 1


def _read_as_stored(path: Path) -> np.ndarray:
    """As the file holds it, channels in OpenCV's order, which is also how it is written back."""
    if not path.is_file():
        raise InputError(f"{path}: no such image file; check the path.")
    data = np.fromfile(path, dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if image is None:
        raise InputError(f"{path}: unreadable image; export it again as PNG, JPEG or TIFF.")
    return image


def _pages_of_tiff(path: Path) -> Iterator[np.ndarray]:
    """Page by page, so that a long recording does not have to fit into memory."""
    if not path.is_file():
        raise InputError(f"{path}: no such image file; check the path.")
    try:
        with tifffile.TiffFile(path) as file:
            for page in file.pages:
                yield page.asarray()
    except (tifffile.TiffFileError, ValueError, OSError, struct.error, RuntimeError) as error:
        # A cut-off header is a struct.error, damaged compressed data a RuntimeError. What goes wrong with the written file is
        # raised where it is written, not in here.
        raise InputError(f"{path}: unreadable TIFF ({error}); export it again.") from error


def _warp_tiff(
    path: Path, out: Path, transform: SavedTransform, inverse: bool, nearest: bool
) -> int:
    n_pages = 0
    with replace_atomically(out) as temporary, tifffile.TiffWriter(temporary) as writer:
        for n_pages, image in enumerate(_pages_of_tiff(path), start=1):
            if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
                raise InputError(
                    f"{path}: page {n_pages} has the shape {image.shape}; grey or colour pages are needed."
                )
            try:
                warped = warp_frame(image, transform, inverse, nearest)
            except InputError as error:
                raise InputError(f"{path}: page {n_pages}: {error}") from error
            writer.write(
                warped,
                photometric="rgb" if image.ndim == 3 else "minisblack",
                compression="zlib",
                # Plain pages, which every reader takes for one stack.
                metadata=None,
            )
    return n_pages


def map_point_file(path: Path, out: Path, transform: SavedTransform, inverse: bool = False) -> int:
    """Map the points of a text file. Returns their number.

    Convention: from pixels of the fixed image to pixels of the moving one; ``inverse``: back.

    Raises:
        InputError: unreadable file, or one that would be overwritten.
    """
    if out.resolve() == path.resolve():
        raise InputError(
            f"--out {out}: would overwrite the points that are mapped; give another file."
        )
    points = read_points(path, 2)
    mapped = (transform.mov_to_fix if inverse else transform.fix_to_mov).map(points)
    lost = np.flatnonzero(~np.isfinite(mapped).all(axis=1))
    if len(lost):
        x, y = points[lost[0]]
        raise InputError(
            f"{path}: point {lost[0] + 1} ({x:g} {y:g}) has no counterpart under this transform ({len(lost)} of "
            f"{len(points)} have none); remove it."
        )
    write_points(out, mapped)
    return len(points)


def main() -> None:
    """Warp every file into --out under its own name, or map points."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE")
    parser.add_argument(
        "--points", type=Path, metavar="TXT", help="map these points instead, one `x y` per line"
    )
    parser.add_argument(
        "--transform", required=True, metavar="JSON", help="transform.json of a registered pair"
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="PATH",
        help="folder of the warped images; file of the points",
    )
    parser.add_argument(
        "--inverse",
        action="store_true",
        help="images: from the fixed frame to the moving one; points: back",
    )
    parser.add_argument("--nearest", action="store_true", help="no interpolation (masks, labels)")
    args = parser.parse_args()
    if bool(args.points) == bool(args.images):
        parser.error("give either images or --points")
    transform = read_transform(args.transform)
    if args.points:
        print(
            f"{args.out}: {map_point_file(args.points, args.out, transform, args.inverse)} points"
        )
        return
    targets = [args.out / path.name for path in args.images]
    for path, target in zip(args.images, targets, strict=True):
        if target.resolve() == path.resolve():
            raise InputError(
                f"--out {args.out}: {path.name} would overwrite itself; give another folder."
            )
        if targets.count(target) > 1:
            raise InputError(
                f"{path.name} is given twice; their results would overwrite each other. Warp them into different "
                "folders."
            )
    for path, target in zip(
        tqdm(args.images, unit="image", disable=len(args.images) < 2), targets, strict=True
    ):
        pages = warp_file(path, target, transform, args.inverse, args.nearest)
        tqdm.write(f"{target}: {pages} page{'s' * (pages > 1)}")


if __name__ == "__main__":
    run_script(main)
