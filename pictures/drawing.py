"""Pictures of pairs, matches and keypoints, from arrays and points.

Images are (H, W) or (H, W, 3) float in [0, 1]; points are (N, 2) pixels (x, y).
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

INLIER_COLOUR = (60, 220, 90)  # RGB, 0 to 255, as are all colours here
OUTLIER_COLOUR = (235, 70, 60)
KEYPOINT_COLOUR = (255, 210, 40)
BACKGROUND = 20  # grey level behind images and captions
GAP_PX = 8  # between two images side by side
ARROWS_ALONG = 24  # arrows along the long side of a displacement field
ARROW_STEPS = 1.4  # length of the longest arrow, in distances between arrows


def as_rgb(image: np.ndarray) -> np.ndarray:
    """An image as (H, W, 3) uint8.

    Args:
        image: (H, W) or (H, W, 3), float in [0, 1] or bool.
    """
    image = (np.clip(np.asarray(image, dtype=np.float32), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()


def checkerboard(fixed: np.ndarray, registered: np.ndarray, cells: int = 8) -> np.ndarray:
    """Alternating squares of both images; vessels are continuous where the registration is correct.

    Args:
        fixed, registered: (H, W) or (H, W, 3) of the same height and width.
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
    """A displacement field on the fixed image.

    Arrows give the direction, all enlarged by one factor; colours give the length in pixels.

    Args:
        fixed: (H, W) or (H, W, 3).
        displacement: (H, W, 2) pixels (x, y) of the fixed image.
        seen: (H, W) bool, where both images show retina; nothing is drawn elsewhere.
        long_side: of the picture, pixels.
    """
    height, width = fixed.shape[:2]
    size = fit_within((height, width), long_side)
    factor = size[1] / width
    step = max(1, max(height, width) // ARROWS_ALONG)
    ys, xs = np.mgrid[step // 2 : height : step, step // 2 : width : step].reshape(2, -1)
    xs, ys = xs[seen[ys, xs]], ys[seen[ys, xs]]
    u, v = displacement[ys, xs].T
    length = np.hypot(u, v)
    figure = Figure(figsize=((size[1] + 120) / 100, (size[0] + 60) / 100), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.imshow(cv2.resize(as_rgb(fixed), size[::-1], interpolation=cv2.INTER_AREA) // 2)
    axis.set_axis_off()
    largest = max(float(length.max()) if len(length) else 0.0, 1e-9)
    arrows = axis.quiver(
        xs * factor,
        ys * factor,
        u,
        v,
        length,
        angles="xy",
        scale_units="xy",
        scale=largest / (ARROW_STEPS * step * factor),
        cmap="viridis",
        width=0.004,
    )
    figure.colorbar(arrows, ax=axis, label="pixels of the fixed image", shrink=0.8)
    title = f"displacement left after the affine map, at most {largest:.1f} px"
    axis.set_title(title, fontsize=10)
    return figure


def _side_by_side(
    fixed: np.ndarray, moving: np.ndarray, long_side: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Both images on one canvas.

    Returns:
        Canvas (H, W, 3) uint8, offset (2,) of the moving image, scale factor of each image.
    """
    images: list[np.ndarray] = []
    factors: list[float] = []
    for image in (fixed, moving):
        size = fit_within(image.shape[:2], long_side)
        images.append(cv2.resize(as_rgb(image), size[::-1], interpolation=cv2.INTER_AREA))
        factors.append(size[0] / image.shape[0])
    left, right = images
    height, offset = max(left.shape[0], right.shape[0]), left.shape[1] + GAP_PX
    canvas = np.full((height, offset + right.shape[1], 3), BACKGROUND, dtype=np.uint8)
    canvas[: left.shape[0], : left.shape[1]] = left
    canvas[: right.shape[0], offset:] = right
    return canvas, np.array([offset, 0.0]), factors


def _to_canvas(points: np.ndarray, factor: float, offset: np.ndarray | float = 0.0) -> np.ndarray:
    """Canvas pixels (N, 2) int of points (N, 2) of an image that was resized by ``factor``."""
    scaled = (np.asarray(points, float).reshape(-1, 2) + 0.5) * factor - 0.5
    return np.round(scaled + offset).astype(int)


def draw_matches(
    fixed: np.ndarray,
    moving: np.ndarray,
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    inliers: np.ndarray,
    long_side: int = 512,
    max_lines: int = 150,
) -> np.ndarray:
    """Both images side by side, with a line for each match: inliers green, outliers red.

    Args:
        fixed, moving: (H, W) or (H, W, 3); the sizes may differ.
        fixed_points, moving_points: (N, 2) pixels of each image; row i is a match.
        inliers: (N,) bool.
        long_side: of each image in the picture, pixels.
        max_lines: largest number of lines of either kind; evenly spaced matches are drawn.

    Returns:
        (H, W, 3) uint8.
    """
    canvas, offset, factors = _side_by_side(fixed, moving, long_side)
    starts = _to_canvas(fixed_points, factors[0])
    ends = _to_canvas(moving_points, factors[1], offset)
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
    """Detector heatmaps (red) and keypoints (yellow circles) on both images, side by side.

    Args:
        fixed, moving: (H, W) or (H, W, 3); the sizes may differ.
        fixed_points, moving_points: (N, 2), (M, 2) keypoints, pixels of each image.
        fixed_heatmap, moving_heatmap: (h, w) in [0, 1], resized to the images; None without one.
        long_side: of each image in the picture, pixels.

    Returns:
        (H, W, 3) uint8.
    """
    left, right = _with_heatmap(fixed, fixed_heatmap), _with_heatmap(moving, moving_heatmap)
    canvas, offset, factors = _side_by_side(left, right, long_side)
    starts = _to_canvas(fixed_points, factors[0])
    ends = _to_canvas(moving_points, factors[1], offset)
    for point in (*starts, *ends):
        centre = int(point[0]), int(point[1])
        cv2.circle(canvas, centre, 3, KEYPOINT_COLOUR, 1, cv2.LINE_AA)
    _caption(canvas, f"{len(fixed_points)} and {len(moving_points)} keypoints")
    return canvas


def _with_heatmap(image: np.ndarray, heatmap: np.ndarray | None) -> np.ndarray:
    rgb = as_rgb(image).astype(np.float32) / 255.0
    if heatmap is None:
        return rgb
    size = rgb.shape[1::-1]
    resized = cv2.resize(heatmap.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    red = resized[..., None]
    return rgb * (1.0 - 0.6 * red) + 0.9 * red * np.array([1.0, 0.15, 0.1], np.float32)


def _caption(canvas: np.ndarray, text: str) -> None:
    # Text on a bar, not outlined text: OpenCV 5 spaces letters by their thickness, so an outline
    # would not coincide with its letters.
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
    canvas[4 : height + 16, 4 : width + 14] = BACKGROUND
    _put_text(canvas, text, (9, height + 9), 0.5)


def _put_text(canvas: np.ndarray, text: str, origin: tuple[int, int], scale: float) -> None:
    font, white = cv2.FONT_HERSHEY_SIMPLEX, (255, 255, 255)
    cv2.putText(canvas, text, origin, font, scale, white, 1, cv2.LINE_AA)


def contact_sheet(
    path: str | Path, rows: Sequence[Sequence[np.ndarray]], names: Sequence[str], tile_px: int = 224
) -> None:
    """Write a grid of images with a name above each column.

    Args:
        path: of the picture.
        rows: images (H, W) or (H, W, 3), one per column.
        names: of the columns.
        tile_px: side of the square that an image is fitted into, pixels.
    """
    header = np.full((24, tile_px * len(names), 3), BACKGROUND, dtype=np.uint8)
    for column, name in enumerate(names):
        _put_text(header, name, (column * tile_px + 4, 17), 0.45)
    tiles = [np.hstack([_tile(image, tile_px) for image in row]) for row in rows]
    write_image(path, np.vstack([header, *tiles]))


def _tile(image: np.ndarray, tile_px: int) -> np.ndarray:
    size = fit_within(image.shape[:2], tile_px - 4)
    tile = np.full((tile_px, tile_px, 3), BACKGROUND, dtype=np.uint8)
    resized = cv2.resize(as_rgb(image), size[::-1], interpolation=cv2.INTER_AREA)
    tile[2 : 2 + size[0], 2 : 2 + size[1]] = resized
    return tile


def encoded_figure(figure: Figure, kind: str) -> bytes:
    """A figure as the content of an image file.

    Args:
        figure: to encode.
        kind: "png", "pdf" or another format of matplotlib.
    """
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
    """Fixed image, registered image, checkerboard and matches in one figure.

    Args:
        fixed, moving: (H, W) or (H, W, 3); the sizes may differ.
        registered: the moving image in the fixed frame; None for a failed pair, which shows the
            moving image.
        fixed_points, moving_points: (N, 2) pixels of each image; row i is a match.
        inliers: (N,) bool.
        title: of the figure.
    """
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
            f"{int(np.sum(inliers))} of {len(inliers)} matches are inliers",
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
