"""Local matches: patches of the fixed ridge map, located in the moving one near a transform.

Convention:
    All points and displacements are working pixels (x, y) of the fixed image. A patch at p of the
    fixed image that is found at p + d of the moving image registered by T means that the correct
    transform takes p to T(p + d).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from geometry.rasters import register_onto_fixed
from geometry.transforms import Transform
from registration.ridges import RidgePair


@dataclass(frozen=True)
class PatchConstants:
    """Constants of the search for patches; chosen by hand."""

    radius_px: int = 14  # half the side of a patch, working pixels
    cell_px: int = 11  # side of the cells of the fixed image with at most one patch each
    min_matches: int = 30  # least number of local matches for a fit
    min_correlation: float = 0.3  # normalised correlation of an accepted match
    min_seen: float = 0.99  # interpolated field of view above which a pixel counts as inside
    min_overlap: float = 0.9  # share of a patch inside both fields of view
    strength_percentile: float = 75.0  # of the positive ridge strength that a patch must exceed
    min_curvature: float = 1e-4  # of the correlation peak in its sharpest direction, per px^2
    min_curvature_ratio: float = 0.02  # along a straight vessel, relative to across it
    max_offset_px: float = 0.7  # largest sub-pixel offset in x and in y


PATCHES = PatchConstants()


class LocalMatches(NamedTuple):
    """Patches located under a transform.

    Attributes:
        points: (N, 2) float64, fixed working pixels (x, y).
        displacements: (N, 2) float64, fixed working pixels, see the module's convention.
        information: (N, 2, 2) float64, inverse covariance of the displacements up to a common
            factor, on average the identity. It is small along a straight vessel.
    """

    points: np.ndarray
    displacements: np.ndarray
    information: np.ndarray


def find_local_matches(ridges: RidgePair, transform: Transform, search_px: int) -> LocalMatches:
    """Locate patches of the fixed ridge map in the moving one, near a transform.

    Args:
        ridges: of both working images.
        transform: between working pixels.
        search_px: largest displacement in x and in y, fixed pixels.
    """
    fixed, moving = ridges.maps
    rasters = np.stack([moving, ridges.fields[1].astype(np.float32)], axis=-1)
    warped, seen = np.moveaxis(register_onto_fixed(rasters, transform, ridges.fixed_size), -1, 0)
    overlap = ((seen > PATCHES.min_seen) & ridges.fields[0]).astype(np.float32)
    reach = PATCHES.radius_px + search_px
    side = 2 * PATCHES.radius_px + 1
    share = cv2.boxFilter(overlap, -1, (side, side), borderType=cv2.BORDER_CONSTANT)
    points = strongest_in_cells(np.where(share > PATCHES.min_overlap, fixed, 0.0), reach)
    if not len(points):
        return LocalMatches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2, 2)))
    surfaces = np.stack(
        [
            cv2.matchTemplate(
                _window(warped, x, y, reach),
                _window(fixed, x, y, PATCHES.radius_px),
                cv2.TM_CCOEFF_NORMED,
            )
            for x, y in points
        ]
    )
    kept, displacements, information = find_peaks(surfaces)
    return LocalMatches(points[kept].astype(float), displacements, information)


def _window(image: np.ndarray, x: int, y: int, radius: int) -> np.ndarray:
    return image[y - radius : y + radius + 1, x - radius : x + radius + 1]


def strongest_in_cells(strength: np.ndarray, margin_px: int) -> np.ndarray:
    """Strongest pixel of each cell of a ridge map.

    Args:
        strength: (H, W) float, ridge strength.
        margin_px: width of the border without points, pixels.

    Returns:
        (N, 2) int, pixels (x, y), of the cells with strength above the percentile.
    """
    strength = strength.copy()
    inner = np.zeros_like(strength)
    inner[margin_px : -margin_px or None, margin_px : -margin_px or None] = 1.0
    strength *= inner
    positive = strength[strength > 0]
    if not positive.size:
        return np.zeros((0, 2), int)
    weakest = np.percentile(positive, PATCHES.strength_percentile)
    cell_px = PATCHES.cell_px
    points = []
    for top in range(0, strength.shape[0], cell_px):
        for left in range(0, strength.shape[1], cell_px):
            cell = strength[top : top + cell_px, left : left + cell_px]
            y, x = np.unravel_index(int(cell.argmax()), cell.shape)
            if cell[y, x] > weakest:
                points.append((left + x, top + y))
    return np.array(points, int).reshape(-1, 2)


def find_peaks(surfaces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sub-pixel maximum of each correlation surface, by a parabola through its neighbours.

    Args:
        surfaces: (N, S, S) normalised correlations, S odd; zero displacement in the centre.

    Returns:
        Indices (K,) int of the surfaces with a distinct peak inside the border, the displacements
        (K, 2) of the peaks in pixels (x, y), and their information (K, 2, 2), the curvature times
        the squared height, scaled to the identity on average.
    """
    side = surfaces.shape[1]
    flat = surfaces.reshape(len(surfaces), -1)
    rows, columns = np.unravel_index(np.argmax(np.nan_to_num(flat, nan=-1.0), axis=1), (side, side))
    usable = (
        (rows > 0)
        & (rows < side - 1)
        & (columns > 0)
        & (columns < side - 1)
        & np.isfinite(flat).all(axis=1)
    )
    kept = np.flatnonzero(usable & (flat.max(axis=1) >= PATCHES.min_correlation))
    rows, columns = rows[kept], columns[kept]
    peak, gradient, curvature = _derivatives(surfaces, kept, rows, columns)
    values, vectors = np.linalg.eigh(curvature)
    sharp = values[:, 1] > PATCHES.min_curvature
    kept, rows, columns, peak, gradient = (
        each[sharp] for each in (kept, rows, columns, peak, gradient)
    )
    values, vectors = values[sharp], vectors[sharp]
    # Along a straight vessel the curvature is near zero; a lower bound keeps the offset finite.
    values = np.maximum(values, PATCHES.min_curvature_ratio * values[:, 1:])
    offset = np.einsum("nij,nj->ni", vectors, np.einsum("nij,ni->nj", vectors, gradient) / values)
    information = np.einsum("nij,nj,nkj->nik", vectors, values * peak[:, None] ** 2, vectors)
    if len(kept):
        information /= max(float(np.trace(information, axis1=1, axis2=2).mean()) / 2, 1e-9)
    bounded = np.clip(offset, -PATCHES.max_offset_px, PATCHES.max_offset_px)
    displacements = np.stack([columns, rows], axis=1) - (side - 1) / 2 + bounded
    return kept, displacements, information


