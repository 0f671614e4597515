"""The geometry of a pair of images: the one convention, written once and obeyed everywhere.

Convention:
    ``H_fix_to_mov`` is a 3 x 3 matrix that takes pixel coordinates of the *fixed* image to pixel coordinates of the
    *moving* image. Points are (x, y); the centre of the top-left pixel is (0, 0); x grows to the right, y downwards;
    a pixel spans half a unit to each side of its centre. Every matrix is named ``H_<from>_to_<to>`` and maps column
    vectors: ``point_to = H_from_to @ point_from``. Sizes are (height, width).

    To *resample* an image into another frame one needs the matrix from the frame of the output to the frame of the
    source: the moving image seen in the fixed frame is ``warp_image(moving, H_fix_to_mov, fixed_size)``.

Matrices are (3, 3) numpy float64 where transforms are estimated and scored, and (B, 3, 3) torch tensors in training;
:func:`warp_points` and :func:`compose` take either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import cv2
import numpy as np
import torch
from kornia.geometry.transform import warp_perspective
from torch.nn.functional import avg_pool2d

from utils.errors import InputError

Array = TypeVar("Array", np.ndarray, torch.Tensor)
Size = tuple[int, int]
MATRIX_KINDS = ("similarity", "affine", "homography")
NOTICEABLE_SHRINK = 1.15
MIN_MATCHES = {"similarity": 2, "affine": 3, "homography": 4}


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


# --- points and maps -------------------------------------------------------------------------------------------------


def warp_points(points: Array, H_from_to: Array) -> Array:
    """Map points by a matrix.

    Args:
        points: (..., N, 2), (x, y) in pixels of the *from* frame.
        H_from_to: (..., 3, 3), numpy or torch like the points.

    Returns:
        (..., N, 2), pixels of the *to* frame.
    """
    homogeneous = points @ H_from_to[..., :, :2].swapaxes(-1, -2) + H_from_to[..., None, :, 2]
    return homogeneous[..., :2] / homogeneous[..., 2:]


def pixel_grid(size: Size, device: torch.device | str = "cpu") -> torch.Tensor:
    """Centres (x, y) of all pixels of an image, row by row: (height * width, 2) float32."""
    ys, xs = torch.meshgrid(
        torch.arange(size[0], device=device), torch.arange(size[1], device=device), indexing="ij"
    )
    return torch.stack([xs, ys], dim=-1).reshape(-1, 2).float()


def pixels_to_cells(points: Array, stride: float) -> Array:
    """Pixel coordinates to coordinates on a map of ``stride`` pixels a cell.

    Convention: cell 0 covers pixels 0 ... stride - 1, so its centre lies at pixel (stride - 1) / 2.
    """
    return (points + 0.5) / stride - 0.5


def cells_to_pixels(cells: Array, stride: float) -> Array:
    """Inverse of :func:`pixels_to_cells`."""
    return (cells + 0.5) * stride - 0.5


def sample_map(
    feature_map: torch.Tensor, points: torch.Tensor, stride: float = 1.0
) -> torch.Tensor:
    """Read a map at pixel positions, bilinearly; the border value continues outside.

    Convention: ``points`` are pixels of the *image*; the map has exactly image size / stride cells.

    Args:
        feature_map: (B, C, H, W).
        points: (B, N, 2), (x, y).
        stride: image pixels per cell.

    Returns:
        (B, N, C)
    """
    height, width = feature_map.shape[-2:]
    cells = pixels_to_cells(points, stride)
    size = torch.tensor([width, height], dtype=cells.dtype, device=cells.device)
    grid = ((2.0 * cells + 1.0) / size - 1.0)[:, :, None].to(feature_map.dtype)
    sampled = torch.nn.functional.grid_sample(
        feature_map, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled[..., 0].transpose(1, 2)


# --- rasters ---------------------------------------------------------------------------------------------------------


def mean_shrink(H_out_to_source: torch.Tensor) -> float:
    """Source pixels per output pixel along one direction, the largest of a batch (B, 3, 3) of affine matrices."""
    return float(torch.linalg.det(H_out_to_source[:, :2, :2].double()).abs().sqrt().max())


def warp_image(
    source: torch.Tensor,
    H_out_to_source: torch.Tensor,
    out_size: Size,
    mode: str = "bilinear",
    antialias: bool = False,
) -> torch.Tensor:
    """Resample rasters into another frame; what lies outside the source is 0.

    Convention: the matrix goes from the frame of the *output* to that of the source. To warp a whole pair consistently,
    stack all its rasters (image, mask, heatmap, field of view) as channels of one call.

    Args:
        source: (B, C, H, W) float.
        H_out_to_source: (B, 3, 3), pixels.
        out_size: (height, width) of the output.
        mode: "bilinear" or "nearest".
        antialias: average over each output pixel where the output has clearly fewer pixels than the source.

    Returns:
        (B, C, *out_size)
    """
    if antialias and mean_shrink(H_out_to_source) > NOTICEABLE_SHRINK:
        # Twice the resolution, then the mean of 2 x 2: cheaper than blurring a source of which a crop is wanted.
        fine_size = (2 * out_size[0], 2 * out_size[1])
        H_fine_to_out = torch.from_numpy(resize_matrix(fine_size, out_size)).to(H_out_to_source)
        return avg_pool2d(warp_image(source, H_out_to_source @ H_fine_to_out, fine_size, mode), 2)
    H_source_to_out = torch.linalg.inv(H_out_to_source.double()).to(source.dtype)
    return warp_perspective(
        source, H_source_to_out, out_size, mode=mode, padding_mode="zeros", align_corners=True
    )


def valid_overlap(
    H_fix_to_mov: torch.Tensor, fixed_fov: torch.Tensor, moving_fov: torch.Tensor
) -> torch.Tensor:
    """Where the fixed image shows retina that the moving image shows too.

    Args:
        H_fix_to_mov: (B, 3, 3).
        fixed_fov: (B, 1, H, W), 1 inside the field of view.
        moving_fov: (B, 1, Hm, Wm), likewise.

    Returns:
        (B, 1, H, W) of 0 and 1, in the fixed frame.
    """
    seen = warp_image(moving_fov, H_fix_to_mov, tuple(fixed_fov.shape[-2:]))
    return ((seen > 0.5) & (fixed_fov > 0.5)).to(fixed_fov.dtype)


def inside(points: Array, size: Size, margin_px: float = 0.0) -> Array:
    """Which points (..., 2) lie on pixels of an image of ``size``, at least ``margin_px`` from its border: bool (...)."""
    x, y = points[..., 0], points[..., 1]
    return (
        (x >= margin_px - 0.5)
        & (x <= size[1] - 0.5 - margin_px)
        & (y >= margin_px - 0.5)
        & (y <= size[0] - 0.5 - margin_px)
    )


# --- fitting ---------------------------------------------------------------------------------------------------------


def fit_affine(fixed_points: np.ndarray, moving_points: np.ndarray) -> np.ndarray:
    """Least-squares affine ``H_fix_to_mov`` through corresponding points.

    Args:
        fixed_points, moving_points: (N, 2), N >= 3, not all on one line.

    Raises:
        InputError: unequal numbers, fewer than three points, or collinear points.
    """
    fixed_points, moving_points = np.asarray(fixed_points, float), np.asarray(moving_points, float)
    if (
        fixed_points.shape != moving_points.shape
        or fixed_points.ndim != 2
        or fixed_points.shape[1:] != (2,)
    ):
        raise InputError(
            f"{len(fixed_points)} fixed and {len(moving_points)} moving landmarks; line i of both files "
            "must be the same point, so the numbers must be equal."
        )
    if len(fixed_points) < 3:
        raise InputError(f"only {len(fixed_points)} landmarks; an affine matrix needs at least 3.")
    for points in (fixed_points, moving_points):
        spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
        if spread[1] < 1e-3 * max(spread[0], 1e-9):
            raise InputError(
                "the landmarks lie on one line; an affine matrix needs a point beside it."
            )
    design = np.hstack([fixed_points, np.ones((len(fixed_points), 1))])
    solution = np.linalg.lstsq(design, moving_points, rcond=None)[0]
    return np.vstack([solution.T, [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Plausibility:
    """What a matrix between two photographs of one retina can be; lengths relative to the working size.

    Attributes:
        min_scale, max_scale: bounds of sqrt(|det|) of the linear part at the centre of the fixed image.
        max_anisotropy: bound of the ratio of its singular values.
        min_inliers: matches that must agree with the matrix.
        min_inlier_share: share of the matches that must agree: among many wrong matches some agree by accident.
        min_spread: the *smaller* standard deviation of the inliers' positions in the fixed image, divided by the
            image's diagonal: inliers in one spot or along one line do not fix a matrix.
    """

    min_scale: float = 0.3
    max_scale: float = 3.3
    max_anisotropy: float = 1.5
    min_inliers: int = 10
    min_inlier_share: float = 0.08
    min_spread: float = 0.04


@dataclass(frozen=True)
class TransformEstimate:
    """Result of :func:`estimate_transform`; ``H_fix_to_mov`` is None exactly when ``status`` is "failed"."""

    status: str
    reason: str
    H_fix_to_mov: np.ndarray | None
    inliers: np.ndarray = field(repr=False)

    @property
    def n_inliers(self) -> int:
        """Number of matches that agree with the matrix (0 when failed before a fit)."""
        return int(self.inliers.sum())


def local_linear_part(H_fix_to_mov: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Jacobian (2, 2) of the transform at ``point``; for an affine matrix its linear part."""
    numerator = H_fix_to_mov @ np.array([point[0], point[1], 1.0])
    projected = numerator[:2] / numerator[2]
    return (H_fix_to_mov[:2, :2] - np.outer(projected, H_fix_to_mov[2, :2])) / numerator[2]


