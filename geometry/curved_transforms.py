"""Transforms beyond a matrix: a quadratic map, and a smooth displacement on another transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates

from geometry.points import warp_points
from geometry.transforms import Transform

CURVED_KINDS = ("quadratic", "deformable")
UNIT_PERCENTILE = 98.0  # of the matches inside the unit circle, chosen by hand


def quadratic_terms(units: np.ndarray) -> np.ndarray:
    """The terms 1, u, v, u^2, u v, v^2 inside the unit circle, and their tangents outside.

    The unit circle encloses the matches, except 2 % of them. Outside, a quadratic extrapolation
    would diverge, so each term continues linearly from the nearest point of the circle.

    Args:
        units: (N, 2) normalised coordinates (u, v).

    Returns:
        (N, 6).
    """
    edge = units / np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1.0)
    u, v = edge.T
    beyond_u, beyond_v = (units - edge).T
    return np.stack(
        [
            np.ones_like(u),
            u + beyond_u,
            v + beyond_v,
            u * (u + 2 * beyond_u),
            u * v + v * beyond_u + u * beyond_v,
            v * (v + 2 * beyond_v),
        ],
        axis=1,
    )


def unit_frame(points: np.ndarray) -> np.ndarray:
    """``H_fixed_to_unit`` (3, 3): the covariance ellipse of the points becomes the unit circle.

    Args:
        points: (N, 2), fixed pixels (x, y); the ellipse is scaled to contain 98 %.
    """
    centre = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((points - centre).T) + 1e-6 * np.eye(2))
    whiten = vectors @ np.diag(values**-0.5) @ vectors.T
    radii = np.linalg.norm((points - centre) @ whiten.T, axis=1)
    whiten /= np.percentile(radii, UNIT_PERCENTILE)
    H = np.eye(3)
    H[:2, :2], H[:2, 2] = whiten, -whiten @ centre
    return H


@dataclass(frozen=True)
class QuadraticTransform(Transform):
    """The quadratic retinal model of Can, Stewart et al. (PAMI 2002), twelve parameters.

    With normalised coordinates ``u = N p`` the map is ``C q(u)``, q as in :func:`quadratic_terms`;
    it is linear outside of the region of the matches.

    Attributes:
        H_fixed_to_unit: (3, 3) affine N, from fixed pixels to the frame in which the unit circle
            encloses the matches.
        coefficients: (2, 6) C, moving pixels.
    """

    H_fixed_to_unit: np.ndarray
    coefficients: np.ndarray
    kind = "quadratic"

    def map(self, points: np.ndarray) -> np.ndarray:
        """See :meth:`geometry.transforms.Transform.map`; (N, 2) to (N, 2)."""
        units = warp_points(np.asarray(points, dtype=float).reshape(-1, 2), self.H_fixed_to_unit)
        return quadratic_terms(units) @ self.coefficients.T

    def rescaled(
        self, H_new_to_fixed: np.ndarray, H_moving_to_new: np.ndarray
    ) -> QuadraticTransform:
        """See :meth:`geometry.transforms.Transform.rescaled`; (3, 3) matrices."""
        coefficients = H_moving_to_new[:2, :2] @ self.coefficients
        coefficients[:, 0] += H_moving_to_new[:2, 2]
        return QuadraticTransform(self.H_fixed_to_unit @ H_new_to_fixed, coefficients)

    def approximate_matrix(self) -> np.ndarray:
        """See :meth:`geometry.transforms.Transform.approximate_matrix`."""
        # The mean of u^2 and of v^2 over the unit disc is 1/4, which the constant term takes up.
        tangent = self.coefficients[:, :3].copy()
        tangent[:, 0] += 0.25 * (self.coefficients[:, 3] + self.coefficients[:, 5])
        linear = np.column_stack([tangent[:, 1:], tangent[:, 0]])
        H_unit_to_moving = np.vstack([linear, [0.0, 0.0, 1.0]])
        return H_unit_to_moving @ self.H_fixed_to_unit

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`geometry.transforms.Transform.to_dict`."""
        return {
            "kind": self.kind,
            "H_fixed_to_unit": self.H_fixed_to_unit.tolist(),
            "coefficients": self.coefficients.tolist(),
        }


@dataclass(frozen=True)
class DeformableTransform(Transform):
    """A smooth displacement before another transform: ``T(p) = base(p + d(p))``.

    d is a uniform cubic B-spline on a lattice of control points in the fixed image; it is 0 outside
    the lattice.

    Attributes:
        base: the transform that is refined.
        H_fixed_to_lattice: (3, 3) affine, from fixed pixels to lattice coordinates: (0, 0) is the
            first control point, (1, 0) the one to its right.
        controls: (rows, columns, 2) displacements in fixed pixels; the outer two rings must be 0.
    """

    base: Transform
    H_fixed_to_lattice: np.ndarray
    controls: np.ndarray
    kind = "deformable"

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """The displacement d.

        Args:
            points: (N, 2) fixed pixels, (x, y).

        Returns:
            (N, 2) fixed pixels.
        """
        points = np.asarray(points, dtype=float).reshape(-1, 2)
        rows_columns = warp_points(points, self.H_fixed_to_lattice).T[::-1]
        components = [
            map_coordinates(controls, rows_columns, order=3, mode="nearest", prefilter=False)
            for controls in (self.controls[..., 0], self.controls[..., 1])
        ]
        return np.stack(components, axis=1)

    def map(self, points: np.ndarray) -> np.ndarray:
        """See :meth:`geometry.transforms.Transform.map`; (N, 2) to (N, 2)."""
        points = np.asarray(points, dtype=float).reshape(-1, 2)
        return self.base.map(points + self.displacement(points))

    def rescaled(
        self, H_new_to_fixed: np.ndarray, H_moving_to_new: np.ndarray
    ) -> DeformableTransform:
        """See :meth:`geometry.transforms.Transform.rescaled`; (3, 3) matrices."""
        to_new = np.linalg.inv(H_new_to_fixed[:2, :2])
        return DeformableTransform(
            base=self.base.rescaled(H_new_to_fixed, H_moving_to_new),
            H_fixed_to_lattice=self.H_fixed_to_lattice @ H_new_to_fixed,
            controls=self.controls @ to_new.T,
        )

    def approximate_matrix(self) -> np.ndarray:
        """See :meth:`geometry.transforms.Transform.approximate_matrix`."""
        return self.base.approximate_matrix()

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`geometry.transforms.Transform.to_dict`."""
        return {
            "kind": self.kind,
            "base": self.base.to_dict(),
            "H_fixed_to_lattice": self.H_fixed_to_lattice.tolist(),
            "controls": self.controls.tolist(),
        }
