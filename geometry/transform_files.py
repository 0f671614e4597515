"""Files of a registration: read ``transform.json``, export transform and matches.

Exports: ITK transform or displacement field, CSV, NumPy. docs/transform_json.md specifies all of
them. The entry of ``transform.json`` that describes the transform is parsed by
geometry/transform_dicts.py; registration/pair_outputs.py writes ``transform.json``.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from geometry.matrices import Size
from geometry.points import pixel_grid
from geometry.transform_dicts import transform_from_dict
from geometry.transforms import Transform
from utils.errors import InputError
from utils.files import write_bytes_atomically, write_text_atomically
from utils.stored_image import Spacing, usable_spacing

# Name of the file in the folder of a pair, by kind of export.
EXPORTS = {"itk": "transform.tfm", "csv": "matches.csv", "numpy": "matches.npz"}
# ITK has an affine transform; other kinds are exported as a displacement field.
ITK_KINDS = ("similarity", "affine")
ITK_FIELD = "displacement_field.mha"
# Entry "convention" of transform.json.
CONVENTION = (
    "fix_to_mov takes pixels (x, y) of the fixed image to pixels of the moving image; pixel "
    "centres at integers, origin top-left, both images at their own size; H_fix_to_mov is its "
    "matrix, or of a quadratic or deformable transform the affine matrix that it refines"
)
MAX_SIDE_PX = 1 << 17  # larger sizes in a file are refused as damaged
MAX_PROJECTIVE = 1e-12  # last row of a normalised matrix; smaller values are rounding errors


@dataclass(frozen=True)
class SavedTransform:
    """A registration read from ``transform.json``.

    Attributes:
        fix_to_mov: fixed pixels to moving pixels.
        fixed_size, moving_size: (height, width) of the images that it is valid for.
        fixed_path, moving_path: of the images, as register.py was given them; "" where unknown.
        fixed_spacing_mm, moving_spacing_mm: (x, y) size of a pixel, mm; None where unknown.
    """

    fix_to_mov: Transform
    fixed_size: Size
    moving_size: Size
    fixed_path: str = ""
    moving_path: str = ""
    fixed_spacing_mm: Spacing | None = None
    moving_spacing_mm: Spacing | None = None

    @cached_property
    def mov_to_fix(self) -> Transform:
        """The inverse; cached, so that its dense map is computed once for all frames."""
        return self.fix_to_mov.inverse()


def read_transform(path: str | Path) -> SavedTransform:
    """Read ``transform.json``.

    Args:
        path: of the file.

    Raises:
        InputError: missing or foreign file, or a registration that failed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; register.py writes transform.json into the folder of each pair."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sizes = [
            (int(content[role]["height"]), int(content[role]["width"]))
            for role in ("fixed", "moving")
        ]
        status, key = content["status"], "fix_to_mov" if "fix_to_mov" in content else "H_fix_to_mov"
        description = content[key]
        if key == "H_fix_to_mov" and description is not None:
            # Version 1 of the file, which holds a matrix only.
            description = {"kind": "homography", key: description}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path}: not a transform.json of register.py ({type(error).__name__}: {error})."
        ) from error
    if status != "ok" or description is None:
        raise InputError(
            f"{path}: this pair could not be registered "
            f"({content.get('reason') or 'no reason given'}); there is no transform to apply."
        )
    if not all(1 <= side <= MAX_SIDE_PX for size in sizes for side in size):
        raise InputError(
            f"{path}: impossible image sizes {sizes[0]} and {sizes[1]} px (height, width); "
            "register the pair again."
        )
    try:
        transform = transform_from_dict(description)
    except InputError as error:
        raise InputError(f"{path}: {key}: {error}.") from error
    return SavedTransform(transform, sizes[0], sizes[1], **_further_facts(content))


def _further_facts(content: dict[str, Any]) -> dict[str, Any]:
    """Paths and sizes of pixels of both images, where ``transform.json`` has them."""
    facts: dict[str, Any] = {}
    for role in ("fixed", "moving"):
        facts[f"{role}_path"] = str(content[role].get("path") or "")
        facts[f"{role}_spacing_mm"] = _spacing_of(content[role].get("spacing_mm"))
    return facts


def _spacing_of(value: Any) -> Spacing | None:
    """The size of a pixel in ``transform.json``; None where it has none that can be used."""
    try:
        x_mm, y_mm = value
        return usable_spacing(float(x_mm), float(y_mm))
    except (TypeError, ValueError):
        return None


