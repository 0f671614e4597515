"""Model of a fundus camera and a spherical retina: maps retina points to pixels and back.

All rays pass one point of entrance near the nodal point of the eye, about half a radius in front of
the centre of the sphere. The distance of a pixel from the middle of the image is a function of the
angle between its ray and the camera axis. Two views through one point of entrance are related by a
rotation of the rays, which no affine can express, nor, unless the projection is a pinhole's, any
homography. A shifted point of entrance adds parallax, because the distance to the retina varies.

Convention:
    Retina points are (x, y) in disc diameters as in :mod:`synthesis.vessel_growth`: geodesic
    distance and direction from the posterior pole, which lies between the disc, at (0, 0), and the
    fovea. Pixels are (x, y) as in :mod:`geometry`, pixel centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

RETINA_RADIUS_DD = 7.6  # 11.4 mm, at 1.5 mm a disc diameter
NODAL_POINT = 0.48  # radii in front of the centre of the sphere: 17 mm in front of the retina
FARTHEST_RAD = 1.9  # largest angle from the pole at the centre of the sphere; beyond is the iris
MAX_BENT_RAD = 1.45  # largest argument of the tangent, whose sign changes at pi / 2


@dataclass(frozen=True)
class FundusCamera:
    """One camera pose; a :class:`synthesis.vessel_drawing.Projection`.

    Attributes:
        pole: (2,) retina point at the posterior pole, disc diameters.
        axes: (3, 3) rows: unit vectors right, down and forward of the camera, in the frame of the
            eye (z towards the pole).
        entrance: (3,) point that all rays pass, in the frame of the eye, radii of the retina.
        px_per_rad: focal length, pixels per radian in the middle of the image.
        bend: of the projection r = f tan(bend * angle) / bend; 0 is equidistant (r = f * angle), 1
            is a pinhole.
        size: side of the image, pixels.
        swellings: (K, 5) x, y, dx, dy, reach: tissue around the retina point (x, y) is displaced by
            (dx, dy) times a Gaussian of standard deviation ``reach``; all in disc diameters.
    """

    pole: np.ndarray
    axes: np.ndarray
    entrance: np.ndarray
    px_per_rad: float
    bend: float
    size: int
    swellings: np.ndarray

    @property
    def px_per_dd(self) -> float:
        """Magnification in the middle of the image, pixels per disc diameter."""
        middle = np.full(2, (self.size - 1) / 2.0)
        optics = replace(self, swellings=np.zeros((0, 5)))
        ends = optics.to_retina(middle + np.array([[-1.0, 0.0], [1.0, 0.0]]))
        return float(2.0 / np.linalg.norm(ends[1] - ends[0]))

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map retina points (..., 2) in disc diameters to pixels (x, y), (..., 2)."""
        points = np.asarray(points, dtype=float)
        for x, y, dx, dy, reach in self.swellings:
            falloff = np.exp(
                -0.5 * ((points[..., 0] - x) ** 2 + (points[..., 1] - y) ** 2) / reach**2
            )
            points = points + falloff[..., None] * np.array([dx, dy])
        rays = (_onto_sphere(points - self.pole) - self.entrance) @ self.axes.T
        aside = np.linalg.norm(rays[..., :2], axis=-1)
        angle = np.arctan2(aside, rays[..., 2])
        radius = self.px_per_rad * _imaged(angle, self.bend)
        return (
            rays[..., :2] * (radius / np.maximum(aside, 1e-12))[..., None] + (self.size - 1) / 2.0
        )

    def to_retina(self, pixels: np.ndarray) -> np.ndarray:
        """Map pixels (x, y), (..., 2), to retina points (..., 2) in disc diameters.

        Raises:
            ValueError: the camera has swellings, whose displacement has no closed inverse.
        """
        if len(self.swellings):
            raise ValueError("only a camera without swellings maps back to the retina")
        aside = (np.asarray(pixels, dtype=float) - (self.size - 1) / 2.0) / self.px_per_rad
        radius = np.linalg.norm(aside, axis=-1)
        angle = np.arctan(self.bend * radius) / self.bend if self.bend else radius
        sideways = aside * (np.sin(angle) / np.maximum(radius, 1e-12))[..., None]
        rays = np.concatenate([sideways, np.cos(angle)[..., None]], axis=-1) @ self.axes
        # Intersection of the ray with the unit sphere: |entrance + t * ray| = 1.
        along = rays @ self.entrance
        reach = -along + np.sqrt(np.maximum(along**2 + 1.0 - self.entrance @ self.entrance, 0.0))
        return _from_sphere(self.entrance + reach[..., None] * rays) + self.pole


def _imaged(angle: np.ndarray, bend: float) -> np.ndarray:
    """Distance from the middle of the image, focal lengths, for an angle (...) to the axis."""
    if not bend:
        return angle
    return np.tan(np.minimum(bend * angle, MAX_BENT_RAD)) / bend


def _onto_sphere(points: np.ndarray) -> np.ndarray:
    """Retina points relative to the pole (..., 2), disc diameters, to the unit sphere (..., 3)."""
    distance = np.linalg.norm(points, axis=-1)
    angle = np.minimum(distance / RETINA_RADIUS_DD, FARTHEST_RAD)
    sideways = points * (np.sin(angle) / np.maximum(distance, 1e-12))[..., None]
    return np.concatenate([sideways, np.cos(angle)[..., None]], axis=-1)


def _from_sphere(places: np.ndarray) -> np.ndarray:
    """Inverse of :func:`_onto_sphere`."""
    aside = np.linalg.norm(places[..., :2], axis=-1)
    angle = np.arctan2(aside, places[..., 2])
    return places[..., :2] * (RETINA_RADIUS_DD * angle / np.maximum(aside, 1e-12))[..., None]


def aim(
    pole: np.ndarray,
    centre: np.ndarray,
    roll_rad: float,
    shift: np.ndarray,
    field_dd: float,
    bend: float,
    size: int,
    swellings: np.ndarray | None = None,
) -> FundusCamera:
    """Construct a camera with a given retina point in the middle of its image.

    Args:
        pole: (2,) retina point of the posterior pole, disc diameters.
        centre: (2,) retina point in the middle of the image, disc diameters.
        roll_rad: rotation of the image about its middle, radians; sign as in
            :func:`geometry.matrices.affine_about`.
        shift: (2,) offset of the point of entrance from the axis of the eye, radii of the retina.
        field_dd: width of the image in disc diameters, at the magnification of its middle.
        bend, size: see :class:`FundusCamera`.
        swellings: see :class:`FundusCamera`; None for none.
    """
    entrance = np.array([shift[0], shift[1], -NODAL_POINT])
    place = _onto_sphere(np.asarray(centre, dtype=float) - pole)
    forward = place - entrance
    distance_dd = float(np.linalg.norm(forward)) * RETINA_RADIUS_DD
    forward /= np.linalg.norm(forward)
    right = np.array([1.0, 0.0, 0.0]) - forward[0] * forward
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cosine, sine = np.cos(roll_rad), np.sin(roll_rad)
    axes = np.stack([cosine * right - sine * down, sine * right + cosine * down, forward])
    return FundusCamera(
        pole=np.asarray(pole, dtype=float),
        axes=axes,
        entrance=entrance,
        px_per_rad=size * distance_dd / field_dd,
        bend=bend,
        size=size,
        swellings=np.zeros((0, 5)) if swellings is None else np.asarray(swellings, dtype=float),
    )
