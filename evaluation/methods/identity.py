"""Reference without registration: image centre on image centre, long side on long side."""

from __future__ import annotations

import numpy as np

from evaluation.method import Method, MethodOptions, Outcome
from geometry.matrices import Size, affine_about, image_centre


def identity_matrix(fixed_size: Size, moving_size: Size) -> np.ndarray:
    """The matrix that maps centre to centre and scales the long sides to each other.

    Args:
        fixed_size, moving_size: (height, width), pixels.

    Returns:
        ``H_fix_to_mov`` (3, 3) float64.
    """
    return affine_about(
        0.0,
        max(moving_size) / max(fixed_size),
        0.0,
        image_centre(fixed_size),
        image_centre(moving_size),
    )


def make(options: MethodOptions) -> Method:
    """See :mod:`evaluation.method`."""
    return Method(
        run=lambda pair: Outcome(identity_matrix(pair.fixed.shape, pair.moving.shape)),
        settings={},
        is_reference=True,
    )
