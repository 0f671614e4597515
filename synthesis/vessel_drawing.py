"""Vessel trees, the anatomy of an eye, camera views, and the rasterisation of trees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

STEP_DD = 0.12  # distance of a node from its parent, disc diameters
SUPERSAMPLING = 4  # canvas pixels a pixel and direction
SUBPIXEL_BITS = 4  # fractional bits of the coordinates given to OpenCV
GREY_LEVELS = 8  # levels of faintness of thin vessels


@dataclass(frozen=True)
class Vessels:
    """One tree (arteries or veins).

    Attributes:
        nodes: (N, 2) float64, retina points (x, y), disc diameters.
        parent: (N,) int64, index of each node's parent: lower than its own, the root's is itself.
        width: (N,) float64, calibre of the segment from the parent to the node, disc diameters.
    """

    nodes: np.ndarray
    parent: np.ndarray
    width: np.ndarray


@dataclass(frozen=True)
class Eye:
    """Anatomy of one eye in the retina frame.

    Attributes:
        artery, vein: the two trees.
        fovea: (2,) retina point, disc diameters; right of the disc (x > 0) in a left eye.
        avascular_radius: radius of the foveal avascular zone, disc diameters.
        disc_axes: (2,) half axes (x, y) of the disc, disc diameters.
    """

    artery: Vessels
    vein: Vessels
    fovea: np.ndarray
    avascular_radius: float
    disc_axes: np.ndarray


class Projection(Protocol):
    """A mapping of the retina into a square image: :class:`View` or ``FundusCamera``."""

    @property
    def size(self) -> int:
        """Side of the image, pixels."""

    @property
    def px_per_dd(self) -> float:
        """Magnification in the middle of the image, pixels per disc diameter."""

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map retina points (..., 2) in disc diameters to pixels (x, y), (..., 2)."""


@dataclass(frozen=True)
class View:
    """A similarity from the retina, taken as a plane, to a square image.

    Attributes:
        centre: (2,) retina point in the middle of the image, disc diameters.
        px_per_dd: magnification, pixels per disc diameter.
        size: side of the image, pixels.
        angle: rotation of the retina in the image, radians, from the x axis towards the y axis.
    """

    centre: np.ndarray
    px_per_dd: float
    size: int
    angle: float

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map retina points (..., 2) in disc diameters to pixels (x, y), (..., 2).

        Convention: pixel centres are at integers.
        """
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        rotation = np.array([[cos, -sin], [sin, cos]])
        return (points - self.centre) @ rotation.T * self.px_per_dd + (self.size - 1) / 2.0


def main_child(parent: np.ndarray, width: np.ndarray | None = None) -> np.ndarray:
    """Find the child that continues each vessel past a branching.

    Args:
        parent: (N,) int, as in :class:`Vessels`.
        width: (N,) calibres, to choose the widest child; None chooses the child of lowest index.

    Returns:
        (N,) int, index of the child; of the node itself where it has none.
    """
    child = np.arange(len(parent))
    order = np.arange(len(parent) - 1, 0, -1) if width is None else np.argsort(width, kind="stable")
    order = order[order > 0]
    child[parent[order]] = order  # of repeated parents NumPy keeps the last
    return child


def draw_vessels(
    vessels: Vessels,
    view: Projection,
    scale: float = 1.0,
    least_px: float = 0.0,
    widths_px: tuple[float, float] = (0.0, np.inf),
    full_dd: float = 0.0,
) -> np.ndarray:
    """Rasterise a tree with antialiasing.

    Args:
        vessels: the tree.
        view: projection of the retina into the image.
        scale: factor on all widths (0.35 draws the core of each vessel).
        least_px: thinner vessels are drawn this wide, pixels.
        widths_px: only vessels of true width in [low, high) are drawn, pixels.
        full_dd: vessels thinner than this are drawn fainter in proportion to their width, disc
            diameters; 0 draws all at full brightness.

    Returns:
        (size, size) float32 coverage in [0, 1], times width / ``full_dd`` where that is below 1.
    """
    side = view.size * SUPERSAMPLING
    width = vessels.width * view.px_per_dd
    pixels = view.to_pixels(vessels.nodes)
    margin = STEP_DD * view.px_per_dd * 2
    shown = ((pixels > -margin) & (pixels < view.size + margin)).all(axis=1)
    shown &= (width >= widths_px[0]) & (width < widths_px[1])
    shown[0] = False
    curves = view.to_pixels(_hermite(vessels))[shown]
    # Pixel centres are at integers, so image coordinate x is SUPERSAMPLING * (x + 0.5) - 0.5 on the
    # canvas.
    curves = (SUPERSAMPLING * (curves + 0.5) - 0.5) * (1 << SUBPIXEL_BITS)
    curves = np.rint(curves).astype(np.int32)
    thick = np.maximum(
        np.rint(np.maximum(width[shown] * scale, least_px) * SUPERSAMPLING), 1
    ).astype(int)
    grey = np.full(len(thick), GREY_LEVELS)
    if full_dd > 0:
        share = np.clip(width[shown] / (full_dd * view.px_per_dd), 1 / GREY_LEVELS, 1)
        grey = np.ceil(share * GREY_LEVELS).astype(int)
    canvas = np.zeros((side, side), np.uint8)
    # Faint and thin first, so that a bright trunk covers the first pixels of its branches.
    for value in np.unique(grey * 1000 + thick):
        chosen = list(curves[grey * 1000 + thick == value])
        brightness = int(value // 1000) * 255 // GREY_LEVELS
        pen = int(value % 1000)
        cv2.polylines(canvas, chosen, False, brightness, pen, cv2.LINE_8, SUBPIXEL_BITS)
    small = cv2.resize(canvas, (view.size, view.size), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255.0


def _hermite(vessels: Vessels, samples: int = 4) -> np.ndarray:
    """Cubic Hermite curves from each node's parent to the node, (N, samples + 1, 2)."""
    start, end = vessels.nodes[vessels.parent], vessels.nodes
    child = main_child(vessels.parent, vessels.width)
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
