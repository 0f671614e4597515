"""Small pictures of an evaluated pair for the report, all in the fixed frame.

<folder>/<set>/<id>/fixed.jpg
<folder>/<set>/<id>/<stress>/unregistered.jpg            the moving image, centre on centre
<folder>/<set>/<id>/<stress>/<method>_registered.jpg     absent when failed
<folder>/<set>/<id>/<stress>/<method>_matches.jpg        absent for methods without matches
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evaluation.method import Outcome
from evaluation.methods.identity import identity_matrix
from evaluation.sets import EvaluationPair
from geometry.matrices import fit_within, resize_matrix
from geometry.rasters import register_onto_fixed
from geometry.transforms import Transform, as_transform
from pictures.drawing import draw_matches
from utils.image_files import resize_image, write_image

PICTURE_PX = 512  # long side of a picture, pixels


def case_folder(folder: Path, set_name: str, pair_id: str, stress_slug: str) -> Path:
    """Folder of the pictures of one pair under one stress."""
    return folder / set_name / pair_id / stress_slug


def _onto_small_fixed(pair: EvaluationPair, fix_to_mov: np.ndarray | Transform) -> np.ndarray:
    """The moving image resampled in the reduced fixed frame: (h, w) float32 in [0, 1]."""
    size = fit_within(pair.fixed.shape, PICTURE_PX)
    small_to_mov = as_transform(fix_to_mov).rescaled(
        resize_matrix(size, pair.fixed.shape), np.eye(3)
    )
    return register_onto_fixed(pair.moving, small_to_mov, size)


def write_unregistered(folder: Path, pair: EvaluationPair) -> None:
    """Write ``fixed.jpg`` and ``unregistered.jpg`` of a pair.

    Args:
        folder: of :func:`case_folder`.
        pair: the degraded pair.
    """
    write_image(
        folder.parent / "fixed.jpg",
        resize_image(pair.fixed, fit_within(pair.fixed.shape, PICTURE_PX)),
    )
    write_image(
        folder / "unregistered.jpg",
        _onto_small_fixed(pair, identity_matrix(pair.fixed.shape, pair.moving.shape)),
    )


def write_outcome(folder: Path, method: str, pair: EvaluationPair, outcome: Outcome) -> None:
    """Write ``<method>_registered.jpg`` and ``<method>_matches.jpg``.

    Pictures of an earlier run are removed, also where the new outcome has none.

    Args:
        folder: of :func:`case_folder`.
        method: name of the method.
        pair: the degraded pair.
        outcome: result of the method on this pair.
    """
    registered, matches = folder / f"{method}_registered.jpg", folder / f"{method}_matches.jpg"
    for path in (registered, matches):
        path.unlink(missing_ok=True)
    if outcome.fix_to_mov is not None:
        write_image(registered, _onto_small_fixed(pair, outcome.fix_to_mov))
    if len(outcome.fixed_points):
        write_image(
            matches,
            draw_matches(
                pair.fixed,
                pair.moving,
                outcome.fixed_points,
                outcome.moving_points,
                outcome.inliers,
                PICTURE_PX,
            ),
        )
