"""Save landmarks in the user's own layout, and their transform as ``transform.json``.

What was there before is kept once, as ``landmarks_before/<name>`` and ``transform_automatic.json``
in the folder of the pair.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from batch.pair_folder import MANUAL
from geometry.matrices import Size, resize_matrix
from geometry.point_files import write_points
from geometry.points import warp_points
from geometry.transform_files import CONVENTION
from geometry.transforms import affine_of
from pictures.drawing import checkerboard
from review_page.fitting import PageFit
from review_page.pair_data import Landmarks, landmarks_version
from review_page.rendering import Pyramid, resample
from review_page.review_set import ReviewItem, read_json
from utils.errors import InputError
from utils.files import write_text_atomically
from utils.image_files import write_image

BEFORE = "landmarks_before"
AUTOMATIC_NAME = "transform_automatic.json"
LOCK_SECONDS = 10.0


def save_landmarks(
    item: ReviewItem,
    marks: Landmarks,
    fit: PageFit | None,
    sizes: tuple[Size, Size],
    version: str,
) -> None:
    """Write the landmark files and, with a fit, ``transform.json``.

    Args:
        item: the pair.
        marks: its landmarks.
        fit: their transform; None with too few landmarks, which leaves ``transform.json`` alone.
        sizes: (height, width) of the fixed and of the moving image.
        version: of the landmark files that the page had read.

    Raises:
        InputError: the files have changed since, or the pair has no place for them.
    """
    if not item.landmark_files or item.folder is None:
        raise InputError(f"{item.id}: is no valid name of a folder; its landmarks have no place.")
    item.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(item.folder / ".landmarks.lock", timeout=LOCK_SECONDS):
            if landmarks_version(item.landmark_files) != version:
                raise InputError(
                    f"{item.landmark_files[0]}: was changed by another window or program; open "
                    "the pair again to see its landmarks."
                )
            _keep_before(item)
            _write_points(item, marks, sizes)
            if fit is not None:
                content = manual_transform(item, marks, fit, sizes)
                path = item.folder / "transform.json"
                write_text_atomically(path, json.dumps(content, indent=2) + "\n")
    except Timeout as error:
        raise InputError(f"{item.folder}: is locked by another program; try again.") from error


def _keep_before(item: ReviewItem) -> None:
    """Keep the first version of the files that are replaced."""
    assert item.folder is not None
    for path in item.landmark_files:
        kept = item.folder / BEFORE / path.name
        if path.is_file() and not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            shutil.copy2(path, kept)
    transform, automatic = item.folder / "transform.json", item.folder / AUTOMATIC_NAME
    if (
        transform.is_file()
        and not automatic.exists()
        and read_json(transform).get("source") != MANUAL
    ):
        shutil.copy2(transform, automatic)


def _write_points(item: ReviewItem, marks: Landmarks, sizes: tuple[Size, Size]) -> None:
    points = list(marks)
    if item.landmark_size is not None:
        points = [
            warp_points(own, resize_matrix(size, item.landmark_size))
            for own, size in zip(points, sizes, strict=True)
        ]
    if len(item.landmark_files) == 2:
        for path, own in zip(item.landmark_files, points, strict=True):
            write_points(path, own)
        return
    lines = (" ".join(f"{value:.6f}" for value in row) + "\n" for row in np.hstack(points))
    write_text_atomically(item.landmark_files[0], "".join(lines))


def manual_transform(
    item: ReviewItem, marks: Landmarks, fit: PageFit, sizes: tuple[Size, Size]
) -> dict[str, Any]:
    """Content of ``transform.json`` of a transform that was fitted to landmarks.

    Args:
        item: the pair.
        marks: its landmarks.
        fit: their transform.
        sizes: (height, width) of the fixed and of the moving image.
    """
    least = fit.transform.least_jacobian(sizes[0])
    images = zip(("fixed", "moving"), (item.fixed, item.moving), sizes, strict=True)
    return {
        "version": 2,
        "convention": CONVENTION,
        "source": MANUAL,
        "status": "ok",
        "reason": "",
        # No probability is estimated for what a person has set.
        "confidence": None,
        "asked_for": MANUAL,
        "transform": fit.transform.kind,
        "transform_reason": fit.advice,
        "least_jacobian": least if np.isfinite(least) else None,
        "fix_to_mov": fit.transform.to_dict(),
        "H_fix_to_mov": fit.transform.approximate_matrix().tolist(),
        "H_affine": affine_of(fit.transform, marks.fixed).tolist(),
        **{
            role: {"path": str(path), "height": size[0], "width": size[1]}
            for role, path, size in images
        },
        "landmarks": np.hstack(marks).tolist(),
        "n_landmarks": len(marks.fixed),
        "n_matches": fit.n_matches,
        "n_inliers": fit.n_matches,
        "left_out_px_at_512": fit.summary()["left_out_median"],
        "weights": None,
    }


def write_pictures(folder: Path, fixed: Pyramid, moving: Pyramid, fit: PageFit) -> None:
    """Replace ``registered.png`` and ``checkerboard.png`` of a results folder.

    Args:
        folder: of the pair.
        fixed, moving: its images.
        fit: the new transform.
    """
    registered = resample(moving, fit.transform, np.eye(3), fixed.size)
    write_image(folder / "registered.png", registered)
    unit = np.float32(255.0)
    board = checkerboard(fixed.levels[0] / unit, registered / unit)
    write_image(folder / "checkerboard.png", board)
