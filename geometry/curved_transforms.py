"""Transforms beyond a matrix: a quadratic map, and a smooth displacement on top of another transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates

from geometry.points import warp_points
from geometry.transforms import Transform

CURVED_KINDS = ("quadratic", "deformable")


def quadratic_terms(units: np.ndarray) -> np.ndarray:
    """1, u, v, u^2, u v, v^2 of points (N, 2) for |u| <= 1, and beyond the unit circle the tangents of these at it: (N, 6).

    A parabola that ran on outside of what matched would bend away from anything.
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


@dataclass(frozen=True)
class QuadraticTransform(Transform):
    """Twelve parameters, the retinal model of Can, Stewart et al. (PAMI 2002), tamed beyond what matched.

    With ``u = N p`` (normalised coordinates) the map is ``C q(u)``, q as in :func:`quadratic_terms`.

    Attributes:
        H_fixed_to_unit: (3, 3) affine N, fixed pixels to the frame in which the matches fill the unit circle.
        coefficients: (2, 6) C, moving pixels.
    """

    H_fixed_to_unit: np.ndarray
    coefficients: np.ndarray
    kind = "quadratic"

    def map(self, points: np.ndarray) -> np.ndarray:
        units = warp_points(np.asarray(points, dtype=float).reshape(-1, 2), self.H_fixed_to_unit)
        return quadratic_terms(units) @ self.coefficients.T

    def rescaled(
        self, H_new_to_fixed: np.ndarray, H_moving_to_new: np.ndarray
    ) -> QuadraticTransform:
        coefficients = H_moving_to_new[:2, :2] @ self.coefficients
        coefficients[:, 0] += H_moving_to_new[:2, 2]
        return QuadraticTransform(self.H_fixed_to_unit @ H_new_to_fixed, coefficients)

    def approximate_matrix(self) -> np.ndarray:
        # Over the unit circle the means of u^2 and v^2 are 1/4, which belongs to the constant.
        tangent = self.coefficients[:, :3].copy()
        tangent[:, 0] += 0.25 * (self.coefficients[:, 3] + self.coefficients[:, 5])
        H_unit_to_moving = np.vstack(
            [np.column_stack([tangent[:, 1:], tangent[:, 0]]), [0.0, 0.0, 1.0]]
        )
        return H_unit_to_moving @ self.H_fixed_to_unit

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "H_fixed_to_unit": self.H_fixed_to_unit.tolist(),
            "coefficients": self.coefficients.tolist(),
        }


@dataclass(frozen=True)
class DeformableTransform(Transform):
    """A smooth displacement before another transform: ``T(p) = base(p + d(p))``.

    d is a cubic B-spline over a lattice of control points in the fixed image; beyond the lattice it is 0.

    Attributes:
        base: the transform that is refined.
        H_fixed_to_lattice: (3, 3) affine, fixed pixels to control points: (0, 0) is the first, (1, 0) the one to its right.
        controls: (rows, columns, 2) displacements in fixed pixels; the outer two rings must be 0.
    """

    base: Transform
    H_fixed_to_lattice: np.ndarray
    controls: np.ndarray
    kind = "deformable"

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """d at fixed pixels (N, 2): (N, 2) fixed pixels."""
        places = warp_points(
            np.asarray(points, dtype=float).reshape(-1, 2), self.H_fixed_to_lattice
        )
        return np.stack(
            [
                map_coordinates(
                    self.controls[..., axis],
                    places.T[::-1],
                    order=3,
                    mode="nearest",
                    prefilter=False,
                )
                for axis in range(2)
            ],
            axis=1,
        )

    def map(self, points: np.ndarray) -> np.ndarray:
        points = np.asarray(points, dtype=float).reshape(-1, 2)
        return self.base.map(points + self.displacement(points))

    def rescaled(
        self, H_new_to_fixed: np.ndarray, H_moving_to_new: np.ndarray
    ) -> DeformableTransform:
        to_new = np.linalg.inv(H_new_to_fixed[:2, :2])
        return DeformableTransform(
            self.base.rescaled(H_new_to_fixed, H_moving_to_new),
            self.H_fixed_to_lattice @ H_new_to_fixed,
            self.controls @ to_new.T,
        )

    def approximate_matrix(self) -> np.ndarray:
        return self.base.approximate_matrix()

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "base": self.base.to_dict(),
            "H_fixed_to_lattice": self.H_fixed_to_lattice.tolist(),
            "controls": self.controls.tolist(),
        }
