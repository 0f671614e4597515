"""Transforms between the images of a pair, from the affine matrix to smooth deformations, behind one interface.

A retina is round, so no matrix lays one photograph of it exactly onto another taken in another direction; a quadratic map comes
close (Can, Stewart, Roysam & Tanenbaum, PAMI 2002), and a displacement field takes up what tissue and scanners add.

Convention:
    Every transform takes fixed-image pixels to moving-image pixels, (x, y), pixel centres at integers, like ``H_fix_to_mov``;
    :meth:`Transform.map_back` goes the other way. To resample the moving image into the fixed frame, ask where each fixed pixel
    lies in it (:func:`utils.pictures.register_onto_fixed` does).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from kornia.geometry.transform import remap
from scipy.interpolate import RectBivariateSpline
from scipy.ndimage import map_coordinates

from utils.errors import InputError
from utils.geometry import MATRIX_KINDS, Size, fit_affine, pixel_grid, warp_points

CURVED_KINDS = ("quadratic", "deformable")
DENSE_STEP_PX = 8  # maps are as smooth as that: beyond matrices they are evaluated this far apart and interpolated
NEWTON_STEPS, NEWTON_TOLERANCE_PX = 30, 1e-4
DIFFERENCE_PX = 0.25
MAX_FIELD_VALUES = 1 << 20
LEAST_DETERMINANT = 1e-12


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
    def near_matrix(self) -> np.ndarray:
        """A matrix ``H_fix_to_mov`` (3, 3) that is near it where images matched; Newton starts from it."""

    def map_back(self, points: np.ndarray) -> np.ndarray:
        """Moving pixels (N, 2) to fixed pixels (N, 2), by Newton's method; NaN where it does not converge."""
        points = np.asarray(points, dtype=float).reshape(-1, 2)
        H_mov_to_fix = np.linalg.inv(self.near_matrix())
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
        guess = warp_points(lattice.reshape(-1, 2), self.near_matrix()).reshape(lattice.shape)
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

    def near_matrix(self) -> np.ndarray:
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

    def near_matrix(self) -> np.ndarray:
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

    def near_matrix(self) -> np.ndarray:
        return self.base.near_matrix()

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "base": self.base.to_dict(),
            "H_fixed_to_lattice": self.H_fixed_to_lattice.tolist(),
            "controls": self.controls.tolist(),
        }


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

    def near_matrix(self) -> np.ndarray:
        return np.linalg.inv(self.forward.near_matrix())

    def to_dict(self) -> dict[str, Any]:
        raise TypeError(
            "a registration is described from fixed to moving; describe the forward transform"
        )


def transform_from_dict(content: Any) -> Transform:
    """The transform that :meth:`Transform.to_dict` described.

    Raises:
        InputError: not such a description, or one with impossible values.
    """
    try:
        return _READERS[content["kind"]](content)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(
            f"not the description of a transform ({type(error).__name__}: {error})"
        ) from error


def _read_matrix(content: dict[str, Any]) -> MatrixTransform:
    return MatrixTransform(
        _matrix(content, "H_fix_to_mov", content["kind"] != "homography"), content["kind"]
    )


def _read_quadratic(content: dict[str, Any]) -> QuadraticTransform:
    coefficients = _numbers(content["coefficients"], (2, 6), "coefficients")
    transform = QuadraticTransform(_matrix(content, "H_fixed_to_unit", True), coefficients)
    if abs(np.linalg.det(transform.near_matrix())) < LEAST_DETERMINANT:
        raise InputError("coefficients that map everything onto a line")
    return transform


def _read_deformable(content: dict[str, Any]) -> DeformableTransform:
    base = content["base"]
    if base["kind"] == "deformable":
        raise InputError("the base of a deformable transform must be a matrix or quadratic")
    controls = np.asarray(content["controls"], dtype=float)
    if (
        controls.ndim != 3
        or controls.shape[2] != 2
        or min(controls.shape[:2]) < 5
        or controls.size > MAX_FIELD_VALUES
    ):
        raise InputError(f"controls of shape {controls.shape}; (rows, columns, 2) needed")
    _numbers(controls, controls.shape, "controls")
    if np.count_nonzero(controls) != np.count_nonzero(controls[2:-2, 2:-2]):
        raise InputError("controls whose outer two rings are not 0")
    return DeformableTransform(
        transform_from_dict(base), _matrix(content, "H_fixed_to_lattice", True), controls
    )


_READERS = {kind: _read_matrix for kind in MATRIX_KINDS} | {
    "quadratic": _read_quadratic,
    "deformable": _read_deformable,
}


def _numbers(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.shape != shape or not np.isfinite(array).all():
        raise InputError(f"{name} must be {shape} finite numbers")
    return array


def _matrix(content: dict[str, Any], name: str, affine: bool) -> np.ndarray:
    H = _numbers(content[name], (3, 3), name)
    if abs(np.linalg.det(H)) < LEAST_DETERMINANT:
        raise InputError(f"{name} is not an invertible 3 x 3 matrix")
    if affine and not np.array_equal(H[2], [0.0, 0.0, 1.0]):
        raise InputError(f"the last row of {name} must be 0 0 1")
    return H


def resample(source: torch.Tensor, source_xy: np.ndarray) -> torch.Tensor:
    """Read rasters (1, C, H, W) at places (height, width, 2), pixels (x, y), bilinearly: (1, C, height, width).

    What lies outside of the source, or is NaN, is 0.
    """
    places = torch.from_numpy(np.nan_to_num(source_xy, nan=-2.0 * max(source.shape[-2:])))
    return remap(
        source,
        places[None, ..., 0],
        places[None, ..., 1],
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
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
