"""No registration at all: the images laid on each other, centre on centre and long side on long side."""

from __future__ import annotations

import numpy as np

from evaluation.method import Method, MethodSetting, Outcome
from geometry.matrices import Size, affine_about, image_centre


def identity_matrix(fixed_size: Size, moving_size: Size) -> np.ndarray:
    """``H_fix_to_mov`` (3, 3) that lays one image on the other; sizes are (height, width)."""
    return affine_about(
        0.0,
        max(moving_size) / max(fixed_size),
        0.0,
        image_centre(fixed_size),
        image_centre(moving_size),
    )


def make(setting: MethodSetting) -> Method:
    """See ``evaluation.method``."""
    return Method(
        lambda pair: Outcome(identity_matrix(pair.fixed.shape, pair.moving.shape)),
        {},
        is_yardstick=True,
    )
