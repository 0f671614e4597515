"""Real pairs with hand-placed landmarks: unaligned, of different sizes, without masks.

Two layouts:

- *numbered*: ``root/<eye>_<k>/NNN_01.png, NNN_02.png, NNN_01.txt, NNN_02.txt``; each text file holds one ``x y`` per
  line in the pixels of its own image, and line i of both is the same point. Which of 01 and 02 is the fixed image
  is a setting (``fixed_role``), never guessed.
- *cfocta*: ``CF_<part>/NNN*.png``, ``OCTA_<part>/NNNOCTA.png`` and ``Ground_Truth_<part>/NNNFundus_OCTA_points.txt`` with four
  numbers a line, ``cf_x cf_y octa_x octa_y``, in a 256 x 256 space of each image whatever its size.

    python -m dataset.real_pairs --data ROOT --mode cffa --show pairs.png
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geometry.accuracy import pair_error
from geometry.estimation import fit_affine
from geometry.matrices import Size, resize_matrix
from geometry.point_files import read_points
from geometry.points import warp_points
from utils.errors import InputError, run_script
from utils.image_files import IMAGE_SUFFIXES, read_color, read_gray
from utils.names import is_plain_name

LAYOUTS = ("auto", "numbered", "cfocta")
FIXED_ROLES = ("01", "02")
CFOCTA_SPACE = (256, 256)
# Landmarks clicked by hand leave 2 to 4 px at 512; a median beyond this means that they do not belong together.
MAX_MEDIAN_RESIDUAL_PX = 12.0


@dataclass(frozen=True)
class RealPair:
    """One pair.

    Attributes:
        key: unique and safe as a file name; eye: pairs of one eye share it.
        fixed_path, moving_path: images.
        fixed_landmarks, moving_landmarks: (N, 2) float64 pixels of each image at its own size.
        H_fix_to_mov: (3, 3) least-squares affine through the landmarks.
        median_residual: what that affine leaves, px at 512.
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
        """The same in RGB, for pictures."""
        return read_color(self.fixed_path), read_color(self.moving_path)


