"""What is known about one pair: its transform, its matches and its landmarks."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from geometry.landmark_fits import fit_landmarks
from geometry.matrices import Size, resize_matrix
from geometry.point_files import read_points
from geometry.points import warp_points
from geometry.transform_files import EXPORTS, read_transform
from geometry.transforms import Transform
from review_page.review_set import ReviewItem
from utils.errors import InputError
from utils.tables import read_table

MATCH_COLUMNS = ("fixed_x", "fixed_y", "moving_x", "moving_y", "inlier")
MAX_MATCHES = 100_000  # more are refused as damaged


class PairMatches(NamedTuple):
    """Matches of a pair, pixels (x, y) of each image.

    Attributes:
        fixed, moving: (K, 2) float64.
        inliers: (K,) bool.
    """

    fixed: np.ndarray
    moving: np.ndarray
    inliers: np.ndarray


class Landmarks(NamedTuple):
    """Landmarks of a pair, pixels (x, y) of each image.

    Attributes:
        fixed, moving: (N, 2) float64; row i of both is the same point.
    """

    fixed: np.ndarray
    moving: np.ndarray


NO_LANDMARKS = Landmarks(np.zeros((0, 2)), np.zeros((0, 2)))


def read_landmarks(
    paths: tuple[Path, ...], landmark_size: Size | None, fixed_size: Size, moving_size: Size
) -> Landmarks:
    """Read the landmarks of a pair; none where there are no files.

    Args:
        paths: two files, or one with four columns.
        landmark_size: (height, width) to which both images are scaled in the files; None without.
        fixed_size, moving_size: (height, width) of the images.

    Raises:
        InputError: an unreadable file, or files with unequal numbers of points.
    """
    if not paths or not all(path.is_file() for path in paths):
        return NO_LANDMARKS
    values = [read_points(path, 4 // len(paths)) for path in paths]
    fixed, moving = values if len(values) == 2 else (values[0][:, :2], values[0][:, 2:])
    if len(fixed) != len(moving):
        raise InputError(
            f"{paths[0]}: {len(fixed)} points, but {len(moving)} in {paths[-1].name}; line i of "
            "both files must be the same point."
        )
    if landmark_size is not None:
        fixed = warp_points(fixed, resize_matrix(landmark_size, fixed_size))
        moving = warp_points(moving, resize_matrix(landmark_size, moving_size))
    return Landmarks(fixed, moving)


def landmarks_version(paths: tuple[Path, ...]) -> str:
    """A digest of the landmark files, to notice a change by another window.

    Args:
        paths: of the files, which may be absent.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes() if path.is_file() else b"absent")
        digest.update(b"|")
    return digest.hexdigest()[:16]


def transform_digest(transform: Transform) -> str:
    """A short name of a transform that changes with its numbers.

    Args:
        transform: to name.
    """
    text = json.dumps(transform.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def saved_transform(item: ReviewItem, fixed_size: Size, moving_size: Size) -> Transform | None:
    """The transform of a pair: of its ``transform.json``, or else through its landmarks.

    Args:
        item: the pair.
        fixed_size, moving_size: (height, width) of the images.

    Returns:
        Fixed pixels to moving pixels; None where neither gives one.

    Raises:
        InputError: a damaged file, or a transform for images of another size.
    """
    path = item.transform_path
    if item.status == "ok" and path is not None and path.is_file():
        saved = read_transform(path)
        if (saved.fixed_size, saved.moving_size) != (fixed_size, moving_size):
            raise InputError(
                f"{path}: is for images of {saved.fixed_size} and {saved.moving_size} px (height, "
                f"width), but these have {fixed_size} and {moving_size}; register them again."
            )
        return saved.fix_to_mov
    marks = read_landmarks(item.landmark_files, item.landmark_size, fixed_size, moving_size)
    if len(marks.fixed) < 3:
        return None
    return fit_landmarks(*marks, fixed_size, moving_size).transform


def saved_matches(folder: Path | None) -> PairMatches | None:
    """The matches that register.py wrote with ``--export numpy`` or ``csv``; None without.

    Args:
        folder: of the pair.

    Raises:
        InputError: a damaged file.
    """
    if folder is None:
        return None
    archive, table = folder / EXPORTS["numpy"], folder / EXPORTS["csv"]
    try:
        if archive.is_file():
            with np.load(archive, allow_pickle=False) as content:
                names = ("fixed_points", "moving_points", "inliers")
                fixed, moving, inliers = (np.asarray(content[name], float) for name in names)
        elif table.is_file():
            rows, _ = read_table(table, MATCH_COLUMNS)
            values = np.array([[float(row[name]) for name in MATCH_COLUMNS] for row in rows])
            values = values.reshape(-1, len(MATCH_COLUMNS))
            fixed, moving, inliers = values[:, :2], values[:, 2:4], values[:, 4]
        else:
            return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder}: its matches cannot be read ({error}).") from error
    shapes = (fixed.shape, moving.shape, inliers.shape)
    if shapes != ((len(inliers), 2), (len(inliers), 2), (len(inliers),)):
        raise InputError(f"{folder}: its matches have the shapes {shapes}; register it again.")
    if len(inliers) > MAX_MATCHES or not np.isfinite([fixed, moving]).all():
        raise InputError(f"{folder}: its matches are damaged; register the pair again.")
    return PairMatches(fixed, moving, inliers > 0.5)
