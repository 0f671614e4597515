"""Pictures of pairs, matches and training curves. Knows arrays and points, no model and no data set.

Images come as (H, W) or (H, W, 3) float in [0, 1]; points as (N, 2) pixels (x, y).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from geometry.matrices import fit_within
from utils.image_files import write_image

INLIER_COLOUR, OUTLIER_COLOUR, POINT_COLOUR = (60, 220, 90), (235, 70, 60), (255, 210, 40)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) float in [0, 1], or bool, to (H, W, 3) uint8."""
    image = (np.clip(np.asarray(image, dtype=np.float32), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()


def checkerboard(fixed: np.ndarray, registered: np.ndarray, cells: int = 8) -> np.ndarray:
    """Squares of both images in turn: where the registration is right, vessels run on across the edges.

    Args:
        fixed, registered: same height and width.
        cells: squares along the long side.

    Returns:
        (H, W, 3) uint8.
    """
    fixed_rgb, registered_rgb = as_rgb(fixed), as_rgb(registered)
    side = max(1, max(fixed_rgb.shape[:2]) // cells)
    rows, columns = np.indices(fixed_rgb.shape[:2]) // side
    return np.where(((rows + columns) % 2 == 0)[..., None], fixed_rgb, registered_rgb)


def draw_displacement(
    fixed: np.ndarray, displacement: np.ndarray, seen: np.ndarray, long_side: int = 640
) -> Figure:
    """A displacement field on the fixed image: arrows for the direction, enlarged alike until they can be seen, and colours for
    the length in pixels.

    Args:
        fixed: (H, W) or (H, W, 3).
        displacement: (H, W, 2) pixels (x, y) of the fixed image.
        seen: (H, W) bool, where both images show retina; nothing is drawn elsewhere.
    """
    size = fit_within(fixed.shape[:2], long_side)
    factor = size[1] / fixed.shape[1]
    step = max(1, max(fixed.shape[:2]) // 24)
    ys, xs = (
        axis.ravel()
        for axis in np.mgrid[step // 2 : fixed.shape[0] : step, step // 2 : fixed.shape[1] : step]
    )
    xs, ys = xs[seen[ys, xs]], ys[seen[ys, xs]]
    u, v = displacement[ys, xs].T
    length = np.hypot(u, v)
    figure = Figure(figsize=((size[1] + 120) / 100, (size[0] + 60) / 100), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.imshow(cv2.resize(as_rgb(fixed), size[::-1], interpolation=cv2.INTER_AREA) // 2)
    axis.set_axis_off()
    # The longest arrow spans 1.4 steps of the grid, whatever its length in pixels: the colours say that.
    largest = max(float(length.max()) if len(length) else 0.0, 1e-9)
    arrows = axis.quiver(
        xs * factor,
        ys * factor,
        u,
        v,
        length,
        angles="xy",
        scale_units="xy",
        scale=largest / (1.4 * step * factor),
        cmap="viridis",
        width=0.004,
    )
    figure.colorbar(arrows, ax=axis, label="pixels of the fixed image", shrink=0.8)
    axis.set_title(f"displacement left after the affine map, at most {largest:.1f} px", fontsize=10)
    return figure


def _side_by_side(
    fixed: np.ndarray, moving: np.ndarray, long_side: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Canvas (H, W, 3) uint8 with both images; offset (2,) of the moving one; scale factor of each image."""
    images, factors = [], []
    for image in (fixed, moving):
        size = fit_within(image.shape[:2], long_side)
        images.append(cv2.resize(as_rgb(image), size[::-1], interpolation=cv2.INTER_AREA))
        factors.append(size[0] / image.shape[0])
    height = max(image.shape[0] for image in images)
    gap = 8
    canvas = np.full((height, images[0].shape[1] + gap + images[1].shape[1], 3), 20, dtype=np.uint8)
    canvas[: images[0].shape[0], : images[0].shape[1]] = images[0]
    canvas[: images[1].shape[0], images[0].shape[1] + gap :] = images[1]
    return canvas, np.array([images[0].shape[1] + gap, 0.0]), factors


def _to_canvas(points: np.ndarray, factor: float, offset: np.ndarray | float = 0.0) -> np.ndarray:
    return np.round(
        (np.asarray(points, float).reshape(-1, 2) + 0.5) * factor - 0.5 + offset
    ).astype(int)


def draw_matches(
    fixed: np.ndarray,
    moving: np.ndarray,
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    inliers: np.ndarray,
    long_side: int = 512,
    max_lines: int = 150,
) -> np.ndarray:
    """Both images side by side with lines between matches: green agree with the transform, thin red do not.

    Args:
        fixed_points, moving_points: (N, 2) pixels of each image; inliers: (N,) bool.
        max_lines: at most so many of each kind, evenly picked, so that the picture stays readable.

    Returns:
        (H, W, 3) uint8.
    """
    canvas, offset, factors = _side_by_side(fixed, moving, long_side)
    starts, ends = (
        _to_canvas(fixed_points, factors[0]),
        _to_canvas(moving_points, factors[1], offset),
    )
    for wanted, colour in ((False, OUTLIER_COLOUR), (True, INLIER_COLOUR)):
        chosen = np.flatnonzero(np.asarray(inliers, bool) == wanted)
        layer = canvas.copy()
        for index in chosen[:: max(1, -(-len(chosen) // max_lines))]:
            start, end = tuple(map(int, starts[index])), tuple(map(int, ends[index]))
            cv2.line(layer, start, end, colour, 1, cv2.LINE_AA)
            for end_point in (start, end):
                cv2.circle(layer, end_point, 2, colour, -1, cv2.LINE_AA)
        canvas = cv2.addWeighted(
            layer, 0.75 if wanted else 0.45, canvas, 0.25 if wanted else 0.55, 0
        )
    _caption(canvas, f"{int(np.sum(inliers))} inliers of {len(starts)} matches")
    return canvas


def draw_keypoints(
    fixed: np.ndarray,
    moving: np.ndarray,
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    fixed_heatmap: np.ndarray | None = None,
    moving_heatmap: np.ndarray | None = None,
    long_side: int = 512,
) -> np.ndarray:
    """Detector heatmap (red glow) and keypoints (yellow rings) on both images, side by side: (H, W, 3) uint8."""
    images = []
    for image, heatmap in ((fixed, fixed_heatmap), (moving, moving_heatmap)):
        rgb = as_rgb(image).astype(np.float32) / 255.0
        if heatmap is not None:
            glow = cv2.resize(
                heatmap.astype(np.float32), rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR
            )[..., None]
            rgb = rgb * (1.0 - 0.6 * glow) + 0.9 * glow * np.array([1.0, 0.15, 0.1], np.float32)
        images.append(rgb)
    canvas, offset, factors = _side_by_side(*images, long_side)
    for points, factor, shift in (
        (fixed_points, factors[0], 0.0),
        (moving_points, factors[1], offset),
    ):
        for point in _to_canvas(points, factor, shift):
            cv2.circle(canvas, tuple(map(int, point)), 3, POINT_COLOUR, 1, cv2.LINE_AA)
    _caption(canvas, f"{len(fixed_points)} and {len(moving_points)} keypoints")
    return canvas


def _caption(canvas: np.ndarray, text: str) -> None:
    # On a bar and not outlined: OpenCV 5 spaces letters by their thickness, so two strokes of one text do not coincide.
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    canvas[4 : height + 16, 4 : width + 14] = 20
    cv2.putText(
        canvas,
        text,
        (9, height + 9),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.5,
        (255, 255, 255),
        1,
        cv2.LINE_AA,
    )


def contact_sheet(
    path: str | Path, rows: Sequence[Sequence[np.ndarray]], names: Sequence[str], tile_px: int = 224
) -> None:
    """Write a grid of images with a name above each column."""
    header = np.full((24, tile_px * len(names), 3), 20, dtype=np.uint8)
    for column, name in enumerate(names):
        cv2.putText(
            header,
            name,
            (column * tile_px + 4, 17),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.45,
            (255, 255, 255),
            1,
            cv2.LINE_AA,
        )
    tiles = [np.hstack([_tile(image, tile_px) for image in row]) for row in rows]
    write_image(path, np.vstack([header, *tiles]))


def _tile(image: np.ndarray, tile_px: int) -> np.ndarray:
    size = fit_within(image.shape[:2], tile_px - 4)
    tile = np.full((tile_px, tile_px, 3), 20, dtype=np.uint8)
    tile[2 : 2 + size[0], 2 : 2 + size[1]] = cv2.resize(
        as_rgb(image), size[::-1], interpolation=cv2.INTER_AREA
    )
    return tile


def encoded_figure(figure: Figure, kind: str) -> bytes:
    """A figure as the content of a file of a kind ("png", "pdf", ...)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def plot_registration(
    fixed: np.ndarray,
    moving: np.ndarray,
    registered: np.ndarray | None,
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    inliers: np.ndarray,
    title: str,
) -> Figure:
    """Fixed, registered (or moving, when failed), checkerboard and matches as one matplotlib figure, which notebooks show."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.subplot_mosaic(
        [["fixed", "second", "board"], ["matches"] * 3], height_ratios=[1, 1.2]
    )
    pictures = {
        "fixed": ("fixed", as_rgb(fixed)),
        "second": ("moving, not registered", as_rgb(moving)),
        "matches": (
            f"{int(np.sum(inliers))} of {len(inliers)} matches agree",
            draw_matches(fixed, moving, fixed_points, moving_points, inliers),
        ),
    }
    if registered is not None:
        pictures |= {
            "second": ("moving, registered", as_rgb(registered)),
            "board": ("checkerboard", checkerboard(fixed, registered)),
        }
    for name, axis in grid.items():
        axis.set_axis_off()
        if name in pictures:
            axis.set_title(pictures[name][0], fontsize=10)
            axis.imshow(pictures[name][1])
    return figure