class RealPairFiles(NamedTuple):
    """The files of one pair. ``texts`` holds one landmark file per image, or one for both (CF-OCTA)."""

    name: str
    eye: str
    fixed_path: Path
    moving_path: Path
    texts: tuple[Path, ...]

    def landmarks(self, fixed_size: Size, moving_size: Size) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) landmarks of each image in its own pixels.

        Raises:
            InputError: as :func:`read_points`.
        """
        if len(self.texts) == 2:
            return read_points(self.texts[0], 2), read_points(self.texts[1], 2)
        values = read_points(self.texts[0], 4)
        return (
            warp_points(values[:, :2], resize_matrix(CFOCTA_SPACE, fixed_size)),
            warp_points(values[:, 2:], resize_matrix(CFOCTA_SPACE, moving_size)),
        )


def load_pair(files: RealPairFiles, mode: str) -> RealPair:
    """Read one pair, fit the matrix, and check that landmarks, matrix and images belong together.

    Raises:
        InputError
    """
    fixed_size, moving_size = read_gray(files.fixed_path).shape, read_gray(files.moving_path).shape
    fixed_landmarks, moving_landmarks = files.landmarks(fixed_size, moving_size)
    source = files.texts[0]
    try:
        H_fix_to_mov = fit_affine(fixed_landmarks, moving_landmarks)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    for path, points, size in (
        (files.fixed_path, fixed_landmarks, fixed_size),
        (files.moving_path, moving_landmarks, moving_size),
    ):
        if (points < -1.0).any() or (points > np.array(size[::-1])).any():
            raise InputError(
                f"{source}: landmarks outside of {path.name} ({size[1]} x {size[0]} px); are the roles of 01 "
                "and 02 exchanged (--fixed_role), or was the image resized?"
            )
    residual = pair_error(H_fix_to_mov, fixed_landmarks, moving_landmarks, moving_size).median
    if residual > MAX_MEDIAN_RESIDUAL_PX:
        raise InputError(
            f"{source}: the best affine leaves a median of {residual:.1f} px at 512; line i of both files must "
            "be the same point."
        )
    return RealPair(
        f"{mode}_{files.name}",
        files.eye,
        files.fixed_path,
        files.moving_path,
        fixed_landmarks,
        moving_landmarks,
        H_fix_to_mov,
        residual,
    )


def _numbered_pairs(root: Path, fixed_role: str) -> tuple[list[RealPairFiles], list[str]]:
    moving_role = next(role for role in FIXED_ROLES if role != fixed_role)
    pairs, problems = [], []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        images = [
            path
            for path in sorted(folder.iterdir())
            if path.stem[-3:] in ("_01", "_02") and path.suffix.lower() in IMAGE_SUFFIXES
        ]
        for number in sorted({path.stem[:-3] for path in images}):
            fixed, moving = (
                [path for path in images if path.stem == f"{number}_{role}"]
                for role in (fixed_role, moving_role)
            )
            if len(fixed) != 1 or len(moving) != 1:
                problems.append(
                    f"{folder}: {len(fixed)} images {number}_{fixed_role} and {len(moving)} images "
                    f"{number}_{moving_role}; exactly one of each is needed, so add or remove files "
                    f"({number}_{moving_role if fixed else fixed_role}.png)."
                )
                continue
            texts = (folder / f"{number}_{fixed_role}.txt", folder / f"{number}_{moving_role}.txt")
            pairs.append(
                RealPairFiles(
                    f"{folder.name}_{number}", folder.name.split("_")[0], fixed[0], moving[0], texts
                )
            )
    return pairs, problems


def _cfocta_pairs(root: Path) -> tuple[list[RealPairFiles], list[str]]:
    pairs, problems = [], []
    for truth_folder in sorted(root.glob("Ground_Truth_*")):
        part = truth_folder.name.removeprefix("Ground_Truth_")
        for text in sorted(truth_folder.glob("*Fundus_OCTA_points.txt")):
            number = text.name.removesuffix("Fundus_OCTA_points.txt")
            try:
                paths = [
                    _only_file(root, kind, part, pattern, text)
                    for kind, pattern in (("CF", f"{number}*"), ("OCTA", f"{number}OCTA*"))
                ]
            except InputError as error:
                problems.append(str(error))
                continue
            pairs.append(RealPairFiles(f"{part}_{number}", number, *paths, (text,)))
    return pairs, problems


def _only_file(root: Path, kind: str, part: str, pattern: str, text: Path) -> Path:
    """The image of a pair; folder names differ in capitals between releases (CF_ts beside Ground_Truth_Ts)."""
    folders = [path for path in root.iterdir() if path.name.lower() == f"{kind}_{part}".lower()]
    prefix = pattern.split("*")[0]
    found = [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        # "1" also begins 10.png: what follows the number must not be a digit.
        if path.name.startswith(prefix)
        and path.suffix.lower() in IMAGE_SUFFIXES
        and not path.stem[len(prefix) :][:1].isdigit()
    ]
    if len(found) != 1:
        raise InputError(
            f"{text}: {len(found)} images match {kind}_{part}/{pattern}; exactly one is needed."
        )
    return found[0]


def find_pairs(
    root: str | Path, layout: str = "auto", fixed_role: str = "01"
) -> tuple[list[RealPairFiles], list[str]]:
    """The files of all pairs below ``root``, unread, and one line for every pair that lacks an image or occurs twice.

    Raises:
        InputError: missing folder, wrong setting, or no pair at all.
    """
    root = Path(root)
    if layout not in LAYOUTS or fixed_role not in FIXED_ROLES:
        raise InputError(f"layout must be one of {LAYOUTS} and fixed_role one of {FIXED_ROLES}.")
    if not root.is_dir():
        raise InputError(f"{root}: no such folder of real pairs; check --real / --data / --val_data.")
    if layout == "auto":
        layout = "cfocta" if any(root.glob("Ground_Truth_*")) else "numbered"
    pairs, problems = (
        _cfocta_pairs(root) if layout == "cfocta" else _numbered_pairs(root, fixed_role)
    )
    # Folders "1_a" with image "b_3" and "1_a_b" with image "3" come to the same name.
    problems += [
        f"{root}: the name {name} occurs twice; rename a folder."
        for name, count in Counter(files.name for files in pairs).items()
        if count > 1
    ]
    if not pairs and not problems:
        expected = (
            "<eye>_<k>/NNN_01.png with NNN_02.png and a .txt each"
            if layout == "numbered"
            else "Ground_Truth_<part>/NNNFundus_OCTA_points.txt"
        )
        raise InputError(f"{root}: holds no pairs of the {layout} layout ({expected}).")
    return pairs, problems


def load_real_pairs(
    root: str | Path, mode: str = "cffa", layout: str = "auto", fixed_role: str = "01"
) -> list[RealPair]:
    """Load all pairs below ``root``.

    Args:
        root: folder of the pairs.
        mode: a name for the kind of pair, part of each key.
        layout: "numbered", "cfocta", or "auto" (cfocta when there is a Ground_Truth_* folder).
        fixed_role: "01" or "02", the fixed image of the numbered layout.

    Raises:
        InputError: missing or empty folder, missing partner, bad image, bad landmarks; the message names the file.
    """
    if not is_plain_name(mode):
        raise InputError(f"--mode {mode!r}: must be a plain name; it becomes part of file names.")
    pairs, problems = find_pairs(root, layout, fixed_role)
    if problems:
        raise InputError(problems[0])
    return [load_pair(files, mode) for files in pairs]


def describe_pairs(root: str | Path, pairs: list[RealPair]) -> str:
    """A line for the log: number of pairs and eyes, and what the affine through their landmarks leaves."""
    residuals = [pair.median_residual for pair in pairs]
    return (
        f"{root}: {len(pairs)} real pairs of {len({pair.eye for pair in pairs})} eyes; the affine through a pair's "
        f"landmarks leaves {min(residuals):.1f} to {max(residuals):.1f} px (median, at 512)"
    )


def main() -> None:
    """Report the landmark residuals of a folder of real pairs, and write a contact sheet."""
    from geometry.rasters import register_onto_fixed
    from pictures.drawing import checkerboard, contact_sheet

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--mode", default="cffa")
    parser.add_argument("--layout", default="auto", choices=LAYOUTS)
    parser.add_argument("--fixed_role", default="01", choices=FIXED_ROLES)
    parser.add_argument("--show", required=True, metavar="PNG")
    args = parser.parse_args()
    rows = []
    for pair in load_real_pairs(args.data, args.mode, args.layout, args.fixed_role):
        print(
            f"{pair.key}: {len(pair.fixed_landmarks)} landmarks, affine leaves {pair.median_residual:.2f} px (median, at 512)"
        )
        fixed, moving = pair.color_images()
        registered = register_onto_fixed(moving, pair.H_fix_to_mov, fixed.shape[:2])
        rows.append([fixed, moving, registered, checkerboard(fixed, registered) / 255.0])
    contact_sheet(args.show, rows, ("fixed", "moving", "moving by landmarks", "checkerboard"))


if __name__ == "__main__":
    run_script(main)
