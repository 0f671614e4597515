"""The files of a registered pair: pictures, ``transform.json`` and exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from geometry.curved_transforms import CURVED_KINDS
from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import Size
from geometry.rasters import register_onto_fixed
from geometry.transform_files import EXPORTS, ITK_FIELD, export_files
from geometry.transforms import displacement_after_affine
from pictures.drawing import checkerboard, draw_displacement, draw_matches, encoded_figure
from registration.pair_table import PairToRegister
from registration.registrar import Registrar, Result
from utils.files import write_bytes_atomically, write_text_atomically
from utils.image_files import read_color, write_image

PAIR_FILES = (
    "registered.png",
    "checkerboard.png",
    "checkerboard_affine.png",
    "displacement.png",
    "matches.png",
    "transform.json",
    ITK_FIELD,
    *EXPORTS.values(),
)


def describe_transform(result: Result, fixed_size: Size) -> dict[str, object]:
    """The entries of ``transform.json`` about the transform: its kind, why it was chosen, whether it folds, and itself."""
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


def write_what_affine_leaves(
    folder: Path, fixed: np.ndarray, moving: np.ndarray, result: Result
) -> None:
    """Write ``checkerboard_affine.png`` and ``displacement.png``: what a curved transform puts right."""
    size = fixed.shape[:2]
    write_image(
        folder / "checkerboard_affine.png",
        checkerboard(fixed, register_onto_fixed(moving, result.H_affine, size)),
    )
    left = displacement_after_affine(result.transform, result.H_affine, size)
    seen = (
        register_onto_fixed(
            estimate_field_of_view(moving.max(axis=-1)).astype(np.float32), result.transform, size
        )
        > 0.5
    )
    figure = draw_displacement(fixed, left, seen & estimate_field_of_view(fixed.max(axis=-1)))
    write_bytes_atomically(folder / "displacement.png", encoded_figure(figure, "png"))


def write_pair(
    folder: Path, row: PairToRegister, result: Result, registrar: Registrar, exports: list[str]
) -> None:
    """Write a pair's pictures, ``transform.json`` (docs/transform_json.md) and the files of ``exports``."""
    fixed, moving = read_color(row.fixed), read_color(row.moving)
    write_image(folder / "matches.png", draw_matches(fixed, moving, *result.matches))
    if result.transform is not None:
        registered = register_onto_fixed(moving, result.transform, fixed.shape[:2])
        write_image(folder / "registered.png", registered)
        write_image(folder / "checkerboard.png", checkerboard(fixed, registered))
        if result.transform.kind in CURVED_KINDS:
            write_what_affine_leaves(folder, fixed, moving, result)
    content = {
        "version": 2,
        "convention": "fix_to_mov takes pixels (x, y) of the fixed image to pixels of the moving image; pixel centres at "
        "integers, origin top-left, both images at their own size; H_fix_to_mov is its matrix, or of a "
        "quadratic or deformable transform the affine matrix that it refines",
        "status": result.status,
        "reason": result.reason,
        "confidence": round(result.confidence, 4),
        "asked_for": registrar.transform,
        **describe_transform(result, fixed.shape[:2]),
        "H_fix_to_mov": None if result.H_fix_to_mov is None else result.H_fix_to_mov.tolist(),
        "H_affine": None if result.H_affine is None else result.H_affine.tolist(),
        "fixed": {"path": row.fixed, "height": fixed.shape[0], "width": fixed.shape[1]},
        "moving": {"path": row.moving, "height": moving.shape[0], "width": moving.shape[1]},
        "n_matches": result.n_matches,
        "n_inliers": result.n_inliers,
        "seconds": round(result.seconds, 4),
        "weights": str(registrar.weights),
    }
    write_text_atomically(folder / "transform.json", json.dumps(content, indent=2) + "\n")
    export_files(folder, exports, result.transform, result.matrix, fixed.shape[:2], *result.matches)
