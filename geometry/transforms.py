"""Transforms between the images of a pair behind one interface, and those given by a matrix.

A matrix cannot align two photographs of the spherical retina that were taken in different
directions. A quadratic map comes close (Can, Stewart, Roysam & Tanenbaum, PAMI 2002), and a
displacement field models what tissue and scanners add; see ``geometry.curved_transforms``.

Convention:
    Every transform takes fixed-image pixels to moving-image pixels, (x, y), pixel centres at
    integers, like ``H_fix_to_mov``; :meth:`Transform.map_back` goes the other way. To resample the
    moving image into the fixed frame, :func:`geometry.rasters.register_onto_fixed` reads it at the
    mapped position of each fixed pixel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import RectBivariateSpline

from geometry.estimation import fit_affine
from geometry.matrices import Size
from geometry.points import pixel_grid, warp_points

DENSE_STEP_PX = 8  # distance at which curved maps are evaluated; they are interpolated between
NEWTON_STEPS = 30  # iterations of the inversion
NEWTON_TOLERANCE_PX = 1e-4  # residual at which the inversion stops, moving pixels
NEWTON_ACCEPTED_PX = 100 * NEWTON_TOLERANCE_PX  # larger final residuals count as not converged
DIFFERENCE_PX = 0.25  # half the step of central differences
MIN_DETERMINANT = 1e-9  # of a Jacobian, for a Newton step
MIN_KNOWN = 0.999  # of the interpolated validity, for a pixel of a dense map to count as mapped


class Transform(ABC):
    """A map from fixed to moving pixels.

    Attributes:
        kind: its name in ``transform.json``.
    """

    kind: str

    @abstractmethod
    def map(self, points: np.ndarray) -> np.ndarray:
        """Map fixed pixels to moving pixels.

        Args:
            points: (N, 2), (x, y).

        Returns:
            (N, 2) float64.
        """

    @abstractmethod
    def rescaled(self, H_new_to_fixed: np.ndarray, H_moving_to_new: np.ndarray) -> Transform:
        """The same transform between other frames: ``H_moving_to_new . T . H_new_to_fixed``.

        Args:
            H_new_to_fixed, H_moving_to_new: (3, 3) affine matrices, pixels.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, from which ``geometry.transform_dicts`` makes it again."""

    @abstractmethod
    def approximate_matrix(self) -> np.ndarray:
        """A matrix ``H_fix_to_mov`` (3, 3) that approximates it where the images matched.

        Newton's method starts from it.
        """

    def map_back(self, points: np.ndarray) -> np.ndarray:
        """Map moving pixels to fixed pixels, by Newton's method.

        Args:
            points: (N, 2), (x, y).

        Returns:
            (N, 2) float64; NaN where the iteration does not converge.
        """
        points = np.asarray(points, dtype=float).reshape(-1, 2)
        H_mov_to_fix = np.linalg.inv(self.approximate_matrix())
        found, error = warp_points(points, H_mov_to_fix), np.full(len(points), np.inf)
        for _ in range(NEWTON_STEPS):
            residual = points - self.map(found)
            error = np.linalg.norm(residual, axis=1)
            if not len(error) or error.max() < NEWTON_TOLERANCE_PX:
                break
            found = found + _solve_2x2(self.jacobian(found), residual)
        found[~(error < NEWTON_ACCEPTED_PX)] = np.nan
        return found

    def jacobian(self, points: np.ndarray) -> np.ndarray:
        """Derivatives at fixed pixels, by central differences.

        Args:
            points: (N, 2), (x, y).

        Returns:
            (N, 2, 2); rows: moving x and y, columns: fixed x and y.
        """
        sides = [
            (self.map(points + step) - self.map(points - step)) / (2 * DIFFERENCE_PX)
            for step in DIFFERENCE_PX * np.eye(2)
        ]
        return np.stack(sides, axis=-1)

    def least_jacobian(self, fixed_size: Size, step_px: int = DENSE_STEP_PX) -> float:
        """Least determinant of the Jacobian over an image; positive if the map does not fold.

        Args:
            fixed_size: (height, width) of the fixed image.
            step_px: distance of the points at which it is evaluated, fixed pixels.
        """
        lattice, _, _ = _lattice(fixed_size, step_px)
        return float(np.linalg.det(self.jacobian(lattice.reshape(-1, 2))).min())

    def inverse(self) -> Transform:
        """The transform from moving to fixed pixels."""
        return InverseTransform(self)

    def dense_map(self, out_size: Size) -> np.ndarray:
        """Position in the moving image of every pixel of the fixed image, for resampling.

        Convention: direction as in :meth:`map`, output -> source; pixels, not normalised.

        The map of the last size is cached, for the frames of an examination.

        Args:
            out_size: (height, width) of the fixed image.

        Returns:
            (height, width, 2) float32, (x, y); NaN where there is no counterpart.
        """
        cached = self.__dict__.setdefault("_dense_map", {})
        if out_size not in cached:
            cached.clear()
            cached[out_size] = self._compute_dense_map(out_size)
        return cached[out_size]

    def _compute_dense_map(self, out_size: Size) -> np.ndarray:
        """Map a lattice and interpolate it by cubic splines; see :meth:`dense_map`."""
        lattice, rows, columns = _lattice(out_size, DENSE_STEP_PX)
        points = lattice.reshape(-1, 2)
        mapped = self.map(points).reshape(lattice.shape)
        known = np.isfinite(mapped).all(axis=-1)
        guess = warp_points(points, self.approximate_matrix()).reshape(lattice.shape)
        mapped = np.where(known[..., None], mapped, guess)
        ys, xs = (np.arange(side, dtype=float) for side in out_size)
        splines = [RectBivariateSpline(rows, columns, mapped[..., axis]) for axis in range(2)]
        dense = np.stack([spline(ys, xs) for spline in splines], axis=-1)
        if not known.all():
            validity = RectBivariateSpline(rows, columns, known.astype(float), kx=1, ky=1)
            dense[validity(ys, xs) < MIN_KNOWN] = np.nan
        return dense.astype(np.float32)


def _lattice(size: Size, step_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points every ``step_px`` over an image, two beyond each edge.

    Returns:
        Points (R, C, 2), y of the rows (R,), x of the columns (C,).
    """
    ys, xs = (np.arange(-2, -(-(side - 1) // step_px) + 3) * float(step_px) for side in size)
    return np.stack(np.meshgrid(xs, ys), axis=-1), ys, xs


def _solve_2x2(matrices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Solve systems (N, 2, 2) for values (N, 2); zero where a matrix is singular."""
    determinant = np.linalg.det(matrices)
    usable = np.isfinite(determinant) & (np.abs(determinant) > MIN_DETERMINANT)
    solved = np.zeros_like(values)
    solved[usable] = np.linalg.solve(matrices[usable], values[usable, :, None])[..., 0]
    return solved


@dataclass(frozen=True)
class MatrixTransform(Transform):
    """A similarity, an affine map or a homography.

    Attributes:
        H_fix_to_mov: (3, 3), fixed pixels to moving pixels.
        kind: "similarity", "affine" or "homography".
    """

    H_fix_to_mov: np.ndarray
    kind: str = "affine"

    def map(self, points: np.ndarray) -> np.ndarray:
        """See :meth:`Transform.map`; (N, 2) to (N, 2)."""
        return warp_points(np.asarray(points, dtype=float), self.H_fix_to_mov)

    def map_back(self, points: np.ndarray) -> np.ndarray:
        """See :meth:`Transform.map_back`; (N, 2) to (N, 2), exact."""
        points = np.asarray(points, dtype=float).reshape(-1, 2)
        return warp_points(points, np.linalg.inv(self.H_fix_to_mov))

    def inverse(self) -> MatrixTransform:
        """See :meth:`Transform.inverse`."""
        return MatrixTransform(np.linalg.inv(self.H_fix_to_mov), self.kind)

    def rescaled(self, H_new_to_fixed: np.ndarray, H_moving_to_new: np.ndarray) -> MatrixTransform:
        """See :meth:`Transform.rescaled`; (3, 3) matrices."""
        H = H_moving_to_new @ self.H_fix_to_mov @ H_new_to_fixed
        return MatrixTransform(H / H[2, 2], self.kind)

    def approximate_matrix(self) -> np.ndarray:
        """See :meth:`Transform.approximate_matrix`; the matrix itself."""
        return self.H_fix_to_mov

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Transform.to_dict`."""
        return {"kind": self.kind, "H_fix_to_mov": self.H_fix_to_mov.tolist()}


def as_transform(fix_to_mov: np.ndarray | Transform) -> Transform:
    """A matrix as a transform; a transform unchanged.

    Args:
        fix_to_mov: ``H_fix_to_mov`` (3, 3), or a transform.
    """
    if isinstance(fix_to_mov, Transform):
        return fix_to_mov
    return MatrixTransform(np.asarray(fix_to_mov, dtype=float))


@dataclass(frozen=True)
class InverseTransform(Transform):
    """The inverse of a transform: from its moving pixels to its fixed pixels.

    Attributes:
        forward: the transform that is inverted.
    """

    forward: Transform
    kind = "inverse"

    def map(self, points: np.ndarray) -> np.ndarray:
        """See :meth:`Transform.map`; (N, 2) to (N, 2), NaN where it does not converge."""
        return self.forward.map_back(points)

    def map_back(self, points: np.ndarray) -> np.ndarray:
        """See :meth:`Transform.map_back`; (N, 2) to (N, 2)."""
        return self.forward.map(points)

    def inverse(self) -> Transform:
        """See :meth:`Transform.inverse`; the forward transform."""
        return self.forward

    def rescaled(self, H_new_to_fixed: np.ndarray, H_moving_to_new: np.ndarray) -> InverseTransform:
        """See :meth:`Transform.rescaled`; (3, 3) matrices."""
        to_fixed, to_new = np.linalg.inv(H_moving_to_new), np.linalg.inv(H_new_to_fixed)
        return InverseTransform(self.forward.rescaled(to_fixed, to_new))

    def approximate_matrix(self) -> np.ndarray:
        """See :meth:`Transform.approximate_matrix`; (3, 3)."""
        return np.linalg.inv(self.forward.approximate_matrix())

    def to_dict(self) -> dict[str, Any]:
        """Not available: files describe transforms from fixed to moving pixels.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a registration is described from fixed to moving; describe the forward transform"
        )


def affine_of(transform: Transform, points: np.ndarray) -> np.ndarray:
    """The affine matrix that approximates a transform at given points, by least squares.

    Args:
        transform: fixed pixels to moving pixels.
        points: (N, 2) fixed pixels, (x, y).

    Returns:
        ``H_fix_to_mov`` (3, 3).

    Raises:
        InputError: fewer than three points, or collinear points.
    """
    return fit_affine(points, transform.map(points))


def displacement_after_affine(
    transform: Transform, H_affine: np.ndarray, fixed_size: Size
) -> np.ndarray:
    """Difference between a transform and an affine matrix, as a displacement field.

    Convention: the transform maps p to ``H_affine (p + d)``.

    Args:
        transform: fixed pixels to moving pixels.
        H_affine: (3, 3) affine ``H_fix_to_mov``.
        fixed_size: (height, width) of the fixed image.

    Returns:
        d, (height, width, 2) in fixed pixels, (x, y).
    """
    mapped = transform.dense_map(fixed_size).reshape(-1, 2).astype(float)
    points = pixel_grid(fixed_size).double().numpy()
    return (warp_points(mapped, np.linalg.inv(H_affine)) - points).reshape(*fixed_size, 2)
