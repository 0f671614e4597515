"""3 x 3 matrices between pixel frames: construction, composition, Jacobian.

See :mod:`geometry` for the convention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)
Size = tuple[int, int]  # (height, width), pixels


def size_of_image(image: np.ndarray) -> Size:
    """(height, width) of an image (H, W) or (H, W, 3), pixels."""
    return image.shape[0], image.shape[1]


def size_of_raster(raster: torch.Tensor) -> Size:
    """(height, width) of a raster (..., H, W), pixels."""
    return raster.shape[-2], raster.shape[-1]


def translation_matrix(shift_xy: Sequence[float] | np.ndarray) -> np.ndarray:
    """The matrix that adds a shift.

    Args:
        shift_xy: (x, y), pixels.

    Returns:
        (3, 3) float64.
    """
    H = np.eye(3)
    H[:2, 2] = shift_xy
    return H


def affine_about(
    rotation_deg: float,
    scale: float,
    shear: float,
    centre_from: Sequence[float] | np.ndarray,
    centre_to: Sequence[float] | np.ndarray,
    mirror: bool = False,
) -> np.ndarray:
    """Affine matrix with a fixed rotation, scale and shear that maps one point to another.

    Convention:
        Direction *from* -> *to*. A positive rotation goes from the x axis towards the y axis:
        clockwise on the screen. ``scale`` > 1 enlarges. Order: mirror, shear, rotation, scale.

    Args:
        rotation_deg: degrees.
        scale: pixels of the *to* frame per pixel of the *from* frame.
        shear: tangent of the shear angle; x gains ``shear * y``.
        centre_from: (x, y), pixels of the *from* frame.
        centre_to: (x, y), pixels of the *to* frame, to which ``centre_from`` is mapped.
        mirror: whether to negate x first.

    Returns:
        ``H_from_to`` (3, 3) float64.
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
    """Centre of an image: the midpoint of the centres of its corner pixels.

    Args:
        size: (height, width).

    Returns:
        (2,) float64, pixels (x, y).
    """
    return np.array([(size[1] - 1) / 2.0, (size[0] - 1) / 2.0])


def resize_matrix(size_from: Size, size_to: Size) -> np.ndarray:
    """Matrix of an image resize, as OpenCV, PIL and torch resize.

    Convention:
        Direction *from* -> *to*. ``align_corners=False``: the outer *borders* of the images
        coincide, not the centres of their corner pixels; hence the offsets of half a pixel.

    Args:
        size_from, size_to: (height, width) before and after.

    Returns:
        ``H_from_to`` (3, 3) float64.
    """
    scale_y, scale_x = size_to[0] / size_from[0], size_to[1] / size_from[1]
    return np.array(
        [[scale_x, 0.0, 0.5 * scale_x - 0.5], [0.0, scale_y, 0.5 * scale_y - 0.5], [0.0, 0.0, 1.0]]
    )


def resize_transform(
    H_fix_to_mov: np.ndarray, fixed_from: Size, fixed_to: Size, moving_from: Size, moving_to: Size
) -> np.ndarray:
    """``H_fix_to_mov`` after both images were resized: ``S_mov @ H @ inv(S_fix)``.

    Args:
        H_fix_to_mov: (3, 3) between the images before the resize.
        fixed_from, fixed_to: (height, width) of the fixed image before and after.
        moving_from, moving_to: (height, width) of the moving image before and after.

    Returns:
        (3, 3) float64 between the resized images.
    """
    return (
        resize_matrix(moving_from, moving_to)
        @ H_fix_to_mov
        @ np.linalg.inv(resize_matrix(fixed_from, fixed_to))
    )


def fit_within(size: Size, long_side: int) -> Size:
    """Size of an image after a resize to a given long side, aspect ratio kept, sides rounded.

    Args:
        size: (height, width).
        long_side: of the result, pixels.

    Returns:
        (height, width), each at least 1.
    """
    factor = long_side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def turn_about_centre(size: Size, angle_deg: float, scale: float = 1.0) -> tuple[np.ndarray, Size]:
    """Rotate and scale an image about its centre, onto a canvas that holds all of its pixels.

    Convention:
        Direction image -> canvas; a positive angle is clockwise on the screen.

    Args:
        size: (height, width) of the image.
        angle_deg: degrees.
        scale: canvas pixels per image pixel.

    Returns:
        ``H_image_to_canvas`` (3, 3) float64 and the size (height, width) of the canvas.
    """
    cosine, sine = abs(math.cos(math.radians(angle_deg))), abs(math.sin(math.radians(angle_deg)))
    height, width = size
    # 1e-6: a rounding error must not add a row or a column.
    canvas = (
        math.ceil(scale * (height * cosine + width * sine) - 1e-6),
        math.ceil(scale * (width * cosine + height * sine) - 1e-6),
    )
    return affine_about(angle_deg, scale, 0.0, image_centre(size), image_centre(canvas)), canvas


def compose(*matrices: Array) -> Array:
    """Chain transforms in the order in which they act.

    Convention:
        ``compose(H_a_to_b, H_b_to_c)`` is ``H_a_to_c``, that is ``H_b_to_c @ H_a_to_b``.

    Args:
        matrices: (..., 3, 3), all numpy or all torch.

    Returns:
        (..., 3, 3)
    """
    result = matrices[0]
    for matrix in matrices[1:]:
        result = matrix @ result
    return result


def inverse(H: torch.Tensor) -> torch.Tensor:
    """Inverse of matrices (B, 3, 3) without waiting for a GPU.

    ``torch.linalg.inv`` reads on the host whether a matrix is singular. So on a GPU the inverse of
    a singular one is not finite, and neither is what is computed from it; on a CPU it is an error.

    Raises:
        torch.linalg.LinAlgError: a singular matrix, on a CPU.
    """
    return torch.linalg.inv_ex(H).inverse if H.is_cuda else torch.linalg.inv(H)


def local_linear_part(H_fix_to_mov: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Jacobian of a matrix transform at a point; for an affine matrix its linear part.

    Args:
        H_fix_to_mov: (3, 3).
        point: (2,), fixed pixels (x, y).

    Returns:
        (2, 2); row: moving x or y, column: fixed x or y.
    """
    numerator = H_fix_to_mov @ np.array([point[0], point[1], 1.0])
    projected = numerator[:2] / numerator[2]
    return (H_fix_to_mov[:2, :2] - np.outer(projected, H_fix_to_mov[2, :2])) / numerator[2]
