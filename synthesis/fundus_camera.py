"""A fundus camera looking at a round eye: where points of the retina come to lie in an image, and back.

The retina is a sphere. The camera sees it through the eye's optics as if from the nodal point, some half a radius in front of
the sphere's centre, and images angles: the distance from the middle of the image is a function of the angle to the axis. Two
gazes through one point of entrance are related by a rotation of that point's directions, which no affine and, with angles
imaged evenly, no homography can express; another point of entrance adds a little parallax, because the retina is not equally
far away everywhere.

Convention:
    Retina points are (x, y) in disc diameters as in :mod:`dataset.vascular_tree`: distance and direction along the surface
    from the posterior pole, which lies between the disc, at (0, 0), and the fovea. Pixels as in :mod:`geometry`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

RETINA_RADIUS_DD = 7.6  # 11.4 mm, at 1.5 mm a disc diameter
NODAL_POINT = 0.48  # radii in front of the centre of the sphere: 17 mm before the retina
FARTHEST_RAD = 1.9  # points farther round the eye than this lie behind the iris


@dataclass(frozen=True)
class FundusCamera:
    """One gaze. Takes the place of :class:`dataset.vascular_tree.View` where scenes are drawn.

    Attributes:
        pole: (2,) retina point at the posterior pole, disc diameters.
        axes: (3, 3) right, down and forward of the camera, as rows, in the eye's frame (z towards the pole).
        entrance: (3,) the point that all rays go through, in radii of the retina.
        px_per_rad: pixels per radian at the middle of the image.
        bend: of the projection r = f tan(bend * angle) / bend: 0 images angles evenly, 1 is a pinhole.
        size: image side in pixels.
        swellings: (K, 5) x, y, dx, dy, reach: the tissue around a retina point is displaced by (dx, dy), falling off as a
            Gaussian of this reach; all in disc diameters.
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
        """Map retina points (..., 2) to pixels (..., 2)."""
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
        """Map pixels (..., 2) to retina points (..., 2).

        Raises:
            ValueError: of a camera with swellings, which has no closed inverse and needs none: it is the moving one.
        """
        if len(self.swellings):
            raise ValueError("only a camera without swellings maps back to the retina")
        aside = (np.asarray(pixels, dtype=float) - (self.size - 1) / 2.0) / self.px_per_rad
        radius = np.linalg.norm(aside, axis=-1)
        angle = np.arctan(self.bend * radius) / self.bend if self.bend else radius
        sideways = aside * (np.sin(angle) / np.maximum(radius, 1e-12))[..., None]
        rays = np.concatenate([sideways, np.cos(angle)[..., None]], axis=-1) @ self.axes
        # Where the ray leaves the unit sphere: |entrance + t * ray| = 1.
        along = rays @ self.entrance
        reach = -along + np.sqrt(np.maximum(along**2 + 1.0 - self.entrance @ self.entrance, 0.0))
        return _from_sphere(self.entrance + reach[..., None] * rays) + self.pole


def _imaged(angle: np.ndarray, bend: float) -> np.ndarray:
    """Distance from the middle of the image for an angle to the axis, in focal lengths."""
    if not bend:
        return angle
    # Beyond any image; the tangent would come back from the other side.
    return np.tan(np.minimum(bend * angle, 1.45)) / bend


def _onto_sphere(points: np.ndarray) -> np.ndarray:
    """Points (..., 2) about the pole, disc diameters, to the unit sphere (..., 3)."""
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
    """A camera that has a retina point in the middle of its image.

    Args:
        pole, centre: (2,) retina points: the posterior pole, and what the camera looks at.
        roll_rad: the camera turned about its axis, counted as :func:`geometry.matrices.affine_about` does.
        shift: (2,) of the point of entrance across the eye's axis, in radii of the retina.
        field_dd: width of the image on the retina in its middle, disc diameters.
        bend, size, swellings: see :class:`FundusCamera`; none by default.
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
        np.asarray(pole, dtype=float),
        axes,
        entrance,
        size * distance_dd / field_dd,
        bend,
        size,
        np.zeros((0, 5)) if swellings is None else np.asarray(swellings, dtype=float),
    )