def implausible_because(
    H_fix_to_mov: np.ndarray,
    inlier_points: np.ndarray,
    n_matches: int,
    fixed_size: Size,
    limits: Plausibility,
) -> str:
    """Why a matrix cannot be right, or "" when nothing speaks against it. ``inlier_points`` (N, 2) are fixed pixels."""
    if len(inlier_points) < limits.min_inliers:
        return f"only {len(inlier_points)} of {n_matches} matches agree (at least {limits.min_inliers} needed)"
    if len(inlier_points) < limits.min_inlier_share * n_matches:
        return f"only {len(inlier_points)} of {n_matches} matches agree (share below {limits.min_inlier_share:g})"
    corners = np.array(
        [
            [0, 0],
            [fixed_size[1] - 1, 0],
            [fixed_size[1] - 1, fixed_size[0] - 1],
            [0, fixed_size[0] - 1],
        ]
    )
    for point in [image_centre(fixed_size), *corners]:
        linear = local_linear_part(H_fix_to_mov, point)
        if not np.isfinite(linear).all():
            return "the matrix is singular"
        if np.linalg.det(linear) <= 0:
            return "the matrix mirrors the image; two photographs of one eye are never mirrored"
        largest, smallest = np.linalg.svd(linear, compute_uv=False)
        if largest / smallest > limits.max_anisotropy:
            return f"the matrix stretches one direction {largest / smallest:.2f} times more than the other"
        scale = math.sqrt(largest * smallest)
        if not limits.min_scale <= scale <= limits.max_scale:
            return f"implausible scale {scale:.2f} between the images"
    spread = np.linalg.svd(inlier_points - inlier_points.mean(0), compute_uv=False)[1] / math.sqrt(
        len(inlier_points)
    )
    if spread < limits.min_spread * math.hypot(*fixed_size):
        return "the agreeing matches lie in one spot or along one line"
    return ""


