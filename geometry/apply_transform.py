"""Apply a saved transform to further images (frames, masks, stacks) or to points.

    python -m geometry.apply_transform --transform out/pair/transform.json late.png frames.tif \\
        --out warped
    python -m geometry.apply_transform --transform out/pair/transform.json vessels_of_cf.png \\
        --inverse --nearest --out warped
    python -m geometry.apply_transform --transform out/pair/transform.json \\
        --points points_of_cf.txt --out points_of_fa.txt

Convention: images are taken from the moving frame to the fixed frame (``--inverse``: from fixed to
moving). Each image has the size of the frame that it comes from; the result keeps its bit depth,
its channels and, in a TIFF, its pages, and is 0 where the image shows nothing. Points, one ``x y``
per line, go the other way: from fixed to moving pixels, as ``H_fix_to_mov`` does (``--inverse``:
back).
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
    """Resample an image into the other frame.

    Convention: from the moving frame to the fixed frame; ``inverse``: from fixed to moving.

    Args:
        image: (H, W) or (H, W, C), uint8, uint16 or float32, of the size of its frame.
        transform: between the two frames.
        inverse: whether the image lies in the fixed frame.
        nearest: nearest neighbour instead of bilinear interpolation, for label images.

    Returns:
        (*size[, C]) of the same type; 0 where the image shows nothing.

    Raises:
        InputError: the image has another size than its frame, or another type.
    """
    source, target = transform.moving_size, transform.fixed_size
    if inverse:
        source, target = target, source
    if image.shape[:2] != source:
        raise InputError(
            f"{image.shape[1]} x {image.shape[0]} px, but the transform is for "
            f"{'fixed' if inverse else 'moving'} images of {source[1]} x {source[0]} px; give "
            "frames of the same size."
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
    """Nearest-neighbour resampling, 0 outside."""
    if isinstance(out_to_source, MatrixTransform):
        return cv2.warpPerspective(
            image,
            out_to_source.H_fix_to_mov,
            size[::-1],
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        )
    places = np.nan_to_num(out_to_source.dense_map(size), nan=-1.0)
    columns, rows = np.rint(places).astype(int).transpose(2, 0, 1)
    inside = (columns >= 0) & (rows >= 0) & (columns < image.shape[1]) & (rows < image.shape[0])
    warped = image[np.where(inside, rows, 0), np.where(inside, columns, 0)]
    warped[~inside] = 0
    return warped


def warp_file(
    path: Path, out: Path, transform: SavedTransform, inverse: bool, nearest: bool
) -> int:
    """Resample an image file, a TIFF page by page.

    Convention: as :func:`warp_frame`.

    Args:
        path: of the image.
        out: the file to write.
        transform: between the two frames.
        inverse: whether the image lies in the fixed frame.
        nearest: nearest neighbour instead of bilinear interpolation.

    Returns:
        Number of pages.

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
    """The image as stored, channels in OpenCV's order, in which they are written again."""
    if not path.is_file():
        raise InputError(f"{path}: no such image file; check the path.")
    data = np.fromfile(path, dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if image is None:
        raise InputError(f"{path}: unreadable image; export it again as PNG, JPEG or TIFF.")
    return image


def _pages_of_tiff(path: Path) -> Iterator[np.ndarray]:
    """One page at a time, because a recording can exceed the memory."""
    if not path.is_file():
        raise InputError(f"{path}: no such image file; check the path.")
    try:
        with tifffile.TiffFile(path) as file:
            for page in file.pages:
                yield page.asarray()
    except (tifffile.TiffFileError, ValueError, OSError, struct.error, RuntimeError) as error:
        # A truncated header raises struct.error, damaged compressed data RuntimeError. Faults of
        # the output file are raised by the writer, outside this function.
        raise InputError(f"{path}: unreadable TIFF ({error}); export it again.") from error


def _warp_tiff(
    path: Path, out: Path, transform: SavedTransform, inverse: bool, nearest: bool
) -> int:
    n_pages = 0
    with replace_atomically(out) as temporary, tifffile.TiffWriter(temporary) as writer:
        for n_pages, image in enumerate(_pages_of_tiff(path), start=1):
            if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
                raise InputError(
                    f"{path}: page {n_pages} has the shape {image.shape}; grey or colour pages are "
                    "needed."
                )
            try:
                warped = warp_frame(image, transform, inverse, nearest)
            except InputError as error:
                raise InputError(f"{path}: page {n_pages}: {error}") from error
            writer.write(
                warped,
                photometric="rgb" if image.ndim == 3 else "minisblack",
                compression="zlib",
                metadata=None,  # plain pages, which every reader takes for one stack
            )
    return n_pages


def map_point_file(path: Path, out: Path, transform: SavedTransform, inverse: bool = False) -> int:
    """Map the points of a text file.

    Convention: from fixed to moving pixels; ``inverse``: from moving to fixed pixels.

    Args:
        path: of the points, one ``x y`` per line.
        out: the file to write.
        transform: between the two frames.
        inverse: whether the points are moving pixels.

    Returns:
        Number of points.

    Raises:
        InputError: unreadable file, a file that would be overwritten, or a point without a
            counterpart.
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
            f"{path}: point {lost[0] + 1} ({x:g} {y:g}) has no counterpart under this transform "
            f"({len(lost)} of {len(points)} have none); remove it."
        )
    write_points(out, mapped)
    return len(points)


def get_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", nargs="*", type=Path, metavar="IMAGE")
    add("--points", type=Path, metavar="TXT", help="map these points instead, one `x y` per line")
    add("--transform", required=True, metavar="JSON", help="transform.json of a registered pair")
    add(
        "--out",
        required=True,
        type=Path,
        metavar="PATH",
        help="folder of the warped images; file of the points",
    )
    add(
        "--inverse",
        action="store_true",
        help="images: from the fixed to the moving frame; points: from moving to fixed",
    )
    add("--nearest", action="store_true", help="no interpolation (masks, labels)")
    return parser


def targets_of(images: list[Path], out: Path) -> list[Path]:
    """The file to write for each image: its own name in the output folder.

    Args:
        images: files to resample.
        out: output folder.

    Raises:
        InputError: a file would overwrite itself or the result of another.
    """
    targets = [out / path.name for path in images]
    for path, target in zip(images, targets, strict=True):
        if target.resolve() == path.resolve():
            raise InputError(
                f"--out {out}: {path.name} would overwrite itself; give another folder."
            )
        if targets.count(target) > 1:
            raise InputError(
                f"{path.name} is given twice; their results would overwrite each other. Warp them "
                "into different folders."
            )
    return targets


def main() -> None:
    """Resample every image into --out under its own name, or map points."""
    parser = get_parser()
    args = parser.parse_args()
    if bool(args.points) == bool(args.images):
        parser.error("give either images or --points")
    transform = read_transform(args.transform)
    if args.points:
        n_points = map_point_file(args.points, args.out, transform, args.inverse)
        print(f"{args.out}: {n_points} points")
        return
    targets = targets_of(args.images, args.out)
    bar = tqdm(args.images, unit="image", disable=len(args.images) < 2)
    for path, target in zip(bar, targets, strict=True):
        pages = warp_file(path, target, transform, args.inverse, args.nearest)
        tqdm.write(f"{target}: {pages} page{'s' * (pages > 1)}")


if __name__ == "__main__":
    run_script(main)
