"""Transforms between the images of a pair, from the affine matrix to smooth deformations, behind one interface.

A retina is round, so no matrix lays one photograph of it exactly onto another taken in another direction; a quadratic map comes
close (Can, Stewart, Roysam & Tanenbaum, PAMI 2002), and a displacement field takes up what tissue and scanners add.

Convention:
    Every transform takes fixed-image pixels to moving-image pixels, (x, y), pixel centres at integers, like ``H_fix_to_mov``;
    :meth:`Transform.map_back` goes the other way. To resample the moving image into the fixed frame, ask where each fixed pixel
    lies in it (:func:`geometry.rasters.register_onto_fixed` does).
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

DENSE_STEP_PX = 8  # maps are as smooth as that: beyond matrices they are evaluated this far apart and interpolated
NEWTON_STEPS, NEWTON_TOLERANCE_PX = 30, 1e-4
DIFFERENCE_PX = 0.25


class Transform(ABC):
    """A map from fixed to moving pixels.

    Attributes:
        kind: its name in ``transform.json``.
    """

    kind: str

    @abstractmethod
    def map(self, points: np.ndarray) -> np.ndarray:
        """Fixed pixels (N, 2) to moving pixels (N, 2)."""

    @abstractmethod
    def rescaled(self, H_new_to_fixed: np.ndarray, H_moving_to_new: np.ndarray) -> Transform:
        """The same transform between images in other frames: ``H_moving_to_new . T . H_new_to_fixed``.

        Args:
            H_new_to_fixed, H_moving_to_new: (3, 3) affine matrices, pixels.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """What :func:`transform_from_dict` makes it from again, plain numbers and lists."""

    @abstractmethod
    def approximate_matrix(self) -> np.ndarray:
        """A matrix ``H_fix_to_mov`` (3, 3) that is near it where images matched; Newton starts from it."""

    def map_back(self, points: np.ndarray) -> np.ndarray:
        """Moving pixels (N, 2) to fixed pixels (N, 2), by Newton's method; NaN where it does not converge."""
        points = np.asarray(points, dtype=float).reshape(-1, 2)
        H_mov_to_fix = np.linalg.inv(self.approximate_matrix())
        found, error = warp_points(points, H_mov_to_fix), np.full(len(points), np.inf)
        for _ in range(NEWTON_STEPS):
            gap = points - self.map(found)
            error = np.linalg.norm(gap, axis=1)
            if not len(error) or error.max() < NEWTON_TOLERANCE_PX:
                break
            found = found + _solve_pairs(self.jacobian(found), gap)
        found[~(error < 100 * NEWTON_TOLERANCE_PX)] = np.nan
        return found

    def jacobian(self, points: np.ndarray) -> np.ndarray:
        """Derivatives (N, 2, 2) at fixed pixels (N, 2), by central differences; row: moving x or y, column: fixed x or y."""
        sides = [
            (self.map(points + step) - self.map(points - step)) / (2 * DIFFERENCE_PX)
            for step in DIFFERENCE_PX * np.eye(2)
        ]
        return np.stack(sides, axis=-1)

    def least_jacobian(self, fixed_size: Size, step_px: int = DENSE_STEP_PX) -> float:
        """Least determinant of the Jacobian over an image (height, width): positive where the map does not fold or mirror."""
        return float(
            np.linalg.det(self.jacobian(_lattice(fixed_size, step_px)[0].reshape(-1, 2))).min()
        )

    def inverse(self) -> Transform:
        """The transform from moving to fixed pixels."""
        return InverseTransform(self)

    def dense_map(self, out_size: Size) -> np.ndarray:
        """Where every pixel of an image in the frame that it maps from lies in the other: (height, width, 2) float32, NaN where
        there is no counterpart. That of the last size is kept, for the frames of an examination."""
        kept = self.__dict__.setdefault("_dense_map", {})
        if out_size not in kept:
            kept.clear()
            kept[out_size] = self._compute_dense_map(out_size)
        return kept[out_size]

    def _compute_dense_map(self, out_size: Size) -> np.ndarray:
        lattice, rows, columns = _lattice(out_size, DENSE_STEP_PX)
        mapped = self.map(lattice.reshape(-1, 2)).reshape(lattice.shape)
        known = np.isfinite(mapped).all(axis=-1)
        guess = warp_points(lattice.reshape(-1, 2), self.approximate_matrix()).reshape(
            lattice.shape
        )
        mapped = np.where(known[..., None], mapped, guess)
        ys, xs = (np.arange(side, dtype=float) for side in out_size)
        dense = np.stack(
            [RectBivariateSpline(rows, columns, mapped[..., axis])(ys, xs) for axis in range(2)],
            axis=-1,
        )
        if not known.all():
            dense[
                RectBivariateSpline(rows, columns, known.astype(float), kx=1, ky=1)(ys, xs) < 0.999
            ] = np.nan
        return dense.astype(np.float32)