def estimate_transform(
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    fixed_size: Size,
    model: str = "affine",
    inlier_threshold_px: float = 3.0,
    plausibility: Plausibility | None = None,
) -> TransformEstimate:
    """Robust ``H_fix_to_mov`` from matches, or the reason why there is none.

    Affine and homography by OpenCV's USAC_MAGSAC (Barath et al., CVPR 2020). OpenCV has no USAC for the similarity, so
    that one is its RANSAC with local least squares. The random draws are seeded: equal input, equal result.

    Args:
        fixed_points, moving_points: (N, 2) corresponding pixels.
        fixed_size: (height, width) of the fixed image.
        model: "affine", "similarity" or "homography".
        inlier_threshold_px: a match agrees when it is nearer than this, moving pixels.
        plausibility: limits on the result; the defaults when None.

    Raises:
        InputError: unknown model.
    """
    if model not in MATRIX_KINDS:
        raise InputError(f"unknown transform '{model}'; choose one of {', '.join(MATRIX_KINDS)}.")
    limits = plausibility or Plausibility()
    none = np.zeros(len(fixed_points), dtype=bool)
    fixed_points, moving_points = (
        np.asarray(fixed_points, np.float64),
        np.asarray(moving_points, np.float64),
    )
    if len(fixed_points) < max(MIN_MATCHES[model], limits.min_inliers):
        return TransformEstimate("failed", f"only {len(fixed_points)} matches", None, none)
    H, inliers = _fit_robustly(fixed_points, moving_points, model, inlier_threshold_px)
    if H is None:
        return TransformEstimate("failed", "no transform agrees with the matches", None, none)
    reason = implausible_because(H, fixed_points[inliers], len(fixed_points), fixed_size, limits)
    if reason:
        return TransformEstimate("failed", reason, None, inliers)
    return TransformEstimate("ok", "", H, inliers)


def _fit_robustly(
    fixed_points: np.ndarray, moving_points: np.ndarray, model: str, threshold_px: float
) -> tuple[np.ndarray | None, np.ndarray]:
    """Run OpenCV's estimator; returns (3, 3) or None, and the bool (N,) of inliers."""
    cv2.setRNGSeed(0)
    settings = dict(ransacReprojThreshold=threshold_px, maxIters=10000, confidence=0.9999)
    if model == "homography":
        H, mask = cv2.findHomography(fixed_points, moving_points, cv2.USAC_MAGSAC, **settings)
    else:
        if model == "affine":
            H, mask = cv2.estimateAffine2D(
                fixed_points, moving_points, method=cv2.USAC_MAGSAC, **settings
            )
        else:
            H, mask = cv2.estimateAffinePartial2D(
                fixed_points, moving_points, method=cv2.RANSAC, **settings
            )
        H = None if H is None else np.vstack([H, [0.0, 0.0, 1.0]])
    if H is None or not np.isfinite(H).all():
        return None, np.zeros(len(fixed_points), dtype=bool)
    return H, mask.ravel().astype(bool)
