"""Build, chain and look into 3 x 3 matrices between pixel frames (convention: see the package)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)
Size = tuple[int, int]


# --- building matrices -----------------------------------------------------------------------------------------------


def translation_matrix(shift_xy: Sequence[float]) -> np.ndarray:
    """The (3, 3) matrix that adds ``shift_xy`` = (x, y), pixels."""
    H = np.eye(3)
    H[:2, 2] = shift_xy
    return H


def affine_about(
    rotation_deg: float,
    scale: float,
    shear: float,
    centre_from: Sequence[float],
    centre_to: Sequence[float],
    mirror: bool = False,
) -> np.ndarray:
    """An affine matrix that takes ``centre_from`` to ``centre_to`` and turns, scales and shears about them.

    Convention: rotation is from the x axis towards the y axis, so clockwise on the screen; ``scale`` > 1 makes things
    larger in the *to* frame; ``shear`` is the tangent of the angle (x gains ``shear * y``); ``mirror`` flips x first.

    Returns:
        (3, 3) float64.
    """
    cosine, sine = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    linear = (
        scale * np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1.0, shear], [0.0, 1.0]])
    )
    if mirror:
        linear = linear @ np.diag([-1.0, 1.0])
    H = np.eye(3)
    H[:2, :2] = linear
    H[:2, 2] = np.asarray(centre_to, dtype=float) - linear @ np.asarray(centre_from, dtype=float)
    return H


def image_centre(size: Size) -> np.ndarray:
    """Centre (x, y) of an image of size (height, width): half-way between the centres of its outer pixels."""
    return np.array([(size[1] - 1) / 2.0, (size[0] - 1) / 2.0])


def resize_matrix(size_from: Size, size_to: Size) -> np.ndarray:
    """``H_from_to`` of an image resize, as OpenCV, PIL and torch (align_corners=False) resize.

    Convention: the *borders* of the images coincide, not the centres of their outer pixels, hence the half pixels.
    """
    scale_y, scale_x = size_to[0] / size_from[0], size_to[1] / size_from[1]
    return np.array(
        [[scale_x, 0.0, 0.5 * scale_x - 0.5], [0.0, scale_y, 0.5 * scale_y - 0.5], [0.0, 0.0, 1.0]]
    )


def resize_transform(
    H_fix_to_mov: np.ndarray, fixed_from: Size, fixed_to: Size, moving_from: Size, moving_to: Size
) -> np.ndarray:
    """The same transform after either image was resized: ``S_mov @ H @ inv(S_fix)``. All sizes are (height, width)."""
    return (
        resize_matrix(moving_from, moving_to)
        @ H_fix_to_mov
        @ np.linalg.inv(resize_matrix(fixed_from, fixed_to))
    )


def fit_within(size: Size, long_side: int) -> Size:
    """Size (height, width) with the long side brought to ``long_side`` and the aspect ratio kept (rounded)."""
    factor = long_side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def turn_about_centre(size: Size, angle_deg: float, scale: float = 1.0) -> tuple[np.ndarray, Size]:
    """Turn an image about its centre, with a scale factor, onto a canvas that loses no pixel.

    Returns:
        ``H_image_to_canvas`` (3, 3) and the size (height, width) of the canvas.
    """
    cosine, sine = abs(math.cos(math.radians(angle_deg))), abs(math.sin(math.radians(angle_deg)))
    height, width = size
    canvas = (
        math.ceil(scale * (height * cosine + width * sine) - 1e-6),
        math.ceil(scale * (width * cosine + height * sine) - 1e-6),
    )
    return affine_about(angle_deg, scale, 0.0, image_centre(size), image_centre(canvas)), canvas


def compose(*matrices: Array) -> Array:
    """Chain transforms in the order in which they act: ``compose(H_a_to_b, H_b_to_c)`` is ``H_a_to_c``."""
    result = matrices[0]
    for matrix in matrices[1:]:
        result = matrix @ result
    return result


def local_linear_part(H_fix_to_mov: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Jacobian (2, 2) of the transform at ``point``; for an affine matrix its linear part."""
    numerator = H_fix_to_mov @ np.array([point[0], point[1], 1.0])
    projected = numerator[:2] / numerator[2]
    return (H_fix_to_mov[:2, :2] - np.outer(projected, H_fix_to_mov[2, :2])) / numerator[2]
