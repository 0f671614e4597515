"""The files of a registered pair: figures, ``transform.json`` and exports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from geometry.curved_transforms import CURVED_KINDS
from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import Size, size_of_image
from geometry.rasters import register_onto_fixed
from geometry.transform_files import (
    CONVENTION,
    EXPORTS,
    ITK_FIELD,
    SavedTransform,
    export_files,
)
from geometry.transforms import Transform, displacement_after_affine
from geometry.warped_frames import warp_frame
from pictures.drawing import checkerboard, draw_displacement, draw_matches, encoded_figure
from registration.registered_pair import Registration
from utils.files import write_bytes_atomically, write_text_atomically
from utils.image_files import color_of, to_unit_range, write_image
from utils.stored_image import Spacing, StoredImage
from utils.tiff_files import write_tiff

PAIR_FILES = (
    "registered.png",
    "registered.tif",
    "checkerboard.png",
    "checkerboard_affine.png",
    "displacement.png",
    "matches.png",
    "transform.json",
    ITK_FIELD,
    *EXPORTS.values(),
)
PICTURES = ("all", "registered", "none")
GIVEN = "the given image"  # name of an array in messages
TIFF_FORMATS = {"TIFF", "DICOM"}  # of an image; the result is also written as TIFF


@dataclass(frozen=True)
class RegisteredImages:
    """What the files of a pair are made from.

    Attributes:
        registration: result of the pipeline.
        fixed, moving: the images as stored.
        fixed_path, moving_path: where they are; None for images that were given as arrays.
        asked_for: the transform that was asked for.
        weights: checkpoint.
    """

    registration: Registration
    fixed: StoredImage
    moving: StoredImage
    fixed_path: str | None
    moving_path: str | None
    asked_for: str
    weights: str


def write_pair(
    folder: Path, pair: RegisteredImages, exports: Sequence[str], pictures: str = "all"
) -> None:
    """Write the figures of a pair, ``transform.json`` (docs/transform_json.md) and exports.

    Args:
        folder: of the pair.
        pair: its images and its registration.
        exports: keys of ``geometry.transform_files.EXPORTS``.
        pictures: one of ``PICTURES``: all figures, ``registered.png`` alone, or none.
    """
    result = pair.registration
    fixed, moving = (
        color_of(image.pixels, path or GIVEN)
        for image, path in ((pair.fixed, pair.fixed_path), (pair.moving, pair.moving_path))
    )
    matches = result.fixed_points, result.moving_points, result.inliers
    if pictures == "all":
        write_image(folder / "matches.png", draw_matches(fixed, moving, *matches))
    if result.transform is not None and pictures != "none":
        write_registered(folder, pair, result.transform)
    if result.transform is not None and pictures == "all":
        registered = register_onto_fixed(moving, result.transform, size_of_image(fixed))
        write_image(folder / "checkerboard.png", checkerboard(fixed, registered))
        if result.transform.kind in CURVED_KINDS:
            assert result.H_affine is not None
            write_curved_figures(folder, fixed, moving, result.transform, result.H_affine)
    content = _transform_json(pair)
    write_text_atomically(folder / "transform.json", json.dumps(content, indent=2) + "\n")
    fixed_size = size_of_image(fixed)
    export_files(folder, exports, result.transform, result.H_fix_to_mov, fixed_size, *matches)


def write_registered(folder: Path, pair: RegisteredImages, transform: Transform) -> None:
    """Write the moving image in the fixed frame, with its own depth and channels.

    ``registered.png``; and ``registered.tif``, with the size of a pixel of the fixed image, where
    one of the images is TIFF or DICOM, where that size is known, or where the pixels are floats,
    which ``registered.png`` holds scaled to 8 bits.

    Args:
        folder: of the pair.
        pair: its images.
        transform: fixed to moving pixels.
    """
    fixed, moving = pair.fixed, pair.moving
    sizes = size_of_image(fixed.pixels), size_of_image(moving.pixels)
    warped = warp_frame(moving.pixels, SavedTransform(transform, *sizes))
    is_float = warped.dtype == np.float32
    formats = {fixed.provenance.get("format"), moving.provenance.get("format")}
    if is_float or fixed.spacing_mm is not None or formats & TIFF_FORMATS:
        write_tiff(folder / "registered.tif", warped, fixed.spacing_mm)
    write_image(folder / "registered.png", to_unit_range(warped, GIVEN) if is_float else warped)


def write_curved_figures(
    folder: Path,
    fixed: np.ndarray,
    moving: np.ndarray,
    transform: Transform,
    H_affine: np.ndarray,
) -> None:
    """Write ``checkerboard_affine.png`` and ``displacement.png`` of a curved transform.

    They show the residual misalignment of the affine matrix, which the transform corrects.

    Args:
        folder: of the pair.
        fixed, moving: (H, W, 3) float32 in [0, 1].
        transform: from fixed to moving pixels.
        H_affine: (3, 3), fixed to moving pixels.
    """
    size = size_of_image(fixed)
    write_image(
        folder / "checkerboard_affine.png",
        checkerboard(fixed, register_onto_fixed(moving, H_affine, size)),
    )
    displacement = displacement_after_affine(transform, H_affine, size)
    moving_field = estimate_field_of_view(moving.max(axis=-1)).astype(np.float32)
    seen = register_onto_fixed(moving_field, transform, size) > 0.5
    overlap = seen & estimate_field_of_view(fixed.max(axis=-1))
    figure = draw_displacement(fixed, displacement, overlap)
    write_bytes_atomically(folder / "displacement.png", encoded_figure(figure, "png"))


def _transform_json(pair: RegisteredImages) -> dict[str, object]:
    """Content of ``transform.json``."""
    result = pair.registration
    return {
        "version": 2,
        "convention": CONVENTION,
        "status": result.status,
        "reason": result.reason,
        "confidence": round(result.confidence, 4),
        "asked_for": pair.asked_for,
        **_describe_transform(result, size_of_image(pair.fixed.pixels)),
        "H_fix_to_mov": None if result.H_fix_to_mov is None else result.H_fix_to_mov.tolist(),
        "H_affine": None if result.H_affine is None else result.H_affine.tolist(),
        "in_mm": _in_mm(result.H_affine, pair.fixed.spacing_mm, pair.moving.spacing_mm),
        "fixed": _describe_image(pair.fixed, pair.fixed_path),
        "moving": _describe_image(pair.moving, pair.moving_path),
        "n_matches": result.n_matches,
        "n_inliers": result.n_inliers,
        "seconds": round(result.seconds, 4),
        "weights": pair.weights,
    }


def _describe_image(image: StoredImage, path: str | None) -> dict[str, object]:
    """Path and size of an image, and what else its file says."""
    height, width = size_of_image(image.pixels)
    known = {
        "spacing_mm": list(image.spacing_mm or ()),
        "laterality": image.laterality,
        "source": image.provenance,
    }
    named = {name: value for name, value in known.items() if value}
    return {"path": path, "height": height, "width": width, **named}


def _in_mm(
    H_affine: np.ndarray | None, fixed_mm: Spacing | None, moving_mm: Spacing | None
) -> dict[str, object] | None:
    """The affine matrix in mm on the retina; None unless the size of both pixels is known.

    Convention: fixed to moving, mm along (x, y) from the centre of the top-left pixel. The scale of
    a right registration is near 1, unless a device states its size of a pixel wrongly.
    """
    if H_affine is None or fixed_mm is None or moving_mm is None:
        return None
    H = np.diag([*moving_mm, 1.0]) @ H_affine @ np.linalg.inv(np.diag([*fixed_mm, 1.0]))
    return {
        "H_fix_to_mov": H.tolist(),
        "scale": float(np.sqrt(abs(np.linalg.det(H[:2, :2])))),
        "rotation_deg": float(np.degrees(np.arctan2(H[1, 0] - H[0, 1], H[0, 0] + H[1, 1]))),
    }


def _describe_transform(result: Registration, fixed_size: Size) -> dict[str, object]:
    """Entries about the transform: its kind, the reason for it, its least Jacobian, itself."""
    transform = result.transform
    if transform is None:
        return {
            "transform": None,
            "transform_reason": "",
            "least_jacobian": None,
            "fix_to_mov": None,
        }
    least = transform.least_jacobian(fixed_size)
    return {
        "transform": transform.kind,
        "transform_reason": result.transform_reason,
        "least_jacobian": least if np.isfinite(least) else None,
        "fix_to_mov": transform.to_dict(),
    }