def _derivatives(
    surfaces: np.ndarray, kept: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height (K,), gradient (K, 2) and negative Hessian (K, 2, 2) at the peaks, (x, y) order.

    By central differences, per pixel and per pixel squared, of surfaces (N, S, S) with indices,
    rows and columns (K,) int of the peaks.
    """

    def at(down: int, right: int) -> np.ndarray:
        return surfaces[kept, rows + down, columns + right].astype(float)

    peak = at(0, 0)
    gradient = 0.5 * np.stack([at(0, 1) - at(0, -1), at(1, 0) - at(-1, 0)], axis=1)
    mixed = 0.25 * (at(-1, 1) + at(1, -1) - at(1, 1) - at(-1, -1))
    curvature = np.stack(
        [2 * peak - at(0, 1) - at(0, -1), mixed, mixed, 2 * peak - at(1, 0) - at(-1, 0)], axis=1
    )
    return peak, gradient, curvature.reshape(-1, 2, 2)


def relative_to(base: Transform, transform: Transform, matches: LocalMatches) -> LocalMatches:
    """Matches found under one transform, as displacements relative to another one.

    Args:
        base: transform that the returned displacements are relative to.
        transform: transform under which the matches were found.
        matches: the matches; those without a position under ``base`` are left out.
    """
    targets = transform.map(matches.points + matches.displacements)
    displacements = base.map_back(targets) - matches.points
    known = np.isfinite(displacements).all(axis=1)
    return LocalMatches(matches.points[known], displacements[known], matches.information[known])
