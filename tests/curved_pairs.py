"""Pairs for the tests of curved transforms, and their errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geometry.matrices import affine_about
from geometry.rasters import register_onto_fixed
from geometry.transforms import Transform
from registration.ridges import RidgePair
from registration.working_frame import to_working_frame
from synthesis.camera_pairs import CameraPair, PairDraw, draw_pair, landmarks_of


class CurvedPair(NamedTuple):
    """A pair whose transform is far from affine.

    Attributes:
        fixed, moving: (512, 512) float32 in [0, 1].
        fixed_points, moving_points: (N, 2) float64, landmarks, pixels (x, y).
        ridges: of both working images.
    """

    fixed: np.ndarray
    moving: np.ndarray
    fixed_points: np.ndarray
    moving_points: np.ndarray
    ridges: RidgePair


def draw_gazes() -> CameraPair:
    """CF and FA of one eye in two gaze directions, with an overlap of a half to two thirds."""
    return draw_pair("cffa", 7, PairDraw(seed=11, largest_overlap=0.66))


def make_curved_pair() -> CurvedPair:
    """The pair of :func:`draw_gazes` with its landmarks and ridge maps."""
    pair = draw_gazes()
    fixed, moving = _gray(pair.fixed), _gray(pair.moving)
    return CurvedPair(fixed, moving, *landmarks_of(pair.moving_xy), _ridges_of(fixed, moving))


def make_affine_pair(fixed: np.ndarray) -> tuple[RidgePair, np.ndarray]:
    """Ridge maps of an image and its inverted copy under an affine matrix, and that matrix (3, 3).

    Args:
        fixed: (512, 512) float32 in [0, 1].
    """
    H_fix_to_mov = affine_about(20.0, 1.05, 0.01, (255.5, 255.5), (262.0, 250.0))
    H_mov_to_fix, size = np.linalg.inv(H_fix_to_mov), (512, 512)
    moving = register_onto_fixed(1.0 - fixed, H_mov_to_fix, size)
    seen = register_onto_fixed((fixed > 0.05).astype(np.float32), H_mov_to_fix, size) > 0.5
    return _ridges_of(fixed, np.where(seen, moving, 0.0).astype(np.float32)), H_fix_to_mov


def mean_error(transform: Transform, fixed_points: np.ndarray, moving_points: np.ndarray) -> float:
    """Mean distance in moving pixels of mapped fixed points (N, 2) to moving points (N, 2)."""
    return float(np.linalg.norm(transform.map(fixed_points) - moving_points, axis=1).mean())


def _gray(image: np.ndarray) -> np.ndarray:
    return (image if image.ndim == 2 else image[..., 1]).astype(np.float32)


def _ridges_of(fixed: np.ndarray, moving: np.ndarray) -> RidgePair:
    return RidgePair(*(to_working_frame(image, 512) for image in (fixed, moving)))
