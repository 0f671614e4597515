"""Apply a saved transform to further images (frames, masks, stacks) or to points.

    python -m geometry.apply_transform --transform out/pair/transform.json --from moving \\
        late.png frames.tif --out warped
    python -m geometry.apply_transform --transform out/pair/transform.json --from fixed \\
        vessels_of_cf.png --nearest --out warped
    python -m geometry.apply_transform --transform out/pair/transform.json --from fixed \\
        --points points_of_cf.csv --out points_of_fa.csv

Convention: ``--from`` says in which frame the input lies, of images and of points; the result lies
in the other one. Each image has the size of the frame that it comes from. The result keeps its bit
depth, its channels and, in a TIFF, its pages, and is 0 where the image shows nothing. Points are
one ``x y`` per line, or the columns x and y of a table, whose other columns are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from geometry.frame_files import warp_file
from geometry.point_files import read_point_table, read_points, write_points
from geometry.transform_files import SavedTransform, read_transform
from geometry.warped_frames import FIXED, FRAMES, MOVING
from utils.errors import InputError, run_script
from utils.files import write_text_atomically
from utils.stored_image import DICOM_SUFFIXES, split_selector


def map_point_file(path: Path, out: Path, transform: SavedTransform, frame: str) -> int:
    """Map the points of a text file or table.

    Convention: from ``frame`` to the other one.

    Args:
        path: of the points, one ``x y`` per line, or a table with a header.
        out: the file to write, of the same form.
        transform: between the two frames.
        frame: of the points, "fixed" or "moving".

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
    table = read_point_table(path, frame) if path.is_file() else None
    points = read_points(path, 2) if table is None else table.points
    mapped = (transform.fix_to_mov if frame == FIXED else transform.mov_to_fix).map(points)
    lost = np.flatnonzero(~np.isfinite(mapped).all(axis=1))
    if len(lost):
        x, y = points[lost[0]]
        raise InputError(
            f"{path}: point {lost[0] + 1} ({x:g} {y:g}) has no counterpart under this transform "
            f"({len(lost)} of {len(points)} have none); remove it."
        )
    if table is None:
        write_points(out, mapped)
    else:
        other = MOVING if frame == FIXED else FIXED
        write_text_atomically(out, table.text_with(mapped, frame, other))
    return len(points)


def get_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", nargs="*", type=Path, metavar="IMAGE")
    add("--points", type=Path, metavar="FILE", help="map these points instead of images")
    add("--transform", required=True, metavar="JSON", help="transform.json of a registered pair")
    add(
        "--from",
        dest="frame",
        choices=FRAMES,
        help="the frame in which the input lies, images and points alike; it is taken to the other",
    )
    add(
        "--out",
        required=True,
        type=Path,
        metavar="PATH",
        help="folder of the warped images; file of the points",
    )
    add("--nearest", action="store_true", help="no interpolation (masks, labels)")
    add("--inverse", action="store_true", help=argparse.SUPPRESS)
    return parser


def targets_of(images: list[Path], out: Path) -> list[Path]:
    """The file to write for each image: its own name in the output folder, DICOM as TIFF.

    Args:
        images: files to resample.
        out: output folder.

    Raises:
        InputError: a file would overwrite itself or the result of another.
    """
    targets = [out / _name_of(path) for path in images]
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


def _name_of(path: Path) -> str:
    """Name of the result of an image."""
    file, selector = split_selector(path)
    stem = f"{file.stem}_{selector}" if selector else file.stem
    suffix = ".tif" if file.suffix.lower() in (*DICOM_SUFFIXES, "") else file.suffix
    return stem + suffix


def main() -> None:
    """Resample every image into --out under its own name, or map points."""
    parser = get_parser()
    args = parser.parse_args()
    if bool(args.points) == bool(args.images):
        parser.error("give either images or --points")
    if args.inverse:
        frame = MOVING if args.points else FIXED
        parser.error(f"--inverse is now --from {frame}: say in which frame the input lies")
    if args.frame is None:
        parser.error("say with --from moving or --from fixed in which frame the input lies")
    transform = read_transform(args.transform)
    if args.points:
        n_points = map_point_file(args.points, args.out, transform, args.frame)
        print(f"{args.out}: {n_points} points")
        return
    targets = targets_of(args.images, args.out)
    bar = tqdm(args.images, unit="image", disable=len(args.images) < 2)
    for path, target in zip(bar, targets, strict=True):
        pages = warp_file(path, target, transform, args.frame, args.nearest)
        tqdm.write(f"{target}: {pages} page{'s' * (pages > 1)}")


if __name__ == "__main__":
    run_script(main)
