"""Move a clicked point onto the vessels: to a junction, or to where both ridge maps agree.

A junction is where several ridges meet, so the smoothed ridge map has a maximum there. With a
transform, the second point is found as the displacement at which the ridge map of its image fits
that of the other image around the first point best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from geometry.field_of_view import erode_field
from geometry.matrices import compose, translation_matrix
from geometry.points import warp_points
from geometry.transforms import Transform
from registration.ridges import RIDGES, ridge_strength
from registration.working_frame import to_working_frame
from review_page.rendering import Pyramid


@dataclass(frozen=True)
class SnapConstants:
    """Constants of the search, in working pixels; chosen by hand."""

    working_px: int = 512  # diameter of the field of view, as in the registration
    junction_reach_px: int = 7  # from a click to its junction
    junction_sigma_px: float = 2.0  # smoothing that makes junctions higher than their branches
    min_strength: float = 0.25  # smoothed ridge strength of a vessel; background is below
    search_px: int = 14  # from the expected place to the found one
    coarse_radius_px: int = 34  # half the side of the patch that is compared first
    coarse_sigma_px: float = 1.5  # smoothing of both maps then; widens the peak
    fine_radius_px: int = 26  # half the side of the patch that gives the sub-pixel place
    fine_search_px: int = 4  # around the place that was found first
    min_correlation: float = 0.35  # of both, of an accepted place
    prior_sigma_px: float = 18.0  # farther places need a higher correlation


SNAP = SnapConstants()
MIN_DEVIATION = 1e-3  # of a ridge map, below which it counts as constant


class RidgeImage(NamedTuple):
    """The ridge map of an image.

    Attributes:
        strength: (h, w) float32, 0 outside of the field of view.
        H_image_to_working: (3, 3), pixels of the image to pixels of the map.
    """

    strength: np.ndarray
    H_image_to_working: np.ndarray

    def to_working(self, points: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of the map from pixels (N, 2) of the image, (x, y)."""
        return warp_points(np.asarray(points, float).reshape(-1, 2), self.H_image_to_working)

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of the image from pixels (N, 2) of the map, (x, y)."""
        H = np.linalg.inv(self.H_image_to_working)
        return warp_points(np.asarray(points, float).reshape(-1, 2), H)


class Snapped(NamedTuple):
    """A place that was looked for.

    Attributes:
        point: (2,) pixels (x, y); the given or expected place where nothing was found.
        found: whether vessels decided it.
    """

    point: np.ndarray
    found: bool


def ridge_image(pyramid: Pyramid) -> RidgeImage:
    """Compute the ridge map of an image, from a level that is large enough.

    Args:
        pyramid: of the image.
    """
    large = 2 * SNAP.working_px
    levels = [index for index, each in enumerate(pyramid.levels) if max(each.shape[:2]) >= large]
    level = levels[-1] if levels else 0
    green = pyramid.levels[level][..., 1].astype(np.float32) / 255.0
    working = to_working_frame(green, SNAP.working_px)
    field = erode_field(working.field_of_view, RIDGES.field_margin_px)
    return RidgeImage(
        ridge_strength(working.image) * field,
        compose(pyramid.H_image_to_level(level), working.frame.H_image_to_working),
    )


def snap_to_junction(ridges: RidgeImage, point: np.ndarray) -> Snapped:
    """The junction next to a point.

    Args:
        ridges: of the image.
        point: (2,) pixels (x, y) of the image.
    """
    reach = SNAP.junction_reach_px
    margin = reach + 1 + round(3 * SNAP.junction_sigma_px)
    (place,) = ridges.to_working(point)
    window = _window(ridges.strength, place, margin)
    smooth = cv2.GaussianBlur(window, (0, 0), SNAP.junction_sigma_px)
    inner = smooth[margin - reach : margin + reach + 1, margin - reach : margin + reach + 1]
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inner = np.where(np.hypot(x, y) <= reach, inner, 0.0)
    offset, height = _peak(inner)
    if offset is None or height < SNAP.min_strength:
        return Snapped(np.asarray(point, float), False)
    return Snapped(ridges.to_image(place + offset)[0], True)


def locate_partner(
    source: RidgeImage, target: RidgeImage, transform: Transform, point: np.ndarray
) -> Snapped:
    """The place in the other image that shows what surrounds a point.

    Convention: ``transform`` takes pixels of the source image to pixels of the target image.

    Args:
        source, target: ridge maps of both images.
        transform: that is right up to a few pixels.
        point: (2,) pixels (x, y) of the source image.
    """
    point = np.asarray(point, float)
    expected = transform.map(point.reshape(1, 2))[0]
    search = SNAP.search_px
    y, x = np.mgrid[-search : search + 1, -search : search + 1]
    prior = np.exp(-0.5 * (x**2 + y**2) / SNAP.prior_sigma_px**2)
    smooth_source, smooth_target = (
        each._replace(strength=cv2.GaussianBlur(each.strength, (0, 0), SNAP.coarse_sigma_px))
        for each in (source, target)
    )
    surface = _correlate(
        smooth_source, smooth_target, transform, point, SNAP.coarse_radius_px, search
    )
    coarse = _place_of_peak(source, transform, point, surface * prior)
    if coarse is None:
        return Snapped(expected, False)
    # Once more around this place, with the maps as they are.
    moved = transform.rescaled(np.eye(3), translation_matrix(coarse - expected))
    surface = _correlate(source, target, moved, point, SNAP.fine_radius_px, SNAP.fine_search_px)
    fine = _place_of_peak(source, moved, point, surface)
    return Snapped(expected, False) if fine is None else Snapped(fine, True)


def _correlate(
    source: RidgeImage,
    target: RidgeImage,
    transform: Transform,
    point: np.ndarray,
    radius: int,
    search: int,
) -> np.ndarray:
    """Normalised correlation of the patch around a point with displaced ones of the target.

    Args:
        source, target: ridge maps of both images.
        transform: pixels of the source image to pixels of the target image.
        point: (2,) pixels (x, y) of the source image.
        radius: half the side of the patch, working pixels.
        search: largest displacement, working pixels.

    Returns:
        (2 search + 1, 2 search + 1); 0 where a map is constant.
    """
    local = transform.rescaled(np.linalg.inv(source.H_image_to_working), target.H_image_to_working)
    (place,) = source.to_working(point)
    side = 2 * (radius + search) + 1
    y, x = np.mgrid[:side, :side] - (radius + search)
    mapped = local.map(place + np.stack([x, y], axis=-1).reshape(-1, 2))
    mapped = np.nan_to_num(mapped, nan=-1e4).astype(np.float32)
    columns, rows = (np.ascontiguousarray(mapped[:, axis]).reshape(side, side) for axis in (0, 1))
    seen = cv2.remap(target.strength, columns, rows, cv2.INTER_LINEAR)
    patch = _window(source.strength, place, radius)
    if patch.std() < MIN_DEVIATION or seen.std() < MIN_DEVIATION:
        return np.zeros((2 * search + 1, 2 * search + 1), np.float32)
    return cv2.matchTemplate(seen, patch, cv2.TM_CCOEFF_NORMED)


def _place_of_peak(
    source: RidgeImage, transform: Transform, point: np.ndarray, surface: np.ndarray
) -> np.ndarray | None:
    """The place (2,) in the target image of the peak of a correlation; None without one."""
    offset, height = _peak(surface)
    if offset is None or height < SNAP.min_correlation:
        return None
    return transform.map(source.to_image(source.to_working(point)[0] + offset))[0]


def _window(image: np.ndarray, centre: np.ndarray, radius: int) -> np.ndarray:
    """A square around a sub-pixel centre, (2 radius + 1) a side; 0 outside of the image."""
    side = 2 * radius + 1
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    columns, rows = x + np.float32(centre[0]), y + np.float32(centre[1])
    return cv2.remap(image, columns, rows, cv2.INTER_LINEAR).reshape(side, side)


def _peak(surface: np.ndarray) -> tuple[np.ndarray | None, float]:
    """Sub-pixel maximum, from the centre of a square of odd side; None at its border."""
    half = surface.shape[0] // 2
    row, column = np.unravel_index(int(np.argmax(surface)), surface.shape)
    height = float(surface[row, column])
    if not (0 < row < 2 * half and 0 < column < 2 * half):
        return None, height
    shift = []
    for low, high in (
        (surface[row, column - 1], surface[row, column + 1]),
        (surface[row - 1, column], surface[row + 1, column]),
    ):
        curvature = low + high - 2.0 * height
        shift.append(0.5 * (low - high) / curvature if curvature < 0 else 0.0)
    return np.array([column - half + shift[0], row - half + shift[1]]), height
