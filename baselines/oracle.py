"""The best affine through the landmarks themselves: the floor that hand-placed points leave. Not a method, a yardstick."""

from __future__ import annotations

from baselines import Method, MethodSetting, Outcome
from utils.geometry import fit_affine


def make(setting: MethodSetting) -> Method:
    """See ``baselines``."""
    return Method(
        lambda pair: Outcome(fit_affine(pair.fixed_landmarks, pair.moving_landmarks)),
        {"transform": "affine"},
        is_yardstick=True,
    )