def itk_transform(H_fix_to_mov: np.ndarray) -> str:
    """An affine matrix as an ITK transform file.

    Convention: ITK resamples by mapping points of the output (fixed) to the input (moving), as
    ``H_fix_to_mov`` does. The file is valid for images with spacing 1 and origin 0, the defaults of
    PNG, JPEG and TIFF.

    Args:
        H_fix_to_mov: (3, 3) affine matrix, pixels.

    Raises:
        InputError: a homography, which ITK has no transform for.
    """
    H = np.asarray(H_fix_to_mov, dtype=float) / H_fix_to_mov[2, 2]
    if np.abs(H[2, :2]).max() > MAX_PROJECTIVE:
        raise InputError(
            "ITK has no transform for a homography; register with --transform affine or similarity "
            "to export it."
        )
    parameters = " ".join(repr(float(value)) for value in (*H[:2, :2].ravel(), *H[:2, 2]))
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_2_2\n"
        f"Parameters: {parameters}\nFixedParameters: 0 0\n"
    )


def itk_field(transform: Transform, fixed_size: Size) -> bytes:
    """A transform as an ITK displacement field: a MetaImage of two components over the fixed image.

    Convention: a fixed pixel plus its displacement is its position in the moving image, (x, y);
    spacing 1, origin 0.

    Args:
        transform: fixed pixels to moving pixels.
        fixed_size: (height, width) of the fixed image.

    Returns:
        Content of the file.
    """
    # Imported here because it is slow and only this function needs it.
    import SimpleITK as sitk  # noqa: PLC0415

    grid = pixel_grid(fixed_size).numpy().reshape(*fixed_size, 2)
    displacement = transform.dense_map(fixed_size) - grid
    field = sitk.GetImageFromArray(displacement.astype(np.float32), isVector=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ITK_FIELD
        sitk.WriteImage(field, str(path), useCompression=True)
        return path.read_bytes()


def matches_csv(fixed_points: np.ndarray, moving_points: np.ndarray, inliers: np.ndarray) -> str:
    """Matches as a CSV table: fixed_x, fixed_y, moving_x, moving_y (pixels), inlier (1 or 0).

    Args:
        fixed_points, moving_points: (K, 2) original pixels; row i is a match.
        inliers: (K,) bool.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["fixed_x", "fixed_y", "moving_x", "moving_y", "inlier"])
    for fixed, moving, inlier in zip(fixed_points, moving_points, inliers, strict=True):
        writer.writerow([*(f"{value:.4f}" for value in (*fixed, *moving)), int(inlier)])
    return buffer.getvalue()


def matches_npz(
    H_fix_to_mov: np.ndarray | None,
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    inliers: np.ndarray,
) -> bytes:
    """Matches and matrix as a NumPy archive whose arrays are named as the arguments.

    Args:
        H_fix_to_mov: (3, 3); None for a failed pair, which is written as NaN.
        fixed_points, moving_points: (K, 2) original pixels; row i is a match.
        inliers: (K,) bool.

    Returns:
        Content of the file.
    """
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        fixed_points=fixed_points,
        moving_points=moving_points,
        inliers=inliers,
        H_fix_to_mov=np.full((3, 3), np.nan) if H_fix_to_mov is None else H_fix_to_mov,
    )
    return buffer.getvalue()


def export_files(
    folder: Path,
    kinds: Sequence[str],
    transform: Transform | None,
    H_fix_to_mov: np.ndarray | None,
    fixed_size: Size,
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    inliers: np.ndarray,
) -> None:
    """Write exports into the folder of a pair; none for ITK of a failed pair.

    Args:
        folder: of the pair.
        kinds: keys of ``EXPORTS``.
        transform: fixed pixels to moving pixels; None for a failed pair.
        H_fix_to_mov: (3, 3) matrix of the result; None for a failed pair.
        fixed_size: (height, width) of the fixed image.
        fixed_points, moving_points: (K, 2) original pixels; row i is a match.
        inliers: (K,) bool.
    """
    if "itk" in kinds and transform is not None and H_fix_to_mov is not None:
        if transform.kind in ITK_KINDS:
            write_text_atomically(folder / EXPORTS["itk"], itk_transform(H_fix_to_mov))
        else:
            write_bytes_atomically(folder / ITK_FIELD, itk_field(transform, fixed_size))
    if "csv" in kinds:
        table = matches_csv(fixed_points, moving_points, inliers)
        write_text_atomically(folder / EXPORTS["csv"], table)
    if "numpy" in kinds:
        archive = matches_npz(H_fix_to_mov, fixed_points, moving_points, inliers)
        write_bytes_atomically(folder / EXPORTS["numpy"], archive)
