"""The best affine through the landmarks themselves: the floor that hand-placed points leave. Not a method, a yardstick."""

from __future__ import annotations

from evaluation.method import Method, MethodSetting, Outcome
from geometry.estimation import fit_affine


def make(setting: MethodSetting) -> Method:
    """See ``evaluation.method``."""
    return Method(
        lambda pair: Outcome(fit_affine(pair.fixed_landmarks, pair.moving_landmarks)),
        {"transform": "affine"},
        is_yardstick=True,
    )
