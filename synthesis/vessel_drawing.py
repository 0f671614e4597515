"""Vessel trees, the eyes that hold them, and their coverage of the pixels of a view."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

STEP_DD = 0.12
SUPERSAMPLING = 4
SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Vessels:
    """One tree (arteries or veins). A parent always has a lower index than its children; the root's parent is itself.

    Attributes:
        nodes: (N, 2) float64, positions in disc diameters.
        parent: (N,) int64.
        width: (N,) float64, calibre of the segment from the parent to the node, in disc diameters.
    """

    nodes: np.ndarray
    parent: np.ndarray
    width: np.ndarray


@dataclass(frozen=True)
class Eye:
    """Anatomy of one eye in the retina frame.

    Attributes:
        artery, vein: the two trees.
        fovea: (2,) position in disc diameters; to the right of the disc (x > 0) in a left eye.
        avascular_radius: radius of the foveal avascular zone in disc diameters.
        disc_axes: (2,) half axes of the disc in disc diameters.
    """

    artery: Vessels
    vein: Vessels
    fovea: np.ndarray
    avascular_radius: float
    disc_axes: np.ndarray


@dataclass(frozen=True)
class View:
    """How a square image looks at the retina.

    Attributes:
        centre: (2,) retina point in the image's middle, disc diameters.
        px_per_dd: magnification.
        size: image side in pixels.
        angle: rotation of the camera in radians.
    """

    centre: np.ndarray
    px_per_dd: float
    size: int
    angle: float

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map retina points (..., 2) in disc diameters to pixels (..., 2), pixel centres at integers."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        rotation = np.array([[cos, -sin], [sin, cos]])
        return (points - self.centre) @ rotation.T * self.px_per_dd + (self.size - 1) / 2.0


def _main_child(parent: np.ndarray, width: np.ndarray | None = None) -> np.ndarray:
    """(N,) the child continuing each node (the widest, or the first grown), or the node itself at an end."""
    child = np.arange(len(parent))
    order = np.arange(len(parent) - 1, 0, -1) if width is None else np.argsort(width, kind="stable")
    order = order[order > 0]
    child[parent[order]] = order  # the last write wins
    return child


def draw_vessels(
    vessels: Vessels,
    view: View,
    scale: float = 1.0,
    least_px: float = 0.0,
    widths_px: tuple[float, float] = (0.0, np.inf),
    full_dd: float = 0.0,
) -> np.ndarray:
    """Rasterise a tree, antialiased.

    Args:
        vessels: the tree.
        view: where the image looks.
        scale: factor on all widths (0.4 draws the core of each vessel).
        least_px: thinner vessels are drawn this wide.
        widths_px: only vessels of true width in [low, high) are drawn.
        full_dd: vessels thinner than this many disc diameters are drawn fainter in proportion; 0 draws all alike.

    Returns:
        (size, size) float32 coverage in [0, 1], times width / ``full_dd`` where that is less than 1.
    """
    side = view.size * SUPERSAMPLING
    width = vessels.width * view.px_per_dd
    start, end = vessels.nodes[vessels.parent], vessels.nodes
    pixels = view.to_pixels(end)
    margin = STEP_DD * view.px_per_dd * 2
    shown = ((pixels > -margin) & (pixels < view.size + margin)).all(axis=1)
    shown &= (width >= widths_px[0]) & (width < widths_px[1])
    shown[0] = False
    curves = view.to_pixels(_hermite(start, end, vessels))[shown]
    # Pixel centres at integers: coordinate x of the image is SUPERSAMPLING * (x + 0.5) - 0.5 of the large canvas.
    curves = (SUPERSAMPLING * (curves + 0.5) - 0.5) * (1 << SUBPIXEL_BITS)
    curves = np.rint(curves).astype(np.int32)
    thick = np.maximum(
        np.rint(np.maximum(width[shown] * scale, least_px) * SUPERSAMPLING), 1
    ).astype(int)
    grey = np.full(len(thick), 8)
    if full_dd > 0:
        grey = np.ceil(np.clip(width[shown] / (full_dd * view.px_per_dd), 0.125, 1) * 8).astype(int)
    canvas = np.zeros((side, side), np.uint8)
    # Thick after thin, so that the brighter trunk covers the beginning of its twigs.
    for value in np.unique(grey * 1000 + thick):
        chosen, level, pen = (
            list(curves[grey * 1000 + thick == value]),
            int(value // 1000),
            int(value % 1000),
        )
        cv2.polylines(canvas, chosen, False, level * 255 // 8, pen, cv2.LINE_8, SUBPIXEL_BITS)
    small = cv2.resize(canvas, (view.size, view.size), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255.0


def _hermite(start: np.ndarray, end: np.ndarray, vessels: Vessels, samples: int = 4) -> np.ndarray:
    """(N, samples + 1, 2) smooth curves from each node's parent to the node."""
    child = _main_child(vessels.parent, vessels.width)
    at_end = 0.5 * (vessels.nodes[child] - start)
    at_end = np.where((child == np.arange(len(child)))[:, None], end - start, at_end)
    side_branch = child[vessels.parent] != np.arange(len(child))
    at_start = np.where(side_branch[:, None], end - start, at_end[vessels.parent])
    t = np.linspace(0, 1, samples + 1)[None, :, None]
    h = (2 * t**3 - 3 * t**2 + 1, t**3 - 2 * t**2 + t, -2 * t**3 + 3 * t**2, t**3 - t**2)
    return (
        h[0] * start[:, None]
        + h[1] * at_start[:, None]
        + h[2] * end[:, None]
        + h[3] * at_end[:, None]
    )
