"""The files of a real pair with landmarks, and what a layout of such files must provide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geometry.matrices import Size, resize_matrix
from geometry.point_files import read_points
from geometry.points import warp_points

FIXED_ROLES = ("01", "02")
ALL_PARTS = "all"  # of a set that is divided into parts
PART_HELP = (
    "part of a set that is divided, as its folders name it, such as ts of Ground_Truth_ts; sets "
    f"without parts are taken whole (default: {ALL_PARTS})"
)


class RealPairFiles(NamedTuple):
    """The files of one pair, not yet read.

    Attributes:
        name: unique within its root and safe as a file name.
        eye: pairs of one eye share it.
        fixed_path, moving_path: images.
        landmark_files: two files, of the fixed and of the moving image, with one point ``x y`` a
            line; or one file with ``fixed_x fixed_y moving_x moving_y`` a line.
        landmark_size: (height, width) to which both images are scaled in the landmark files; None
            when landmarks are in pixels of each image.
        part: of the set, such as "ts" of CF-OCTA; "" where the layout has no parts.
    """

    name: str
    eye: str
    fixed_path: Path
    moving_path: Path
    landmark_files: tuple[Path, ...]
    landmark_size: Size | None = None
    part: str = ""

    @property
    def landmark_columns(self) -> int:
        """Numbers on each line of a landmark file: 2, or 4 where one file holds both images."""
        return 4 // len(self.landmark_files)

    def landmarks(self, fixed_size: Size, moving_size: Size) -> tuple[np.ndarray, np.ndarray]:
        """Read the landmarks.

        Args:
            fixed_size, moving_size: (height, width) of the images, pixels.

        Returns:
            Fixed and moving landmarks, (N, 2) float64 each, pixels (x, y) of their own image.

        Raises:
            InputError: a landmark file is missing, unreadable or malformed.
        """
        values = [read_points(path, self.landmark_columns) for path in self.landmark_files]
        fixed, moving = values if len(values) == 2 else (values[0][:, :2], values[0][:, 2:])
        if self.landmark_size is None:
            return fixed, moving
        return (
            warp_points(fixed, resize_matrix(self.landmark_size, fixed_size)),
            warp_points(moving, resize_matrix(self.landmark_size, moving_size)),
        )


@dataclass(frozen=True)
class Layout:
    """How the files of real pairs are named and arranged.

    Attributes:
        name: as given to ``--layout``.
        expected_files: the file names for messages.
        recognise: whether a root folder, which exists, has this layout.
        find: the pairs below a root, and one line for every pair that lacks an image; called with
            the root and the role of the fixed image, one of ``FIXED_ROLES``, which only layouts
            with numbered roles use.
        find_unmarked: the pairs below a root that have no landmarks, where ``find`` leaves them
            out; they can only be trained on.
    """

    name: str
    expected_files: str
    recognise: Callable[[Path], bool]
    find: Callable[[Path, str], tuple[list[RealPairFiles], list[str]]]
    find_unmarked: Callable[[Path], list[RealPairFiles]] = lambda root: []
