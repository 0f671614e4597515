"""Transforms and matches in the formats of other programs, and our own ``transform.json`` read back (docs/transform_json.md)."""
from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.geometry import Size
from utils.image_io import write_bytes_atomically, write_text_atomically
from utils.transforms import Transform, transform_from_dict

# Kind of export to the file's name in the folder of a pair.
ITK_KINDS = ("similarity", "affine")
EXPORTS = {"itk": "transform.tfm", "csv": "matches.csv", "numpy": "matches.npz"}


@dataclass(frozen=True)
class SavedTransform:
    """A registration read from ``transform.json``.

    Attributes:
        fix_to_mov: fixed pixels to moving pixels.
        fixed_size, moving_size: (height, width) of the images that it holds for.
    """

    fix_to_mov: Transform
    fixed_size: Size
    moving_size: Size


def read_transform(path: str | Path) -> SavedTransform:
    """Read ``transform.json``.

    Raises:
        InputError: missing or foreign file, or a registration that failed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; register.py writes transform.json into the folder of every pair.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sizes = [(int(content[role]["height"]), int(content[role]["width"])) for role in ("fixed", "moving")]
        status, description = content["status"], content["fix_to_mov"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a transform.json of register.py ({type(error).__name__}: {error}).") from error
    if status != "ok" or description is None:
        raise InputError(f"{path}: this pair could not be registered ({content.get('reason') or 'no reason given'}); there is no "
                         "transform to apply.")
    try:
        return SavedTransform(transform_from_dict(description), *sizes)
    except InputError as error:
        raise InputError(f"{path}: fix_to_mov: {error}.") from error


def itk_transform(H_fix_to_mov: np.ndarray) -> str:
    """An affine matrix as an ITK transform file.

    Convention: ITK resamples by mapping points of the output (fixed) to the input (moving), as ``H_fix_to_mov`` does; the file
    holds for images with spacing 1 and origin 0, which PNG, JPEG and TIFF have unless they say otherwise.

    Raises:
        InputError: a homography, which ITK has no transform for.
    """
    H = np.asarray(H_fix_to_mov, dtype=float) / H_fix_to_mov[2, 2]
    if np.abs(H[2, :2]).max() > 1e-12:
        raise InputError("ITK has no transform for a homography; register with --transform affine or similarity to export it.")
    parameters = " ".join(repr(float(value)) for value in (*H[:2, :2].ravel(), *H[:2, 2]))
    return ("#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_2_2\n"
            f"Parameters: {parameters}\nFixedParameters: 0 0\n")


def matches_csv(fixed_points: np.ndarray, moving_points: np.ndarray, inliers: np.ndarray) -> str:
    """Matches as a table with the columns fixed_x, fixed_y, moving_x, moving_y (original pixels) and inlier (1 or 0)."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fixed_x", "fixed_y", "moving_x", "moving_y", "inlier"])
    for fixed, moving, inlier in zip(fixed_points, moving_points, inliers, strict=True):
        writer.writerow([*(f"{value:.4f}" for value in (*fixed, *moving)), int(inlier)])
    return buffer.getvalue()


def matches_npz(H_fix_to_mov: np.ndarray | None, fixed_points: np.ndarray, moving_points: np.ndarray,
                inliers: np.ndarray) -> bytes:
    """Matches as a NumPy archive: ``fixed_points``, ``moving_points`` (K, 2), ``inliers`` (K,), and ``H_fix_to_mov`` (3, 3),
    NaN when failed."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, fixed_points=fixed_points, moving_points=moving_points, inliers=inliers,
                        H_fix_to_mov=np.full((3, 3), np.nan) if H_fix_to_mov is None else H_fix_to_mov)
    return buffer.getvalue()


def export_files(folder: Path, kinds: list[str], H_fix_to_mov: np.ndarray | None, fixed_points: np.ndarray,
                 moving_points: np.ndarray, inliers: np.ndarray) -> None:
    """Write the files of ``kinds`` (keys of ``EXPORTS``) into the folder of a pair; no ITK file for a failed pair.

    Raises:
        InputError: a homography is to be written for ITK.
    """
    if "itk" in kinds and H_fix_to_mov is not None:
        write_text_atomically(folder / EXPORTS["itk"], itk_transform(H_fix_to_mov))
    if "csv" in kinds:
        write_text_atomically(folder / EXPORTS["csv"], matches_csv(fixed_points, moving_points, inliers))
    if "numpy" in kinds:
        write_bytes_atomically(folder / EXPORTS["numpy"], matches_npz(H_fix_to_mov, fixed_points, moving_points, inliers))
