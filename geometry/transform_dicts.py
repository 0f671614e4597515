"""Parse and validate the description of one transform: a dict of numbers and lists.

:meth:`geometry.transforms.Transform.to_dict` makes such a dict, :func:`transform_from_dict` makes
the transform from it again. No files are involved here: geometry/transform_files.py reads and
writes whole files, and uses this module for the entry of ``transform.json`` that describes the
transform.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from geometry.curved_transforms import DeformableTransform, QuadraticTransform
from geometry.estimation import MATRIX_KINDS
from geometry.transforms import MatrixTransform, Transform
from utils.errors import InputError

MAX_FIELD_VALUES = 1 << 20  # numbers in a lattice of control points, chosen by hand
LEAST_DETERMINANT = 1e-12  # matrices with a smaller |det| are refused as singular


def transform_from_dict(content: Any) -> Transform:
    """Make a transform from the result of :meth:`geometry.transforms.Transform.to_dict`.

    Args:
        content: the dict, as parsed from JSON; it may hold anything.

    Raises:
        InputError: not a description of a transform, or values that no transform can have.
    """
    try:
        return _READERS[content["kind"]](content)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(
            f"not the description of a transform ({type(error).__name__}: {error})"
        ) from error


def _read_matrix(content: dict[str, Any]) -> MatrixTransform:
    """Read a similarity, an affine map or a homography."""
    return MatrixTransform(
        _matrix(content, "H_fix_to_mov", content["kind"] != "homography"), content["kind"]
    )


def _read_quadratic(content: dict[str, Any]) -> QuadraticTransform:
    """Read a quadratic map; refuse one whose approximate matrix is singular."""
    coefficients = _numbers(content["coefficients"], (2, 6), "coefficients")
    transform = QuadraticTransform(_matrix(content, "H_fixed_to_unit", True), coefficients)
    if abs(np.linalg.det(transform.approximate_matrix())) < LEAST_DETERMINANT:
        raise InputError("coefficients that map all points onto one line")
    return transform


def _read_deformable(content: dict[str, Any]) -> DeformableTransform:
    """Read a displacement field and its base transform."""
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
    """Check an array of finite numbers; ``name`` is used in the error message."""
    array = np.asarray(values, dtype=float)
    if array.shape != shape or not np.isfinite(array).all():
        raise InputError(f"{name} must be {shape} finite numbers")
    return array


def _matrix(content: dict[str, Any], name: str, affine: bool) -> np.ndarray:
    """Check an invertible (3, 3) matrix; an affine one must have the last row 0 0 1."""
    H = _numbers(content[name], (3, 3), name)
    if abs(np.linalg.det(H)) < LEAST_DETERMINANT:
        raise InputError(f"{name} is not an invertible 3 x 3 matrix")
    if affine and not np.array_equal(H[2], [0.0, 0.0, 1.0]):
        raise InputError(f"the last row of {name} must be 0 0 1")
    return H
