"""Small patches of the fixed ridge map, found again in the moving one near where a transform puts them.

All points and displacements are in working pixels of the fixed image: a patch that the fixed image shows at p and the moving
image, registered by T, at p + d says that the transform should be T(p + d) at p.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from geometry.rasters import register_onto_fixed
from geometry.transforms import Transform
from registration.ridges import RidgePair

PATCH_RADIUS_PX = 14
CELL_PX = 11  # at most one patch in each cell of the fixed image
LEAST_CORRELATION = 0.3


class LocalMatches(NamedTuple):
    """Patches found again under a transform.

    Attributes:
        points: (N, 2) fixed pixels.
        displacements: (N, 2) fixed pixels, see the module's text.
        information: (N, 2, 2) how surely each is known in which direction, on average the identity: along a straight vessel a
            patch says little.
    """

    points: np.ndarray
    displacements: np.ndarray
    information: np.ndarray


def find_local_matches(ridges: RidgePair, transform: Transform, search_px: int) -> LocalMatches:
    """Look for patches of the fixed ridge map in the moving one, near where the transform puts them.

    Args:
        ridges: of both working images.
        transform: between working pixels.
        search_px: how far off it may be, fixed pixels.
    """
    fixed, moving = ridges.ridges
    rasters = np.stack([moving, ridges.fields[1].astype(np.float32)], axis=-1)
    warped, seen = np.moveaxis(register_onto_fixed(rasters, transform, fixed.shape), -1, 0)
    overlap = ((seen > 0.99) & ridges.fields[0]).astype(np.float32)
    reach = PATCH_RADIUS_PX + search_px
    shown = cv2.boxFilter(
        overlap, -1, (2 * PATCH_RADIUS_PX + 1,) * 2, borderType=cv2.BORDER_CONSTANT
    )
    points = strongest_in_cells(np.where(shown > 0.9, fixed, 0.0), reach)
    if not len(points):
        return LocalMatches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2, 2)))
    surfaces = np.stack(
        [
            cv2.matchTemplate(
                _window(warped, x, y, reach),
                _window(fixed, x, y, PATCH_RADIUS_PX),
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
    """The strongest pixel (x, y) of each cell of a map (H, W), (N, 2) int; cells without ridges and pixels near the border
    give none."""
    strength = strength.copy()
    inner = np.zeros_like(strength)
    inner[margin_px : -margin_px or None, margin_px : -margin_px or None] = 1.0
    strength *= inner
    positive = strength[strength > 0]
    if not positive.size:
        return np.zeros((0, 2), int)
    weakest = np.percentile(positive, 75)
    points = []
    for top in range(0, strength.shape[0], CELL_PX):
        for left in range(0, strength.shape[1], CELL_PX):
            cell = strength[top : top + CELL_PX, left : left + CELL_PX]
            y, x = np.unravel_index(int(cell.argmax()), cell.shape)
            if cell[y, x] > weakest:
                points.append((left + x, top + y))
    return np.array(points, int).reshape(-1, 2)


def find_peaks(surfaces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Highest point of each correlation surface, to parts of a pixel by the parabola through its neighbours.

    Args:
        surfaces: (N, S, S) normalised correlations, S odd; no displacement in the middle.

    Returns:
        Which surfaces have a peak that stands out, inside of the border (K,) int; their displacements (K, 2), (x, y); how sharp
        each peak is in which direction (K, 2, 2), on average the identity.
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
    kept = np.flatnonzero(usable & (flat.max(axis=1) >= LEAST_CORRELATION))
    rows, columns = rows[kept], columns[kept]

    def at(down: int, right: int) -> np.ndarray:
        return surfaces[kept, rows + down, columns + right].astype(float)

    peak = at(0, 0)
    gradient = 0.5 * np.stack([at(0, 1) - at(0, -1), at(1, 0) - at(-1, 0)], axis=1)
    mixed = 0.25 * (at(-1, 1) + at(1, -1) - at(1, 1) - at(-1, -1))
    curvature = np.stack(
        [2 * peak - at(0, 1) - at(0, -1), mixed, mixed, 2 * peak - at(1, 0) - at(-1, 0)], axis=1
    )
    values, vectors = np.linalg.eigh(curvature.reshape(-1, 2, 2))
    sharp = values[:, 1] > 1e-4
    kept, rows, columns, peak, gradient = (
        each[sharp] for each in (kept, rows, columns, peak, gradient)
    )
    values, vectors = values[sharp], vectors[sharp]
    # Along a straight vessel a peak is a ridge: next to nothing is known there, but not nothing.
    values = np.maximum(values, 0.02 * values[:, 1:])
    offset = np.einsum("nij,nj->ni", vectors, np.einsum("nij,ni->nj", vectors, gradient) / values)
    information = np.einsum("nij,nj,nkj->nik", vectors, values * peak[:, None] ** 2, vectors)
    information /= (
        max(float(np.trace(information, axis1=1, axis2=2).mean()) / 2, 1e-9) if len(kept) else 1.0
    )
    middle = (side - 1) / 2
    return (
        kept,
        np.stack([columns, rows], axis=1) - middle + np.clip(offset, -0.7, 0.7),
        information,
    )


def relative_to(base: Transform, transform: Transform, matches: LocalMatches) -> LocalMatches:
    """Matches that were found under a transform, as displacements from another one."""
    targets = transform.map(matches.points + matches.displacements)
    displacements = base.map_back(targets) - matches.points
    known = np.isfinite(displacements).all(axis=1)
    return LocalMatches(matches.points[known], displacements[known], matches.information[known])