def _lattice(size: Size, step_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (R, C, 2) every ``step_px`` over an image, two beyond its edges, and the y of the rows and the x of the columns."""
    ys, xs = (np.arange(-2, -(-(side - 1) // step_px) + 3) * float(step_px) for side in size)
    return np.stack(np.meshgrid(xs, ys), axis=-1), ys, xs


def _solve_pairs(matrices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Solve (N, 2, 2) systems for (N, 2), zero where a matrix is singular."""
    determinant = np.linalg.det(matrices)
    usable = np.isfinite(determinant) & (np.abs(determinant) > 1e-9)
    solved = np.zeros_like(values)
    solved[usable] = np.linalg.solve(matrices[usable], values[usable, :, None])[..., 0]
    return solved


@dataclass(frozen=True)
class MatrixTransform(Transform):
    """A similarity, an affine map or a homography: ``H_fix_to_mov`` (3, 3)."""

    H_fix_to_mov: np.ndarray
    kind: str = "affine"

    def map(self, points: np.ndarray) -> np.ndarray:
        return warp_points(np.asarray(points, dtype=float), self.H_fix_to_mov)

    def map_back(self, points: np.ndarray) -> np.ndarray:
        return warp_points(
            np.asarray(points, dtype=float).reshape(-1, 2), np.linalg.inv(self.H_fix_to_mov)
        )

    def inverse(self) -> MatrixTransform:
        return MatrixTransform(np.linalg.inv(self.H_fix_to_mov), self.kind)

    def rescaled(self, H_new_to_fixed: np.ndarray, H_moving_to_new: np.ndarray) -> MatrixTransform:
        H = H_moving_to_new @ self.H_fix_to_mov @ H_new_to_fixed
        return MatrixTransform(H / H[2, 2], self.kind)

    def approximate_matrix(self) -> np.ndarray:
        return self.H_fix_to_mov

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "H_fix_to_mov": self.H_fix_to_mov.tolist()}


def as_transform(fix_to_mov: np.ndarray | Transform) -> Transform:
    """A matrix ``H_fix_to_mov`` (3, 3) as a transform; a transform as it is."""
    return (
        fix_to_mov
        if isinstance(fix_to_mov, Transform)
        else MatrixTransform(np.asarray(fix_to_mov, dtype=float))
    )


@dataclass(frozen=True)
class InverseTransform(Transform):
    """Another transform read backwards: takes what is that one's moving pixels to its fixed pixels."""

    forward: Transform
    kind = "inverse"

    def map(self, points: np.ndarray) -> np.ndarray:
        return self.forward.map_back(points)

    def map_back(self, points: np.ndarray) -> np.ndarray:
        return self.forward.map(points)

    def inverse(self) -> Transform:
        return self.forward

    def rescaled(self, H_new_to_fixed: np.ndarray, H_moving_to_new: np.ndarray) -> InverseTransform:
        return InverseTransform(
            self.forward.rescaled(np.linalg.inv(H_moving_to_new), np.linalg.inv(H_new_to_fixed))
        )

    def approximate_matrix(self) -> np.ndarray:
        return np.linalg.inv(self.forward.approximate_matrix())

    def to_dict(self) -> dict[str, Any]:
        raise TypeError(
            "a registration is described from fixed to moving; describe the forward transform"
        )


def affine_of(transform: Transform, places: np.ndarray) -> np.ndarray:
    """The affine ``H_fix_to_mov`` (3, 3) that is nearest to a transform at fixed pixels (N, 2), least squares."""
    return fit_affine(places, transform.map(places))


def displacement_after_affine(
    transform: Transform, H_affine: np.ndarray, fixed_size: Size
) -> np.ndarray:
    """What an affine matrix leaves of a transform: (height, width, 2) fixed pixels.

    Convention: the moving image shows at ``H_affine (p + d)`` what belongs to p.
    """
    whole = transform.dense_map(fixed_size).reshape(-1, 2).astype(float)
    points = pixel_grid(fixed_size).double().numpy()
    return (warp_points(whole, np.linalg.inv(H_affine)) - points).reshape(*fixed_size, 2)
