"""The files of a registered pair: figures, ``transform.json`` and exports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from geometry.curved_transforms import CURVED_KINDS
from geometry.field_of_view import estimate_field_of_view
from geometry.matrices import Size, size_of_image
from geometry.rasters import register_onto_fixed
from geometry.transform_files import CONVENTION, EXPORTS, ITK_FIELD, export_files
from geometry.transforms import Transform, displacement_after_affine
from pictures.drawing import checkerboard, draw_displacement, draw_matches, encoded_figure
from registration.pair_tables import PairToRegister
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


def write_pair(
    folder: Path, row: PairToRegister, result: Result, registrar: Registrar, exports: list[str]
) -> None:
    """Write the figures of a pair, ``transform.json`` (docs/transform_json.md) and exports.

    Args:
        folder: of the pair.
        row: the pair.
        result: of its registration.
        registrar: that registered it.
        exports: keys of ``geometry.transform_files.EXPORTS``.
    """
    fixed, moving = read_color(row.fixed), read_color(row.moving)
    fixed_size, moving_size = size_of_image(fixed), size_of_image(moving)
    write_image(folder / "matches.png", draw_matches(fixed, moving, *result.matches))
    if result.transform is not None:
        registered = register_onto_fixed(moving, result.transform, fixed_size)
        write_image(folder / "registered.png", registered)
        write_image(folder / "checkerboard.png", checkerboard(fixed, registered))
        if result.transform.kind in CURVED_KINDS:
            assert result.H_affine is not None
            write_curved_figures(folder, fixed, moving, result.transform, result.H_affine)
    content = _transform_json(row, result, registrar, fixed_size, moving_size)
    write_text_atomically(folder / "transform.json", json.dumps(content, indent=2) + "\n")
    export_files(folder, exports, result.transform, result.matrix, fixed_size, *result.matches)


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


def _transform_json(
    row: PairToRegister, result: Result, registrar: Registrar, fixed_size: Size, moving_size: Size
) -> dict[str, object]:
    """Content of ``transform.json``; sizes are (height, width)."""
    return {
        "version": 2,
        "convention": CONVENTION,
        "status": result.status,
        "reason": result.reason,
        "confidence": round(result.confidence, 4),
        "asked_for": registrar.transform,
        **_describe_transform(result, fixed_size),
        "H_fix_to_mov": None if result.H_fix_to_mov is None else result.H_fix_to_mov.tolist(),
        "H_affine": None if result.H_affine is None else result.H_affine.tolist(),
        "fixed": {"path": row.fixed, "height": fixed_size[0], "width": fixed_size[1]},
        "moving": {"path": row.moving, "height": moving_size[0], "width": moving_size[1]},
        "n_matches": result.n_matches,
        "n_inliers": result.n_inliers,
        "seconds": round(result.seconds, 4),
        "weights": str(registrar.weights),
    }


def _describe_transform(result: Result, fixed_size: Size) -> dict[str, object]:
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
