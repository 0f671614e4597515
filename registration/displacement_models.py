"""Models of a displacement field: affine, quadratic, and a cubic B-spline lattice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geometry.curved_transforms import QuadraticTransform, quadratic_terms
from geometry.matrices import Size
from geometry.points import warp_points
from registration.displacement_fits import Basis


@dataclass(frozen=True)
class ModelConstants:
    """Constants of the models; chosen by hand."""

    curvature_px: float = 6.0  # prior standard deviation of the quadratic terms, pixels
    controls_across: int = 13  # control spacings along the long side: 40 px at 512 px
    outer_rings: int = 2  # rings of control points that stay 0
    size_penalty: float = 0.01  # on the coefficients, relative to the penalty on bending


MODELS = ModelConstants()


def affine_basis(points: np.ndarray) -> Basis:
    """Functions 1, x, y at points (N, 2), pixels, without a penalty."""
    return Basis(np.column_stack([np.ones(len(points)), points]), np.zeros((3, 3)))


def quadratic_basis(points: np.ndarray, H_fixed_to_unit: np.ndarray) -> Basis:
    """Functions of :func:`geometry.curved_transforms.quadratic_terms`.

    Args:
        points: (N, 2), fixed working pixels (x, y).
        H_fixed_to_unit: (3, 3), see :func:`geometry.curved_transforms.unit_frame`.
    """
    penalty = np.diag([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]) / MODELS.curvature_px**2
    return Basis(quadratic_terms(warp_points(points, H_fixed_to_unit)), penalty)


def quadratic_transform(
    H_fix_to_mov: np.ndarray, H_fixed_to_unit: np.ndarray, coefficients: np.ndarray
) -> QuadraticTransform:
    """An affine matrix after a quadratic displacement d: ``H (p + d(p))``, which is quadratic.

    Args:
        H_fix_to_mov: (3, 3), affine, working pixels.
        H_fixed_to_unit: (3, 3), see :func:`geometry.curved_transforms.unit_frame`.
        coefficients: (6, 2), of :func:`quadratic_basis`, fixed pixels.
    """
    H_unit_to_fixed = np.linalg.inv(H_fixed_to_unit)
    moved = coefficients.T.copy()
    moved[:, 0] += H_unit_to_fixed[:2, 2]
    moved[:, 1:3] += H_unit_to_fixed[:2, :2]
    return QuadraticTransform(H_fixed_to_unit, moved).rescaled(np.eye(3), H_fix_to_mov)


def cubic_b_spline(distance: np.ndarray) -> np.ndarray:
    """Uniform cubic B-spline, same shape as ``distance`` (...,), in control spacings."""
    x = np.abs(distance)
    return np.where(x < 1, 2 / 3 - x**2 + 0.5 * x**3, np.where(x < 2, (2 - x) ** 3 / 6, 0.0))


class Lattice(NamedTuple):
    """Control points of a cubic B-spline over the fixed image.

    Attributes:
        H_fixed_to_lattice: (3, 3), as in :class:`geometry.curved_transforms.DeformableTransform`.
        shape: rows and columns of control points, with the outer rings that stay 0.
    """

    H_fixed_to_lattice: np.ndarray
    shape: Size

    @classmethod
    def over(cls, size: Size) -> Lattice:
        """A lattice that covers an image of size (height, width)."""
        spacing = (max(size) - 1) / MODELS.controls_across
        H = np.diag([1 / spacing, 1 / spacing, 1.0])
        H[:2, 2] = 3.0
        rows, columns = (int(np.ceil((side - 1) / spacing)) + 7 for side in size)
        return cls(H, (rows, columns))

    @property
    def inner_shape(self) -> Size:
        """Rows and columns of control points without the outer rings."""
        rows, columns = self.shape
        return rows - 2 * MODELS.outer_rings, columns - 2 * MODELS.outer_rings

    def design(self, points: np.ndarray) -> np.ndarray:
        """Values (N, K) of the splines of all inner control points at points (N, 2), pixels."""
        x, y = warp_points(points, self.H_fixed_to_lattice).T
        ring = MODELS.outer_rings
        rows, columns = (np.arange(ring, side - ring) for side in self.shape)
        along_y, along_x = cubic_b_spline(y[:, None] - rows), cubic_b_spline(x[:, None] - columns)
        return (along_y[:, :, None] * along_x[:, None, :]).reshape(len(points), -1)

    def bending(self) -> np.ndarray:
        """Penalty (K, K) on the second differences of the coefficients, and a small one on size."""
        n_rows, n_columns = self.inner_shape
        bend_y, bend_x = (np.diff(np.eye(n + 4)[:, 2:-2], n=2, axis=0) for n in self.inner_shape)
        slope_y, slope_x = (np.diff(np.eye(n + 2)[:, 1:-1], axis=0) for n in self.inner_shape)
        return (
            np.kron(bend_y.T @ bend_y, np.eye(n_columns))
            + np.kron(np.eye(n_rows), bend_x.T @ bend_x)
            + 2 * np.kron(slope_y.T @ slope_y, slope_x.T @ slope_x)
            + MODELS.size_penalty * np.eye(n_rows * n_columns)
        )

    def controls(self, coefficients: np.ndarray) -> np.ndarray:
        """Control displacements (rows, columns, 2) in pixels, from coefficients (K, 2)."""
        ring = (MODELS.outer_rings, MODELS.outer_rings)
        return np.pad(coefficients.reshape(*self.inner_shape, 2), (ring, ring, (0, 0)))
