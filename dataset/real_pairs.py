"""Real pairs with hand-placed landmarks: unaligned, of different sizes, without masks.

How their files are named is described in ``dataset/layouts/``, one file for each layout.

    python -m dataset.real_pairs --data ROOT --mode cffa --show pairs.png
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.layouts import LAYOUT_BY_NAME, LAYOUTS, recognise_layout
from dataset.real_pair_files import ALL_PARTS, FIXED_ROLES, PART_HELP, RealPairFiles
from geometry.accuracy import pair_error
from geometry.estimation import fit_affine
from geometry.matrices import Size, size_of_image
from utils.errors import InputError, run_script
from utils.image_files import read_color, read_gray
from utils.names import is_plain_name

# Median residual of the least-squares affine, px at 512. Hand-placed landmarks leave 2 to 4 px
# (development pairs); more means that the points of both images do not correspond.
MAX_MEDIAN_RESIDUAL_PX = 12.0


@dataclass(frozen=True)
class RealPair:
    """One pair.

    Attributes:
        key: unique and safe as a file name.
        eye: pairs of one eye share it.
        fixed_path, moving_path: images.
        fixed_landmarks, moving_landmarks: (N, 2) float64, pixels (x, y) of each image at its own
            size; row i of both is the same point.
        H_fix_to_mov: (3, 3) float64, least-squares affine through the landmarks.
        median_residual: median residual of that affine, px at 512.
    """

    key: str
    eye: str
    fixed_path: Path
    moving_path: Path
    fixed_landmarks: np.ndarray
    moving_landmarks: np.ndarray
    H_fix_to_mov: np.ndarray
    median_residual: float

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Fixed and moving image, (H, W) float32 in [0, 1], at their own sizes."""
        return read_gray(self.fixed_path), read_gray(self.moving_path)

    def color_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Fixed and moving image, (H, W, 3) RGB float32 in [0, 1], at their own sizes."""
        return read_color(self.fixed_path), read_color(self.moving_path)


def load_pair(files: RealPairFiles, mode: str) -> RealPair:
    """Read one pair, fit its affine, and check landmarks, affine and images against each other.

    Args:
        files: from :func:`find_pairs`.
        mode: name of the kind of pair, prefix of the key.

    Raises:
        InputError: an unreadable image or landmark file, fewer than three landmarks, landmarks
            outside of their image, or a residual above ``MAX_MEDIAN_RESIDUAL_PX``.
    """
    fixed_size, moving_size = (
        size_of_image(read_gray(path)) for path in (files.fixed_path, files.moving_path)
    )
    fixed_landmarks, moving_landmarks = files.landmarks(fixed_size, moving_size)
    source = files.landmark_files[0]
    try:
        H_fix_to_mov = fit_affine(fixed_landmarks, moving_landmarks)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    check_inside(files, (fixed_landmarks, moving_landmarks), (fixed_size, moving_size))
    residual = pair_error(H_fix_to_mov, fixed_landmarks, moving_landmarks, moving_size).median
    check_residual(source, residual)
    return RealPair(
        key=f"{mode}_{files.name}",
        eye=files.eye,
        fixed_path=files.fixed_path,
        moving_path=files.moving_path,
        fixed_landmarks=fixed_landmarks,
        moving_landmarks=moving_landmarks,
        H_fix_to_mov=H_fix_to_mov,
        median_residual=residual,
    )


def check_inside(
    files: RealPairFiles, points: tuple[np.ndarray, np.ndarray], sizes: tuple[Size, Size]
) -> None:
    """Refuse landmarks outside of their image.

    Args:
        files: of the pair.
        points: (N, 2) of the fixed and of the moving image, pixels (x, y).
        sizes: (height, width) of both images.

    Raises:
        InputError: the message names the file.
    """
    for path, own, size in zip((files.fixed_path, files.moving_path), points, sizes, strict=True):
        if (own < -1.0).any() or (own > np.array(size[::-1])).any():
            raise InputError(
                f"{files.landmark_files[0]}: landmarks outside of {path.name} ({size[1]} x "
                f"{size[0]} px); are the roles of 01 and 02 exchanged (--fixed_role), or was the "
                "image resized?"
            )


def check_residual(source: Path, residual_px: float) -> None:
    """Refuse landmarks that no transform explains.

    Args:
        source: landmark file.
        residual_px: median residual of the best transform, px at 512.

    Raises:
        InputError: above ``MAX_MEDIAN_RESIDUAL_PX``.
    """
    if residual_px > MAX_MEDIAN_RESIDUAL_PX:
        raise InputError(
            f"{source}: the best affine leaves a median of {residual_px:.1f} px at 512; line i of "
            "both files must be the same point."
        )


def find_pairs(
    root: str | Path, layout: str = "auto", fixed_role: str = "01"
) -> tuple[list[RealPairFiles], list[str]]:
    """Find the files of all pairs below a folder, without reading them.

    Args:
        root: folder of the pairs.
        layout: one of ``LAYOUTS``; "auto" takes the first that recognises the folder.
        fixed_role: "01" or "02", the fixed image of the numbered layout.

    Returns:
        The pairs, and one line for every pair that lacks an image or whose name occurs twice.

    Raises:
        InputError: missing folder, unknown layout or role, or no pair at all.
    """
    root = Path(root)
    if layout not in LAYOUTS or fixed_role not in FIXED_ROLES:
        raise InputError(f"layout must be one of {LAYOUTS} and fixed_role one of {FIXED_ROLES}.")
    if not root.is_dir():
        raise InputError(
            f"{root}: no such folder of real pairs; check --real / --data / --val_data."
        )
    chosen = recognise_layout(root) if layout == "auto" else LAYOUT_BY_NAME[layout]
    if chosen is None:
        expected = "; ".join(
            f"{each.name}: {each.expected_files}" for each in LAYOUT_BY_NAME.values()
        )
        raise InputError(f"{root}: holds no pairs of any layout ({expected}).")
    pairs, problems = chosen.find(root, fixed_role)
    # Folder "1_a" with image "b_3" and folder "1_a_b" with image "3" give the same name.
    problems += [
        f"{root}: the name {name} occurs twice; rename a folder."
        for name, count in Counter(files.name for files in pairs).items()
        if count > 1
    ]
    if not pairs and not problems:
        raise InputError(
            f"{root}: holds no pairs of the {chosen.name} layout ({chosen.expected_files})."
        )
    return pairs, problems


def choose_part(root: str | Path, pairs: Sequence[RealPairFiles], part: str) -> list[RealPairFiles]:
    """The pairs of a part of a set; all pairs of a set without parts.

    Args:
        root: folder of the pairs, for the message.
        pairs: from :func:`find_pairs`.
        part: as the folders name it, in capitals or not; "all" takes every part.

    Raises:
        InputError: the set has parts, but not this one.
    """
    parts = sorted({files.part for files in pairs if files.part})
    if part == ALL_PARTS or not parts:
        return list(pairs)
    chosen = [files for files in pairs if files.part.lower() == part.lower()]
    if not chosen:
        raise InputError(
            f"{root}: has no part {part!r}; --part may be {', '.join(parts)} or {ALL_PARTS}."
        )
    return chosen


def load_real_pairs(
    root: str | Path,
    mode: str = "cffa",
    layout: str = "auto",
    fixed_role: str = "01",
    part: str = ALL_PARTS,
) -> list[RealPair]:
    """Load all pairs below a folder.

    Args:
        root: folder of the pairs.
        mode: name of the kind of pair, prefix of each key.
        layout, fixed_role: see :func:`find_pairs`.
        part: see :func:`choose_part`.

    Raises:
        InputError: missing or empty folder, missing partner, unreadable image or bad landmarks; the
            message names the file.
    """
    if not is_plain_name(mode):
        raise InputError(f"--mode {mode!r}: must be a plain name; it becomes part of file names.")
    pairs, problems = find_pairs(root, layout, fixed_role)
    if problems:
        raise InputError(problems[0])
    return [load_pair(files, mode) for files in choose_part(root, pairs, part)]


def describe_pairs(root: str | Path, pairs: Sequence[RealPair]) -> str:
    """One line for the log: numbers of pairs and eyes, and the range of the median residuals."""
    residuals = [pair.median_residual for pair in pairs]
    return (
        f"{root}: {len(pairs)} real pairs of {len({pair.eye for pair in pairs})} eyes; the affine "
        f"through a pair's landmarks leaves {min(residuals):.1f} to {max(residuals):.1f} px "
        "(median, at 512)"
    )


def main() -> None:
    """Report the landmark residuals of a folder of real pairs, and write a contact sheet."""
    from geometry.rasters import register_onto_fixed
    from pictures.drawing import checkerboard, contact_sheet

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", required=True, help="folder of the pairs")
    parser.add_argument("--mode", default="cffa", help="name of the kind of pair")
    parser.add_argument("--layout", default="auto", choices=LAYOUTS)
    parser.add_argument("--fixed_role", default="01", choices=FIXED_ROLES)
    parser.add_argument("--part", default=ALL_PARTS, metavar="NAME", help=PART_HELP)
    parser.add_argument("--show", required=True, metavar="PNG", help="contact sheet to write")
    args = parser.parse_args()
    rows = []
    for pair in load_real_pairs(args.data, args.mode, args.layout, args.fixed_role, args.part):
        print(
            f"{pair.key}: {len(pair.fixed_landmarks)} landmarks, affine leaves "
            f"{pair.median_residual:.2f} px (median, at 512)"
        )
        fixed, moving = pair.color_images()
        registered = register_onto_fixed(moving, pair.H_fix_to_mov, size_of_image(fixed))
        rows.append([fixed, moving, registered, checkerboard(fixed, registered) / 255.0])
    contact_sheet(args.show, rows, ("fixed", "moving", "moving by landmarks", "checkerboard"))


if __name__ == "__main__":
    run_script(main)
