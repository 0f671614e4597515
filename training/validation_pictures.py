"""Pictures of the validated pairs of a training run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from geometry.rasters import register_onto_fixed
from pictures.drawing import checkerboard, draw_keypoints, draw_matches
from registration.registered_pair import Registration
from utils.image_files import write_image


def write_pair_pictures(
    folder: Path, name: str, fixed: np.ndarray, moving: np.ndarray, result: Registration
) -> None:
    """Write the pictures of a validated pair: ``<name>_matches.png``, ``<name>_keypoints.png``,
    ``<name>_registered.png`` and ``<name>_fix_registered_checkerboard.png``.

    For a failed pair the last two show the unregistered moving image (identity matrix).

    Args:
        folder: where they go.
        name: begins the file names.
        fixed, moving: (H, W) or (H, W, 3) float32 in [0, 1], at original size.
        result: of the registration of the pair.
    """
    write_image(
        folder / f"{name}_matches.png",
        draw_matches(fixed, moving, result.fixed_points, result.moving_points, result.inliers),
    )
    matches = result.matches
    fixed_working, moving_working = (
        register_onto_fixed(image, np.linalg.inv(frame.H_image_to_working), frame.size)
        for image, frame in ((fixed, matches.fixed.frame), (moving, matches.moving.frame))
    )
    keypoints = draw_keypoints(
        fixed_working,
        moving_working,
        matches.fixed_keypoints,
        matches.moving_keypoints,
        matches.fixed_heatmap,
        matches.moving_heatmap,
    )
    write_image(folder / f"{name}_keypoints.png", keypoints)
    H = np.eye(3) if result.H_fix_to_mov is None else result.H_fix_to_mov
    registered = register_onto_fixed(moving, H, fixed.shape[:2])
    write_image(folder / f"{name}_registered.png", registered)
    write_image(folder / f"{name}_fix_registered_checkerboard.png", checkerboard(fixed, registered))
